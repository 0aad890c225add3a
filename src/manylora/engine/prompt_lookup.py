"""Drafts a sequence's next tokens: the tokens that followed an earlier occurrence of its last n-gram.

Source: prompt lookup decoding (A. Saxena, 2023; transformers' `prompt_lookup_num_tokens`), verified as in speculative
decoding (Leviathan et al., arXiv 2211.17192). Changes: the index grows token by token, while the original scans the
whole sequence in each step; a run that reaches the end of the sequence continues into the draft, so that a loop of any
length is drafted whole; the length of a draft depends on how many tokens of the last ones were accepted.
"""

from collections.abc import Sequence

NGRAMS = (3, 2)
"""Lengths of the n-gram, tried in this order. A single token recurs by chance too often to be one."""

MAX_INDEXED = 256
"""Tokens that one draft indexes at most, in a tenth of a millisecond: no step waits for a prompt of a whole window."""

MAX_MISSES = 5
"""The pause grows with each of this many fully rejected drafts in a row, and then no more."""


class DraftLength:
    """The length of a sequence's next draft.

    Draft tokens change no reply, only the rows of a step, and rows cost time. So a draft begins with one token and
    doubles after each fully accepted one; a partly accepted draft sets the length to its accepted part; after a fully
    rejected one the sequence skips 1, 3, 7 ... 2**MAX_MISSES - 1 of its next drafts.
    """

    __slots__ = ("_length", "_misses", "_pause")

    def __init__(self, first: int = 1) -> None:
        self._length = first
        self._misses = 0
        self._pause = 0

    def take(self) -> int:
        """Return the most tokens of the next draft; 0 skips it."""
        if self._pause > 0:
            self._pause -= 1
            return 0
        return self._length

    def note(self, drafted: int, accepted: int) -> None:
        """Adapt to the last draft: of its `drafted` tokens the first `accepted` were drawn."""
        if accepted > 0:
            self._misses = 0
            self._length = max(self._length, 2 * accepted) if accepted == drafted else accepted
            return
        self._length = 1
        self._misses = min(self._misses + 1, MAX_MISSES)
        self._pause = 2**self._misses - 1


class PromptLookup:
    """The n-grams of one sequence, each with its last position, and the length of the next draft.

    A pure function of the calls made: equal histories give equal drafts.
    """

    __slots__ = ("_ends", "_indexed", "_length")

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram → where it last ended, below the newest token
        self._indexed = 0  # n-grams that end below this are in the index
        self._length = DraftLength()

    def propose(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        """Return a draft of the tokens that follow `tokens`, at most `most` of them; may be empty.

        Args:        tokens  the whole sequence, grown by appending since the last call
        Complexity:  O(tokens new since the last call, at most MAX_INDEXED, + tokens returned)
        While more tokens are new than that, the draft is empty.
        """
        if most <= 0:
            return ()
        start = self._find(tokens)
        if start is None:
            return ()
        # At the end of `tokens` the draft reads its own beginning; `tokens[start]` always exists.
        count, period = min(most, self._length.take()), len(tokens) - start
        draft = list(tokens[start : start + count])
        while len(draft) < count:
            draft.append(draft[len(draft) - period])
        return tuple(draft)

    def index(self, tokens: Sequence[int], most: int = MAX_INDEXED) -> None:
        """Index the next `most` n-grams of `tokens`, as `propose` does; call it while a prompt is computed."""
        # An n-gram enters the index once a token follows it, so that the last one does not find itself.
        start = max(self._indexed, min(NGRAMS))
        stop = min(len(tokens), start + most)
        for end in range(start, stop):
            for size in NGRAMS:
                if size <= end:
                    self._ends[tuple(tokens[end - size : end])] = end
        self._indexed = max(self._indexed, stop)

    def note(self, drafted: int, accepted: int) -> None:
        """Adapt the next draft's length: of the last draft's `drafted` tokens the first `accepted` were drawn."""
        self._length.note(drafted, accepted)

    def _find(self, tokens: Sequence[int]) -> int | None:
        """Return the position after the last earlier occurrence of the sequence's last n-gram, or None."""
        self.index(tokens)
        if self._indexed < len(tokens):
            return None
        for size in NGRAMS:
            found = self._ends.get(tuple(tokens[-size:])) if size <= len(tokens) else None
            if found is not None:
                return found
        return None
