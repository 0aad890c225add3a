"""Turns one generation's tokens into text, token by token, as each dialect wants it."""

from collections.abc import Sequence
from dataclasses import dataclass

from manylora.engine.events import Finished, FinishReason, TokenEvent
from manylora.engine.request import StopParams
from manylora.engine.stopping import StopSearch
from manylora.models.text.tokenizer import Tokenizer

LOWEST_LOGPROB = -9999.0


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that might have been drawn. `raw`: its own bytes, which may be part of a character."""

    id: int
    text: str
    logprob: float
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TextToken:
    """One generated token.

    text        as LoRAX-style replies tell it: what it added, or the vocabulary's text of one that is special
    added       what it added to the reply's text: whole characters only
    is_special  a special token, or the token that ended the generation and is no part of the text
    hidden      its text where the reply does not show it, else empty
    is_hidden   whether the reply does not show it
    raw         its own bytes, which may be part of a character; empty unless log-probabilities are told
    """

    id: int
    text: str
    added: str
    logprob: float
    is_special: bool
    hidden: str = ""
    is_hidden: bool = False
    raw: bytes = b""
    alternatives: tuple[Alternative, ...] = ()


class Transcript:
    """One generation as text so far. The token that ends it is no part of the text, nor are special ones by default."""

    __slots__ = ("_ends", "_keeps_special", "_parts", "_stream", "_tokenizer", "finished", "logprob_sum", "tokens")

    def __init__(self, tokenizer: Tokenizer, stop: StopParams, *, keeps_stop: bool = False) -> None:
        """`keeps_stop`: the token that ends the generation is treated as any other."""
        self.tokens: list[TextToken] = []
        self.finished: Finished | None = None
        self.logprob_sum = 0.0
        self._tokenizer = tokenizer
        self._stream = tokenizer.stream(skip_special_tokens=stop.skip_special_tokens, continues=True)
        self._keeps_special = not stop.skip_special_tokens
        own = () if stop.ignore_eos else tokenizer.eos_ids
        self._ends = frozenset() if keeps_stop else frozenset((*stop.stop_token_ids, *own))
        self._parts: list[str] = []

    def push(self, event: TokenEvent, *, is_last: bool) -> TextToken:
        """Take the next token. With the last one, what is held back of an unfinished character is let go."""
        token_id = event.token_id
        is_special = token_id in self._tokenizer.special_ids
        is_end = is_last and token_id in self._ends
        is_hidden = is_end or (is_special and not self._keeps_special)
        added = "" if is_hidden else self._stream.push(token_id)
        if is_last:
            added += self._stream.finish()
        self._parts.append(added)
        own = self._own_text(token_id) if is_hidden or is_special else ""
        logprob = finite(event.logprob)
        self.logprob_sum += logprob
        token = TextToken(
            id=token_id,
            text=own if is_hidden or is_special else added,
            added=added,
            logprob=logprob,
            is_special=is_special or is_end,
            hidden=own if is_hidden else "",
            is_hidden=is_hidden,
            raw=b"" if event.logprob is None else self._tokenizer.token_bytes(token_id),
            alternatives=tuple(self._alternative(other, value) for other, value in event.alternatives),
        )
        self.tokens.append(token)
        return token

    @property
    def text(self) -> str:
        return "".join(self._parts)

    @property
    def mean_logprob(self) -> float:
        return self.logprob_sum / max(1, len(self.tokens))

    def _alternative(self, token_id: int, logprob: float) -> Alternative:
        return Alternative(token_id, self._own_text(token_id), finite(logprob), self._tokenizer.token_bytes(token_id))

    def _own_text(self, token_id: int) -> str:
        """The text of a token by itself; a special one's is as the vocabulary spells it."""
        tokenizer = self._tokenizer
        is_special = token_id in tokenizer.special_ids
        return (tokenizer.piece(token_id) or "") if is_special else tokenizer.token_text(token_id)


def finite(logprob: float | None) -> float:
    """A log-probability that JSON and every client can read."""
    return LOWEST_LOGPROB if logprob is None or not logprob >= LOWEST_LOGPROB else logprob


class StopCut:
    """Cuts a text that arrives in pieces at its stop string, and never lets out what may be the start of one."""

    __slots__ = ("_held", "_keeps_stop", "_search", "_sent", "is_cut")

    def __init__(self, stops: Sequence[str], *, keeps_stop: bool = False) -> None:
        """`keeps_stop`: the text ends with the stop string instead of before it."""
        self._search = StopSearch(tuple(stops)) if stops else None
        self._keeps_stop = keeps_stop
        self._held = ""
        self._sent = 0
        self.is_cut = False

    def push(self, text: str, hidden: str = "") -> str:
        """Take the next text, or that of a token that is not shown, and return what may be sent of all that is held."""
        if self.is_cut:
            return ""
        if self._search is None:
            return text
        self._held += text
        match = self._search.push(text, hidden)
        if match is not None:
            self.is_cut = True
            sent = self._release(match.end if self._keeps_stop else match.start)
            self._held = ""
            return sent
        return self._release(self._search.length if self._keeps_stop else self._search.settled())

    def flush(self) -> str:
        """The generation ended: what is held is text after all."""
        held, self._held = self._held, ""
        return held

    def _release(self, end: int) -> str:
        """Let go of what is held before a place in the text."""
        count = max(0, end - self._sent)
        sent, self._held = self._held[:count], self._held[count:]
        self._sent += len(sent)
        return sent


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
