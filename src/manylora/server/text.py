"""Turns one generation's tokens into text, token by token, as each dialect wants it."""

from collections.abc import Sequence
from dataclasses import dataclass

from manylora.engine.events import Finished, FinishReason, TokenEvent
from manylora.models.tokenizer import Tokenizer

LOWEST_LOGPROB = -9999.0


@dataclass(frozen=True, slots=True)
class Alternative:
    id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TextToken:
    """One generated token: `text` is what it added to the text, or its vocabulary string if it is special."""

    id: int
    text: str
    logprob: float
    is_special: bool
    alternatives: tuple[Alternative, ...] = ()


class Transcript:
    """One generation as text so far. Special tokens, the end-of-sequence token included, are not part of the text."""

    __slots__ = ("_parts", "_stream", "_tokenizer", "finished", "logprob_sum", "tokens")

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokens: list[TextToken] = []
        self.finished: Finished | None = None
        self.logprob_sum = 0.0
        self._tokenizer = tokenizer
        self._stream = tokenizer.stream(continues=True)
        self._parts: list[str] = []

    def push(self, event: TokenEvent, *, is_last: bool) -> TextToken:
        """Take the next token. With the last one, what is held back of an unfinished character is let go."""
        token_id = event.token_id
        is_special = token_id in self._tokenizer.special_ids
        text = self._stream.push(token_id)
        if is_last:
            text += self._stream.finish()
        self._parts.append(text)
        logprob = finite(event.logprob)
        self.logprob_sum += logprob
        token = TextToken(
            id=token_id,
            text=self._tokenizer.piece(token_id) or "" if is_special else text,
            logprob=logprob,
            is_special=is_special,
            alternatives=tuple(
                Alternative(other, self._shown(other), finite(value)) for other, value in event.alternatives
            ),
        )
        self.tokens.append(token)
        return token

    @property
    def text(self) -> str:
        return "".join(self._parts)

    @property
    def mean_logprob(self) -> float:
        return self.logprob_sum / max(1, len(self.tokens))

    def _shown(self, token_id: int) -> str:
        tokenizer = self._tokenizer
        return (
            (tokenizer.piece(token_id) or "") if token_id in tokenizer.special_ids else tokenizer.token_text(token_id)
        )


def finite(logprob: float | None) -> float:
    """A log-probability that JSON and every client can read."""
    return LOWEST_LOGPROB if logprob is None or not logprob >= LOWEST_LOGPROB else logprob


class StopCut:
    """Removes the stop string from a text that arrives in pieces, and never lets out what may be the start of one."""

    __slots__ = ("_held", "_stops", "is_cut")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.is_cut = False

    def push(self, text: str) -> str:
        """Take the next text and return what may be sent of all that is held."""
        if self.is_cut:
            return ""
        if not self._stops:
            return text
        window = self._held + text
        found = [start for start in map(window.find, self._stops) if start >= 0]
        if found:
            self.is_cut, self._held = True, ""
            return window[: min(found)]
        keep = max(_open_suffix(window, stop) for stop in self._stops)
        self._held = window[len(window) - keep :]
        return window[: len(window) - keep]

    def flush(self) -> str:
        """The generation ended: what is held is text after all."""
        held, self._held = self._held, ""
        return held


def _open_suffix(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper start of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[len(text) - size :]):
            return size
    return 0


NATIVE_REASONS = {
    FinishReason.END_OF_SEQUENCE: "eos_token",
    FinishReason.STOP_TOKEN: "eos_token",
    FinishReason.STOP_STRING: "stop_sequence",
    FinishReason.LENGTH: "length",
}


def native_reason(reason: FinishReason) -> str:
    return NATIVE_REASONS[reason]


def openai_reason(reason: FinishReason, cut: StopCut) -> str:
    return "length" if reason is FinishReason.LENGTH and not cut.is_cut else "stop"
