"""Reads OpenAI-style requests: the common parameters, completions' prompts and chat's messages."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from manylora.config.groups.server import ServerConfig
from manylora.engine.request import SamplingParams
from manylora.errors import InvalidParameter
from manylora.server.generation.adapter_fields import AdapterFields, read_adapter_fields
from manylora.server.generation.order import StopRules
from manylora.server.http.json_fields import Fields, kind_of, wrong_type
from manylora.server.http.known_fields import check_names, not_built
from manylora.server.http.request_fields import CHAT_BODY, COMPLETION_BODY, CONTENT_PART, MESSAGE, STREAM_OPTIONS
from manylora.server.routes.sampling_fields import (
    MAX_ALTERNATIVES,
    filters,
    positive,
    refuse_response_format,
    stop_rules,
    temperature,
)

DEFAULT_COMPLETION_TOKENS = 16
MAX_PROMPTS = 2048
MAX_LOGIT_BIASES = 1024
MAX_TOKEN_DIGITS = 19
PLAIN_MESSAGE = frozenset({"role", "content"})
SEED_BOUNDS = (-(2**63), 2**64 - 1)  # OpenAI's integers have a sign, LoRAX's have none

HARMLESS_VALUES: Mapping[str, tuple[object, ...]] = {
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
}
"""Values of chat's fields that ask for nothing more than this server does; others are refused."""

Prompt = str | tuple[int, ...]
Message = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAIOrder:
    """What a caller of an OpenAI route asked for, checked; the prompt is beside it.

    model      as sent: it is the name in the reply and in "does not exist"
    seed       None: one is drawn for each sequence; else sequence i has seed + i
    best_of    sequences generated for each prompt; the n with the best mean log-probability are returned
    max_tokens None: the rest of the window
    logprobs   None: none; else the number of alternatives beside each token
    truncate   the prompt's last tokens that are kept; None: all; -1: as many as fit beside the budget
    has_bos    whether what leads the model's texts is put before a prompt that is text
    """

    model: str | None
    adapter: AdapterFields
    sampling: SamplingParams
    seed: int | None
    n: int
    best_of: int
    max_tokens: int | None
    is_default_budget: bool
    stop: StopRules
    logprobs: int | None
    is_stream: bool
    include_usage: bool
    truncate: int | None
    echo: bool = False
    has_bos: bool = True

    @property
    def ranked_sampling(self) -> SamplingParams:
        """What the engine is told: ranking needs log-probabilities even where none are shown."""
        if self.best_of == self.n or self.logprobs is not None:
            return self.sampling
        return dataclasses.replace(self.sampling, num_logprobs=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Chat's messages and how they become a prompt; `continues_last`: the last one is continued."""

    messages: tuple[Message, ...]
    add_generation_prompt: bool = True
    continues_last: bool = False


def read_completion(body: Fields, settings: ServerConfig) -> tuple[OpenAIOrder, tuple[Prompt, ...]]:
    """Read the body of POST /v1/completions."""
    check_names(body, COMPLETION_BODY)
    logprobs = _logprobs(body, "logprobs")
    echo = body.boolean("echo")
    if echo and logprobs is not None:
        raise InvalidParameter("`echo` with `logprobs` is not supported by this server yet", parameter="echo")
    order = _common(body, settings, budget_name="max_tokens", logprobs=logprobs, least=0 if echo else 1)
    if order.max_tokens is None:
        order = dataclasses.replace(order, max_tokens=DEFAULT_COMPLETION_TOKENS, is_default_budget=True)
    order = dataclasses.replace(
        order,
        echo=echo,
        best_of=_best_of(body, order, settings.max_n),
        has_bos=body.boolean("add_special_tokens", default=True),
    )
    return order, _prompts(body)


def read_chat(body: Fields, settings: ServerConfig) -> tuple[OpenAIOrder, Conversation]:
    """Read the body of POST /v1/chat/completions."""
    check_names(body, CHAT_BODY)
    for name, values in HARMLESS_VALUES.items():
        if body.get(name) not in (None, *values):
            raise not_built(name)
    body.boolean("parallel_tool_calls")
    alternatives = _logprobs(body, "top_logprobs")
    has_logprobs = body.boolean("logprobs")
    if alternatives and not has_logprobs:
        raise InvalidParameter("`top_logprobs` needs `logprobs` to be true", parameter="top_logprobs")
    name = body.first("max_completion_tokens", "max_tokens")
    if name != "max_tokens":
        positive("max_tokens", body.unsigned("max_tokens"))
    order = _common(body, settings, budget_name=name, logprobs=(alternatives or 0) if has_logprobs else None)
    return order, _conversation(body)


def _common(
    body: Fields, settings: ServerConfig, *, budget_name: str, logprobs: int | None, least: int = 1
) -> OpenAIOrder:
    """`least`: the smallest budget there may be."""
    refuse_response_format(body)
    heat = temperature(body)
    if heat is not None and heat > 2:
        raise InvalidParameter("`temperature` must be <= 2.0", parameter="temperature")
    budget = body.unsigned(budget_name)
    if budget is not None and budget < least:
        raise InvalidParameter(f"`{budget_name}` must be strictly positive", parameter=budget_name)
    n = body.integer("n")
    if n is not None and not 1 <= n <= settings.max_n:
        raise InvalidParameter(f"`n` must be >= 1 and <= {settings.max_n}. Given: {n}", parameter="n")
    sampling = dataclasses.replace(
        filters(body, lowest_top_p=0.0),
        temperature=1.0 if heat is None else heat,
        logit_bias=_logit_bias(body),
        num_logprobs=logprobs,
    )
    return OpenAIOrder(
        model=body.string("model"),
        adapter=read_adapter_fields(body),
        sampling=sampling,
        seed=_seed(body),
        n=n or 1,
        best_of=n or 1,
        max_tokens=budget,
        is_default_budget=False,
        stop=stop_rules(body, settings.max_stop_sequences),
        logprobs=logprobs,
        is_stream=body.boolean("stream"),
        include_usage=_include_usage(body),
        truncate=body.integer("truncate_prompt_tokens"),
    )


def _include_usage(body: Fields) -> bool:
    options = body.child("stream_options")
    if options is None:
        return False
    check_names(options, STREAM_OPTIONS, "stream_options")
    if not body.boolean("stream"):
        raise InvalidParameter("`stream_options` needs `stream` to be true", parameter="stream_options")
    return options.boolean("include_usage")


def _seed(body: Fields) -> int | None:
    seed = body.integer("seed")
    lowest, highest = SEED_BOUNDS
    if seed is not None and not lowest <= seed <= highest:
        raise InvalidParameter(f"`seed` must be >= {lowest} and <= {highest}. Given: {seed}", parameter="seed")
    return seed


def _best_of(body: Fields, order: OpenAIOrder, most: int) -> int:
    best_of = body.integer("best_of")
    if best_of is None:
        return order.n
    if not order.n <= best_of <= most:
        raise InvalidParameter(f"`best_of` must be >= `n` and <= {most}. Given: {best_of}", parameter="best_of")
    if order.is_stream and best_of > order.n:
        raise InvalidParameter("`best_of` > `n` is not supported when streaming", parameter="best_of")
    return best_of


def _logprobs(body: Fields, name: str) -> int | None:
    count = body.integer(name)
    if count is not None and not 0 <= count <= MAX_ALTERNATIVES:
        raise InvalidParameter(f"`{name}` must be >= 0 and <= {MAX_ALTERNATIVES}. Given: {count}", parameter=name)
    return count


def _logit_bias(body: Fields) -> tuple[tuple[int, float], ...]:
    biases = body.child("logit_bias")
    if biases is None:
        return ()
    pairs: list[tuple[int, float]] = []
    for token in biases.names():
        bias = biases.number(token)
        is_token = token.isascii() and token.isdigit() and len(token) <= MAX_TOKEN_DIGITS
        if not is_token or bias is None or not -100 <= bias <= 100:
            raise InvalidParameter(
                "`logit_bias` must map token ids to numbers from -100 to 100", parameter="logit_bias"
            )
        pairs.append((int(token), bias))
    if len(pairs) > MAX_LOGIT_BIASES:
        raise InvalidParameter(
            f"`logit_bias` may have at most {MAX_LOGIT_BIASES} entries. Given: {len(pairs)}", parameter="logit_bias"
        )
    return tuple(pairs)


def _prompts(body: Fields) -> tuple[Prompt, ...]:
    prompt = body.get("prompt")
    expected = "a string, an array of strings, an array of token ids or an array of those"
    if prompt is None:
        raise InvalidParameter("`prompt` is required", parameter="prompt")
    if isinstance(prompt, str):
        found: list[Prompt] = [prompt]
    elif not isinstance(prompt, list):
        raise wrong_type("prompt", expected, prompt)
    elif prompt and all(_is_token(item) for item in prompt):
        found = [tuple(int(token) for token in cast(list[float], prompt))]
    else:
        found = [_prompt(item, expected) for item in prompt]
    if not found or not all(found):
        raise InvalidParameter("`prompt` cannot be empty", parameter="prompt")
    if len(found) > MAX_PROMPTS:
        raise InvalidParameter(f"`prompt` may have at most {MAX_PROMPTS} items", parameter="prompt")
    return tuple(found)


def _prompt(item: object, expected: str) -> Prompt:
    if isinstance(item, str):
        return item
    if isinstance(item, list) and all(_is_token(token) for token in item):
        return tuple(int(token) for token in cast(list[float], item))
    raise InvalidParameter(f"`prompt`: expected {expected}, given an array with {kind_of(item)}", parameter="prompt")


def _is_token(item: object) -> bool:
    """Return whether an item is a whole number, which may be written as `10.0`."""
    return (isinstance(item, int) and not isinstance(item, bool)) or (isinstance(item, float) and item.is_integer())


def _conversation(body: Fields) -> Conversation:
    """An absent `add_generation_prompt` is true unless the last message is continued: both at once make no prompt."""
    continues = body.boolean("continue_final_message")
    opens = body.boolean("add_generation_prompt", default=not continues)
    if continues and opens:
        raise InvalidParameter(
            "`continue_final_message` and `add_generation_prompt` must not both be true",
            parameter="continue_final_message",
        )
    messages = tuple(_messages(body))
    if continues and not messages[-1]["content"].strip():
        raise InvalidParameter(
            "`continue_final_message` needs text in the last message", parameter="continue_final_message"
        )
    return Conversation(messages=messages, add_generation_prompt=opens, continues_last=continues)


def _messages(body: Fields) -> list[Message]:
    messages = body.array("messages")
    if not messages:
        raise InvalidParameter("`messages` must have at least one message", parameter="messages")
    return [_message(message, index) for index, message in enumerate(messages)]


def _message(message: object, index: int) -> Message:
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        raise InvalidParameter(f"`{where}`: expected an object, given {kind_of(message)}", parameter="messages")
    role = message.get("role")
    if role in ("tool", "function") or message.get("tool_calls") or message.get("function_call"):
        raise InvalidParameter(f"`{where}`: tool messages are not supported by this server yet", parameter="messages")
    if role not in ("system", "developer", "user", "assistant"):
        raise InvalidParameter(
            f"`{where}.role` must be one of system, developer, user, assistant", parameter="messages"
        )
    told = {
        "role": "system" if role == "developer" else role,
        "content": _content(message.get("content"), where),
    }
    if message.keys() <= PLAIN_MESSAGE:
        return told
    fields = Fields(message)
    check_names(fields, MESSAGE, where)
    name = fields.string("name")
    return told if name is None else {**told, "name": name}


def _content(content: object, where: str) -> str:
    """The text of a message; parts are joined in order."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise InvalidParameter(
            f"`{where}.content`: expected a string or an array of parts, given {kind_of(content)}", parameter="messages"
        )
    texts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(text, str):
            raise InvalidParameter(
                f"`{where}.content`: this model reads text parts only; given {kind or kind_of(part)!r}",
                parameter="messages",
            )
        check_names(Fields(part), CONTENT_PART, f"{where}.content")
        texts.append(text)
    return "".join(texts)
