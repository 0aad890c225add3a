"""The replies of OpenAI's routes, which are dictionaries with declared keys."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

Reason = Literal["stop", "length", "tool_calls", "function_call"]


class PromptTokensDetails(TypedDict):
    """The number of prompt tokens that the prefix cache had."""

    cached_tokens: int


class Usage(TypedDict):
    """The tokens of a request: the tokens of each prompt once, and all generated tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CompletionLogprobs(TypedDict):
    """The log-probabilities of a completion: four lists with one entry for each token.

    The first token of an echoed prompt has none.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    """One choice of a completion, or a piece of one in a stream."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Reason | None


class CompletionReply(TypedDict):
    """A completion or one chunk of it. A chunk has a usage only with `include_usage`."""

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
    """A token of the reply with the likeliest tokens at its position."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(TypedDict):
    """Log-probabilities of a reply's tokens."""

    content: list[ChatTokenLogprob]
    refusal: None


class FunctionCall(TypedDict):
    """The name of a tool, and the JSON of its arguments."""

    name: str
    arguments: str


class ReplyToolCall(TypedDict):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class ReplyMessage(TypedDict):
    """The assistant's message. It has `tool_calls`, or with `functions` a `function_call`, only if it calls one."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[ReplyToolCall]]
    function_call: NotRequired[FunctionCall]


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
    service_tier: NotRequired[Literal["default"]]
    choices: list[ChatChoice]
    usage: Usage


class FunctionPiece(TypedDict):
    """The name of a tool, in the first piece of a call, and the next part of the JSON of its arguments."""

    name: NotRequired[str]
    arguments: str


class ToolCallPiece(TypedDict):
    """A piece of a call; the first one has its id."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionPiece


class ChatDelta(TypedDict):
    """A piece of the assistant's message; the last one of a choice is empty."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCallPiece]]
    function_call: NotRequired[FunctionPiece]


class ChatChunkChoice(TypedDict):
    """A piece of one choice."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Reason | None


class ChatChunk(TypedDict):
    """One chunk of a stream. It has a usage only with `include_usage`."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    service_tier: NotRequired[Literal["default"]]
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]


class EmbeddingEntry(TypedDict):
    """The embedding of one input, as numbers or as base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(TypedDict):
    """Tokens of a request for embeddings."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingReply(TypedDict):
    """The embeddings of a request's inputs, in their order."""

    object: Literal["list"]
    data: list[EmbeddingEntry]
    model: str
    usage: EmbeddingUsage


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
