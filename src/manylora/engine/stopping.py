"""The end of a generation: budget, end tokens and stop strings, checked token by token."""

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple, Protocol

from manylora.engine.events import FinishReason
from manylora.engine.request import StopParams


class TextStream(Protocol):
    """Turns one sequence's generated tokens into text."""

    def push(self, token_id: int) -> str:
        """Take the next token and return the text now certain: whole characters only, nothing for hidden tokens."""

    def hidden(self, token_id: int) -> str:
        """Return the vocabulary's text of a token that `push` leaves out, a special one; empty for any other."""


OpenText = Callable[[bool], TextStream]
"""Opens a stream. Argument: True leaves special tokens out of its text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """The end of one generation; `stop_string` is set for STOP_STRING alone."""

    reason: FinishReason
    stop_string: str | None = None


class StopChecker:
    """Decides about one sequence; gets every generated token once, in order, and none after a `Stop`.

    Tokens become text only if there are stop strings: the engine else never decodes.
    """

    __slots__ = ("_ends", "_max_new_tokens", "_min_new_tokens", "_search", "_stop_tokens", "_text")

    def __init__(self, params: StopParams, end_of_sequence: Collection[int], open_text: OpenText) -> None:
        self._max_new_tokens = params.max_new_tokens
        self._min_new_tokens = params.min_new_tokens
        own = end_of_sequence if params.end_token_ids is None else params.end_token_ids
        self._ends = frozenset() if params.ignore_eos else frozenset(own)
        self._stop_tokens = frozenset(params.stop_token_ids)
        self._search = StopSearch(params.stop_strings) if params.stop_strings else None
        self._text = open_text(params.skip_special_tokens) if params.stop_strings else None

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end the generation."""
        return self._ends | self._stop_tokens

    def push(self, token_id: int, num_generated: int) -> Stop | None:
        """Return why the generation ends with this token, or None if it goes on.

        Args:  num_generated  tokens generated so far, this one included
        Length comes before everything else, as in LoRAX, so that clients can distinguish a spent budget.
        """
        if num_generated >= self._max_new_tokens:
            return Stop(reason=FinishReason.LENGTH)
        if token_id in self._ends:
            return Stop(reason=FinishReason.END_OF_SEQUENCE)
        if token_id in self._stop_tokens:
            return Stop(reason=FinishReason.STOP_TOKEN)
        if self._search is None or self._text is None:
            return None
        match = self._search.push(self._text.push(token_id), self._text.hidden(token_id))
        if match is None or num_generated <= self._min_new_tokens:
            return None
        return Stop(reason=FinishReason.STOP_STRING, stop_string=match.string)


class Match(NamedTuple):
    """A stop string in a text: the shown characters `[start, end)`, counted from the text's beginning."""

    string: str
    start: int
    end: int


class StopSearch:
    """Finds the first of several strings to be complete in a text that arrives in pieces.

    It searches two readings of the text. The shown one lacks hidden tokens. The spelled one contains them, and a match
    there counts if it takes one or more of them, each whole: so `<|end|>` ends a generation whose text hides it, and
    `|>` does not.

    It keeps only the part of the text that an open match can reach back to, and searches a piece only where a match can
    end in it: the work for a piece is bounded by its own length and that of the stop strings.
    """

    __slots__ = ("_reach", "_settled", "_spelled", "_strings", "_tail", "length")

    def __init__(self, strings: tuple[str, ...]) -> None:
        assert all(strings), "an empty stop string is in every text; the edge refuses it"
        # Longest first: of two that end at one character the longer is found, which began before the other.
        self._strings = sorted(strings, key=len, reverse=True)
        self._reach = len(self._strings[0]) - 1
        self._tail = ""  # the last shown characters
        self._spelled: _SpelledText | None = None  # while a hidden token is within reach
        self._settled = 0
        self.length = 0  # shown characters so far

    def push(self, piece: str, hidden: str = "") -> Match | None:
        """Return the string whose end comes first in this piece, the longest of those that end there, or None.

        Args:  piece   what a token added to the shown text
               hidden  the text of a token that adds nothing to it
        """
        if hidden and self._spelled is None:
            self._spelled = _SpelledText(self._tail, self.length)
        match = self._search_shown(piece) if piece else None
        if self._spelled is not None:
            other = self._spelled.push(piece or hidden, self._strings, is_hidden=bool(hidden))
            match = min(filter(None, (match, other)), key=_by_end, default=None)
            if not self._spelled.trim(self._reach):
                self._spelled = None
        return match

    def settled(self) -> int:
        """Return the number of shown characters that belong to no open match.

        A match open now was open at the last call or begins behind the characters settled then, so that only those
        behind are searched again.
        """
        since = self.length - self._settled
        open_ones = max(_open_suffix(self._tail, string, since) for string in self._strings)
        self._settled = self.length - open_ones
        if self._spelled is not None:
            self._settled = min(self._settled, self._spelled.settled(self._strings))
        return self._settled

    def _search_shown(self, piece: str) -> Match | None:
        window = self._tail + piece
        known, first = len(self._tail), self.length - len(self._tail)
        match: Match | None = None
        limit = len(window)
        for string in self._strings:
            start = window.find(string, max(0, known - len(string) + 1), limit)
            # A later string must end sooner than those found so far, so the window shrinks to before their end.
            if start >= 0:
                match, limit = Match(string, first + start, first + start + len(string)), start + len(string) - 1
        self.length += len(piece)
        self._tail = window[max(0, len(window) - self._reach) :] if self._reach else ""
        return match


class _SpelledText:
    """The end of a text, with its hidden tokens in their places.

    `_spans` are the hidden parts, as half-open intervals in order. They and `_settled` count spelled characters from
    the first of the tail; `_text` has those from `_base` on. The work for a piece is independent of the parts kept.
    """

    __slots__ = ("_base", "_length", "_settled", "_spans", "_text")

    def __init__(self, tail: str, length: int) -> None:
        """`tail`: the last of `length` shown characters."""
        self._text = tail
        self._base = 0
        self._length = length  # shown characters so far
        self._settled = 0
        self._spans: deque[tuple[int, int]] = deque()

    def push(self, piece: str, strings: list[str], *, is_hidden: bool) -> Match | None:
        """Return the string that ends first in this piece and takes hidden parts, each whole; or None."""
        known = len(self._text)
        self._text += piece
        if is_hidden:
            self._spans.append((self._base + known, self._end))
        else:
            self._length += len(piece)
        found = [match for string in strings if (match := self._search(string, known)) is not None]
        return min(found, key=_by_end, default=None)

    def trim(self, reach: int) -> bool:
        """Drop text that no match can reach any more, hidden parts only whole; return whether a hidden part is left."""
        cut = max(self._base, self._end - reach)
        while self._spans and self._spans[0][0] < cut:
            start, end = self._spans[0]
            if end > cut:
                cut = start
                break
            self._spans.popleft()
        self._text = self._text[cut - self._base :]
        self._base = cut
        return bool(self._spans)

    def settled(self, strings: list[str]) -> int:
        """Return the settled characters, as `StopSearch.settled` does."""
        since = self._end - self._settled
        self._settled = self._end - max(_open_suffix(self._text, string, since) for string in strings)
        return self._shown(self._settled)

    @property
    def _end(self) -> int:
        return self._base + len(self._text)

    def _search(self, string: str, known: int) -> Match | None:
        place = self._text.find(string, max(0, known - len(string) + 1))
        while place >= 0:
            start = self._base + place
            end = start + len(string)
            touched = [(first, last) for first, last in self._spans_behind(start) if first < end]
            if touched and all(start <= first and last <= end for first, last in touched):
                return Match(string, self._shown(start), self._shown(end))
            place = self._text.find(string, place + 1)
        return None

    def _shown(self, place: int) -> int:
        """Return the number of the reply's shown characters before a place."""
        hidden = sum(last - max(first, place) for first, last in self._spans_behind(place))
        return self._length - (self._end - place - hidden)

    def _spans_behind(self, place: int) -> Iterator[tuple[int, int]]:
        """Iterate over the hidden parts that end behind a place, the last one first."""
        return takewhile(lambda span: span[1] > place, reversed(self._spans))


def _by_end(match: Match) -> tuple[int, int]:
    return match.end, -len(match.string)


def _open_suffix(text: str, string: str, most: int) -> int:
    """Return the length of the longest end of `text`, up to `most` characters, that is a proper start of `string`."""
    for size in range(min(len(text), len(string) - 1, most), 0, -1):
        if string.startswith(text[len(text) - size :]):
            return size
    return 0
