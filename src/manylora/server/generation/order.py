"""Orders: requests for text in a form without a dialect, into which each route translates its requests."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from manylora.engine.pooling import Pooling
from manylora.engine.request import SamplingParams
from manylora.models.text.grammar import GrammarSource
from manylora.server.generation.text import ReplyForm
from manylora.server.names.adapter_fields import AdapterFields
from manylora.server.tools.tool import ToolSet

LONGEST_PROMPT = -1
"""The value of `truncate` that keeps as many tokens as fit the window beside the budget."""

Message = Mapping[str, Any]
"""A message for the chat template. Its `content` is a string; others of its values may be of any JSON type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRules:
    """The conditions that end a request's text.

    min_tokens  number of generated tokens before which only the budget ends the text
    keeps_stop  whether the text keeps the stop string or the stop token; None: the default of the route
    """

    strings: tuple[str, ...] = ()
    token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    keeps_stop: bool | None = None


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A prompt as text.

    add_special_tokens  whether the tokenizer adds its special tokens, such as the begin-of-text token
    """

    text: str
    add_special_tokens: bool = True

    @property
    def size(self) -> int:
        """Number of characters."""
        return len(self.text)


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """A prompt as token ids."""

    tokens: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A conversation, which a chat template turns into a prompt.

    continues_last  whether the reply continues the last message
    instead         advice in the error for a model without a chat template
    tools           the tools that the reply may call; None: there are none
    num_pinned      number of first messages that stay while older turns go until the prompt fits; None: none goes
    """

    messages: tuple[Message, ...]
    add_generation_prompt: bool = True
    continues_last: bool = False
    instead: str = "use /v1/completions"
    tools: ToolSet | None = None
    num_pinned: int | None = None

    @property
    def size(self) -> int:
        """Number of characters of the messages' contents."""
        return sum(len(message["content"]) for message in self.messages)

    @property
    def cuts(self) -> list[int]:
        """The numbers of first messages behind the pinned ones that may go: up to the last turn; empty if none may.

        A turn begins with a user's message, so that no call loses its output, and templates that expect a user first
        accept the rest. Without any user, it begins with any message but the output of a call.
        """
        if self.num_pinned is None:
            return []
        roles = [message["role"] for message in self.messages[self.num_pinned :]]
        turns = [index for index, role in enumerate(roles) if role == "user"]
        starts = turns or [index for index, role in enumerate(roles) if role != "tool"]
        return [start for start in starts if start]

    def without(self, cut: int) -> "ChatPrompt":
        """Return the prompt without that many messages behind the pinned ones."""
        pinned = self.num_pinned or 0
        return replace(self, messages=(*self.messages[:pinned], *self.messages[pinned + cut :]))


PromptInput = TextPrompt | TokenPrompt | ChatPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A checked request for text.

    model            the model of the request: a base beside the adapter's name, or any other text, which means nothing
    adapter_name     the name of an adapter or of a base; None is the base of `model`, or else the default
    adapter          the other fields that name an adapter
    num_sequences    number of sequences of each prompt
    grammar          the form of each reply; None: any text
    bad_words        words that the reply does not complete; they become `sampling.bad_words`
    seed             seed + i is the seed of sequence i of a prompt; None: each sequence has a random seed
    max_new_tokens   largest number of generated tokens; None: the rest of the window
    is_clamped       whether a budget above the rest of the window is cut to it; otherwise it is refused
    form             the form of the pieces that the route prints
    truncate         number of the prompt's last tokens to keep; None: all; `LONGEST_PROMPT`: as many as fit
    pooling          the form of the result of a request that generates nothing; None: it generates
    dimensions       elements of an embedding that the request names, at most the base's own; None: all of them
    truncate_budget  number of generated tokens for which truncation leaves room; None: one
    most_prompt_tokens  tokens of all prompts together at most; None: any number
    prompt_logprobs  alternatives beside each token of the prompts, 0..20; None: the prompts are not scored
    …_field          the request's field in the text of an error
    """

    model: str | None
    adapter_name: str | None
    adapter: AdapterFields
    prompts: tuple[PromptInput, ...]
    num_sequences: int
    sampling: SamplingParams
    seed: int | None
    stop: StopRules
    max_new_tokens: int | None
    is_clamped: bool
    is_stream: bool
    form: ReplyForm
    grammar: GrammarSource | None = None
    bad_words: tuple[str, ...] = ()
    pooling: Pooling | None = None
    truncate: int | None = None
    dimensions: int | None = None
    truncate_budget: int | None = None
    most_prompt_tokens: int | None = None
    prompt_logprobs: int | None = None
    adapter_field: str = "adapter_id"
    prompt_field: str = "prompt"
    budget_field: str = "max_tokens"
    truncate_field: str = "truncate"

    @property
    def size(self) -> int:
        """Number of characters of all prompts that are texts, and of tokens of those that are tokens."""
        return sum(prompt.size for prompt in self.prompts)
