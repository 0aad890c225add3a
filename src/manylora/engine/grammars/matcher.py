"""A matcher: the place of one sequence in its grammar, and the tokens that may come next there.

Source: llguidance (github.com/guidance-ai/llguidance), an Earley parser over a lexer of derivatives of regular
expressions, which walks a trie of the vocabulary.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from manylora.errors import InvalidParameter
from manylora.models.text.grammar import GrammarSource
from manylora.system.printable import printable

if TYPE_CHECKING:  # a server without the library serves every other request
    from llguidance import LLMatcher

    from manylora.kernels.sampling import TokenMasks  # the scheduler imports without torch

MAX_SHOWN = 300
"""Characters of the library's messages that an error shows."""


class GrammarMatcher:
    """One sequence's matcher. A preempted sequence keeps it: it holds no computed position.

    Thread: one
    """

    __slots__ = ("_ends", "_library_ends", "_library_words", "_matcher", "_puts_ends", "_source", "words")

    def __init__(
        self,
        matcher: "LLMatcher",
        source: GrammarSource,
        *,
        vocab: int,
        library_ends: Sequence[int],
        ends: Collection[int],
    ) -> None:
        """Take a library's matcher of `vocab` tokens.

        Args:  library_ends  the tokens by which the library ends a text
               ends          the tokens that end this sequence; they may come where the grammar may end, in their place
        """
        self._matcher = matcher
        self._source = source
        self._library_words = (vocab + 31) // 32
        self._library_ends = tuple(library_ends)
        self._ends = tuple(sorted(ends))
        self.words = max([self._library_words, *(end // 32 + 1 for end in self._ends)])
        self._puts_ends = self._ends != self._library_ends

    def fill(self, masks: "TokenMasks", row: int, draft: Sequence[int] = ()) -> None:
        """Write the mask of the next tokens into a row of masks, and after it one for each draft token.

        Args:  masks  (rows, words or more); words past the matcher's own are cleared
        A row is empty if no token may come: after an error, and behind a draft token that may not come.
        """
        stop = row + 1 + len(draft)
        masks[row:stop] = 0
        if self._matcher.is_error():
            return
        if draft:
            self._fill_ahead(masks, row, draft)
        else:
            line = masks[row]
            self._matcher.unsafe_compute_mask_ptr(line.ctypes.data, 4 * self._library_words)
        if self._matcher.is_error():
            masks[row:stop] = 0
        elif self._puts_ends:
            for each in range(row, stop):
                self._put_ends(masks[each])

    def advance(self, token_id: int) -> None:
        """Take one generated token."""
        self._matcher.consume_token(token_id)

    @property
    def is_over(self) -> bool:
        """Return whether the grammar is satisfied, and no further token may come."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def num_valid(self, draft: Sequence[int]) -> int:
        """Return the number of draft tokens, from the first on, that may come one after the other."""
        return self._matcher.validate_tokens(list(draft)) if draft else 0

    def forced(self, most: int) -> tuple[int, ...]:
        """Return the next tokens that the grammar leaves no choice about, at most `most`."""
        return tuple(self._matcher.compute_ff_tokens()[:most])

    def no_token_left(self) -> InvalidParameter:
        """Return the error of a sequence that no token may follow."""
        why = one_line(self._matcher.get_error()) if self._matcher.is_error() else ""
        return self._source.refusal(why or "no token may come next that the request's other fields allow")

    def _fill_ahead(self, masks: "TokenMasks", row: int, draft: Sequence[int]) -> None:
        """Fill the rows of draft tokens from a copy that takes them."""
        ahead = self._matcher.deep_copy()
        for offset, token_id in enumerate((*draft, None)):
            line = masks[row + offset]
            ahead.unsafe_compute_mask_ptr(line.ctypes.data, 4 * self._library_words)
            if token_id is None or not _has(line, token_id):
                break
            ahead.consume_token(token_id)
            if ahead.is_stopped():
                break

    def _put_ends(self, line: NDArray[np.uint32]) -> None:
        may_end = any(_has(line, end) for end in self._library_ends)
        for end in self._library_ends:
            line[end >> 5] &= ~np.uint32(1 << (end & 31))
        if may_end:
            for end in self._ends:
                line[end >> 5] |= np.uint32(1 << (end & 31))


def one_line(message: str) -> str:
    """Return a message of the library in one line, without the marks below its quotations and its own state."""
    words = message.partition("<state>")[0].replace("<non-verbose/>", "").split()
    return printable(" ".join(word for word in words if word.strip("^|")))[:MAX_SHOWN]


def _has(line: NDArray[np.uint32], token_id: int) -> bool:
    return bool(line[token_id >> 5] >> np.uint32(token_id & 31) & np.uint32(1)) if token_id >> 5 < len(line) else False
