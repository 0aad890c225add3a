"""The replies of LoRAX's routes.

A reply is a dictionary with declared keys. A stream makes one for each token, and an instance of a model takes longer.
"""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

Reason = Literal["length", "eos_token", "stop_sequence"]


class AlternativeToken(TypedDict):
    """One of the likeliest tokens at the position of a token."""

    id: int
    text: str
    logprob: float


class GeneratedToken(TypedDict):
    """One generated token. Its `text` is empty while its bytes are a part of a character."""

    id: int
    text: str
    logprob: float
    special: bool
    skipped: bool
    alternative_tokens: NotRequired[list[AlternativeToken]]


class PrefillToken(TypedDict):
    """One token of the prompt."""

    id: int
    text: str
    logprob: float | None


class GeneratedSequence(TypedDict):
    """A generated sequence that is not the likeliest of `best_of`."""

    generated_text: str
    finish_reason: Reason
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[GeneratedToken]


class GenerationDetails(TypedDict):
    """Details of a whole reply."""

    finish_reason: Reason
    prompt_tokens: int
    generated_tokens: int
    skipped_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[GeneratedToken]
    best_of_sequences: NotRequired[list[GeneratedSequence]]


class GenerateReply(TypedDict):
    """A whole reply. It has `details` only on demand."""

    generated_text: str
    details: NotRequired[GenerationDetails]


class StreamDetails(TypedDict):
    """Details in the last event of a stream."""

    finish_reason: Reason
    prompt_tokens: int
    generated_tokens: int
    skipped_tokens: int
    seed: int | None


class StreamUsage(TypedDict):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class GenerateEvent(TypedDict):
    """The JSON of one event of a stream. Only the last event has the keys that are not required."""

    token: GeneratedToken
    generated_text: str | None
    details: StreamDetails | None
    generated_text_omitted: NotRequired[bool]
    usage: NotRequired[StreamUsage]
    timings: NotRequired[dict[str, float | None]]


class TokenizedSpan(TypedDict):
    """A token of a text, and the half-open range of its characters."""

    id: int
    text: str
    start: int
    stop: int


class EmbedReply(TypedDict):
    """The embedding of a text."""

    embeddings: list[float]
