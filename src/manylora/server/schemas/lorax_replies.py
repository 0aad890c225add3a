"""Replies of LoRAX's routes.

A reply is a dictionary with declared keys: a stream makes one a token, and a model's instance takes longer to make.
"""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

Reason = Literal["length", "eos_token", "stop_sequence"]


class AlternativeToken(TypedDict):
    """A token that was as likely, or nearly so."""

    id: int
    text: str
    logprob: float


class GeneratedToken(TypedDict):
    """One generated token; `text` is empty while its bytes are part of a character."""

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
    """One of several sequences that was not the likeliest."""

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
    """A whole reply; `details` only where they were asked for."""

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
    """The JSON of one event of a stream; the keys that are not required are those of the last one."""

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
