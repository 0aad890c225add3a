"""Decides, token by token, whether a generation ends, and why."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from manylora.engine.events import FinishReason
from manylora.engine.request import StopParams


class TextStream(Protocol):
    """One sequence's generated tokens as text."""

    def push(self, token_id: int) -> str:
        """Take the next token and return the text now certain: whole characters only, nothing for special tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """The end of one generation; `stop_string` is set for STOP_STRING alone."""

    reason: FinishReason
    stop_string: str | None = None


class StopChecker:
    """Watches one sequence. It is given every generated token once, in order, and no more after a `Stop`.

    Tokens become text only if there are stop strings: the engine else never decodes.
    """

    __slots__ = ("_ends", "_max_new_tokens", "_search", "_stop_tokens", "_text")

    def __init__(
        self, params: StopParams, end_of_sequence: Collection[int], open_text: Callable[[], TextStream]
    ) -> None:
        self._max_new_tokens = params.max_new_tokens
        self._ends = frozenset() if params.ignore_eos else frozenset(end_of_sequence)
        self._stop_tokens = frozenset(params.stop_token_ids)
        self._search = _StopSearch(params.stop_strings) if params.stop_strings else None
        self._text = open_text() if params.stop_strings else None

    def push(self, token_id: int, num_generated: int) -> Stop | None:
        """Return why the generation ends with this token, or None if it goes on.

        Args:  num_generated  tokens generated so far, this one included
        Length comes before everything else, as in LoRAX: clients tell a spent budget from a finished answer by it.
        """
        if num_generated >= self._max_new_tokens:
            return Stop(reason=FinishReason.LENGTH)
        if token_id in self._ends:
            return Stop(reason=FinishReason.END_OF_SEQUENCE)
        if token_id in self._stop_tokens:
            return Stop(reason=FinishReason.STOP_TOKEN)
        if self._search is None or self._text is None:
            return None
        found = self._search.push(self._text.push(token_id))
        return None if found is None else Stop(reason=FinishReason.STOP_STRING, stop_string=found)


class _StopSearch:
    """Finds the first of several strings to be complete in a text that arrives in pieces.

    Only as much of the past is kept as a match that is still open can reach back to, and each piece is searched only
    where a match would end in it: the work for a piece is bounded by its own length and that of the stop strings.
    """

    __slots__ = ("_reach", "_strings", "_tail")

    def __init__(self, strings: tuple[str, ...]) -> None:
        assert all(strings), "an empty stop string is in every text; the edge refuses it"
        # Longest first: of two that end at one character the longer is found, which began before the other.
        self._strings = sorted(strings, key=len, reverse=True)
        self._reach = len(self._strings[0]) - 1
        self._tail = ""

    def push(self, piece: str) -> str | None:
        """Return the string whose end comes first in this piece, the longest of those that end there, or None."""
        if not piece:
            return None
        window = self._tail + piece
        known = len(self._tail)
        found: str | None = None
        limit = len(window)
        for string in self._strings:
            start = window.find(string, max(0, known - len(string) + 1), limit)
            # A later string must end sooner than those found so far, so the window shrinks to before their end.
            if start >= 0:
                found, limit = string, start + len(string) - 1
        self._tail = window[max(0, len(window) - self._reach) :]
        return found
