"""The pieces of a reply's text: their form, their tokens, and the cut at a stop string."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from manylora.engine.events import Finished
from manylora.engine.stopping import StopSearch


class TokenReport(Enum):
    """The tokens that the pieces of a reply list.

    NONE     no tokens
    IN_TEXT  the tokens that the text shows, each in the piece in which its text begins; the last piece has the rest
    TO_END   those of IN_TEXT, and the token that ended the generation, in the last piece
    EVERY    each token, in the piece that it makes
    """

    NONE = "none"
    IN_TEXT = "in_text"
    TO_END = "to_end"
    EVERY = "every"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyForm:
    """The parts of a reply that a dialect needs.

    cuts_stops    whether the text ends before a stop string; otherwise it keeps all generated text
    keeps_text    whether the output keeps the whole text until the end
    keeps_tokens  whether the output keeps all reported tokens until the end
    """

    cuts_stops: bool
    report: TokenReport
    keeps_text: bool
    keeps_tokens: bool


class Alternative(NamedTuple):
    """An alternative to a drawn token.

    raw  the token's bytes, which may be part of a character
    """

    id: int
    text: str
    logprob: float
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TextToken:
    """One token of a reply, or of its prompt.

    text        the text that it added, or the name of a special token in the vocabulary; as in LoRAX-style replies
    offset      number of characters of the reply before it
    is_special  whether it is a special token, or the token that ended the generation and is no part of the text
    is_hidden   whether the reply does not show it
    logprob     natural log of its probability; None for the first token of a prompt
    is_gained   as in `TokenEvent`
    raw         the token's bytes, which may be part of a character; empty without log-probabilities
    """

    id: int
    text: str
    offset: int
    logprob: float | None
    is_special: bool
    is_hidden: bool = False
    is_gained: bool = False
    raw: bytes = b""
    alternatives: tuple[Alternative, ...] = ()


class Piece(NamedTuple):  # one for every token of every stream: a frozen dataclass takes several times as long to make
    """The next part of one sequence's reply.

    sequence  number of the sequence
    text      text to send; empty while characters or the start of a stop string are held back
    tokens    tokens by the rule of `TokenReport`
    end       the sequence's end, in the last piece alone
    is_cut    whether a stop string has ended the text
    prompt    the prompt's tokens with their scores, in the first piece alone and only if asked for
    """

    sequence: int
    text: str
    tokens: tuple[TextToken, ...] = ()
    end: Finished | None = None
    is_cut: bool = False
    prompt: tuple[TextToken, ...] | None = None


class StopCut:
    """Cuts a text that arrives in pieces at its stop string, and holds back a possible start of one.

    The engine searches the same strings in the same text to end the generation.
    """

    __slots__ = ("_held", "_keeps_stop", "_search", "_sent", "is_cut")

    def __init__(self, stops: Sequence[str], *, keeps_stop: bool = False) -> None:
        """Start without text.

        Args:  stops       at least one stop string
               keeps_stop  whether the text ends with the stop string instead of before it
        """
        self._search = StopSearch(tuple(stops))
        self._keeps_stop = keeps_stop
        self._held = ""
        self._sent = 0
        self.is_cut = False

    def push(self, text: str, hidden: str = "", *, may_end: bool = True) -> str:
        """Take the next text and return the part of all held text that may be sent.

        Args:  hidden   the text of a token that the reply does not show
               may_end  False: a stop string that this text completes does not count
        """
        if self.is_cut:
            return ""
        self._held += text
        match = self._search.push(text, hidden)
        if match is not None and may_end:
            self.is_cut = True
            sent = self._release(match.end if self._keeps_stop else match.start)
            self._held = ""
            return sent
        return self._release(self._search.length if self._keeps_stop else self._search.settled())

    def flush(self) -> str:
        """Return the held text at the end of the generation."""
        held, self._held = self._held, ""
        return held

    def _release(self, end: int) -> str:
        """Return the held text before the offset `end` of the reply."""
        count = max(0, end - self._sent)
        sent, self._held = self._held[:count], self._held[count:]
        self._sent += len(sent)
        return sent
