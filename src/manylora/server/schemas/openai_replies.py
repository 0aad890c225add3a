"""Replies of OpenAI's routes. They are dictionaries with declared keys, as those of LoRAX's routes."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

Reason = Literal["stop", "length", "tool_calls"]


class PromptTokensDetails(TypedDict):
    """Tokens of the prompt by where they came from."""

    cached_tokens: int


class Usage(TypedDict):
    """Tokens of a request: prompt tokens once a prompt, and all generated ones."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CompletionLogprobs(TypedDict):
    """Four lists with one entry a token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    """One choice of a completion, or a piece of one in a stream."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Reason | None


class CompletionReply(TypedDict):
    """A completion, or one chunk of it; a chunk has a usage only where `include_usage` asks for it."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]


class TokenLogprob(TypedDict):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TokenLogprob):
    """A token of the reply with those that were likeliest beside it."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(TypedDict):
    """Log-probabilities of a reply's tokens."""

    content: list[ChatTokenLogprob]
    refusal: None


class ReplyMessage(TypedDict):
    """The assistant's message."""

    role: Literal["assistant"]
    content: str | None
    refusal: None


class ChatChoice(TypedDict):
    """One choice of a whole reply."""

    index: int
    message: ReplyMessage
    logprobs: ChatLogprobs | None
    finish_reason: Reason


class ChatReply(TypedDict):
    """A whole reply to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(TypedDict):
    """A piece of the assistant's message; the last one of a choice is empty."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]


class ChatChunkChoice(TypedDict):
    """A piece of one choice."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Reason | None


class ChatChunk(TypedDict):
    """One chunk of a stream; it has a usage only where `include_usage` asks for it."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]


class ModelEntry(TypedDict):
    """The base model, or an adapter, whose `parent` is the base model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None


class ModelPage(TypedDict):
    """A page of models."""

    object: Literal["list"]
    data: list[ModelEntry]
    has_more: bool
