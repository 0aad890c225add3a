"""A matcher: the place of one sequence in its grammar, and the tokens that may come next there.

Source: llguidance (github.com/guidance-ai/llguidance), an Earley parser over a lexer of derivatives of regular
expressions, which walks a trie of the vocabulary.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from manylora.engine.grammars.spelling import Spelling
from manylora.errors import EngineFault, ManyloraError
from manylora.models.text.grammar import GrammarSource
from manylora.system.printable import printable

if TYPE_CHECKING:  # a server without the library serves every other request
    from llguidance import LLMatcher

    from manylora.kernels.sampling import TokenMasks  # the scheduler imports without torch

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")
MAX_SHOWN = 300
"""Characters of the library's messages that an error shows."""


_NO_TOKENS = Spelling()


class GrammarMatcher:
    """One sequence's matcher. A preempted sequence keeps it: it holds no computed position.

    A failure of the library ends this sequence alone: its masks are empty from then on.
    Thread: one
    """

    __slots__ = (
        "_barred",
        "_broken",
        "_ends",
        "_library_ends",
        "_library_words",
        "_matcher",
        "_puts_ends",
        "_source",
        "_spelled",
        "words",
    )

    def __init__(
        self,
        matcher: "LLMatcher",
        source: GrammarSource,
        *,
        vocab: int,
        library_ends: Sequence[int],
        ends: Collection[int],
        spelling: Spelling = _NO_TOKENS,
    ) -> None:
        """Take a library's matcher of `vocab` tokens.

        Args:  library_ends  the tokens by which the library ends a text
               ends          the tokens that end this sequence; they may come where the grammar may end, in their place
               spelling      the tokens of its adapter, in terms of the library's
        """
        self._matcher = matcher
        self._broken = ""  # the reason why the library is not asked any more
        self._source = source
        self._library_words = (vocab + 31) // 32
        self._library_ends = tuple(library_ends)
        self._ends = tuple(sorted(ends))
        self._spelled = spelling.spelled
        self._barred = spelling.barred
        self.words = max([self._library_words, *(token // 32 + 1 for token in (*self._ends, *self._spelled))])
        self._puts_ends = self._ends != self._library_ends

    def fill(self, masks: "TokenMasks", row: int, draft: Sequence[int] = ()) -> None:
        """Write the mask of the next tokens into a row of masks, and after it one for each draft token.

        Args:  masks  (rows, words or more); words past the matcher's own are cleared
        A row is empty if no token may come: after an error, and behind a draft token that may not come.
        """
        stop = row + 1 + len(draft)
        masks[row:stop] = 0
        if not self._ask(lambda: self._fill(masks, row, draft), otherwise=False):
            masks[row:stop] = 0
        elif self._puts_ends:
            for each in range(row, stop):
                self._put_ends(masks[each])

    def advance(self, token_id: int) -> None:
        """Take one generated token."""
        self._ask(lambda: self._consume(self._matcher, token_id), otherwise=None)

    @property
    def is_over(self) -> bool:
        """Return whether the grammar is satisfied, and no further token may come."""
        return self._ask(lambda: self._matcher.is_stopped() and not self._matcher.is_error(), otherwise=False)

    def num_valid(self, draft: Sequence[int]) -> int:
        """Return the number of draft tokens, from the first on, that may come one after the other."""
        if not draft:
            return 0
        texts = [self._spelled.get(token, (token,)) for token in draft]
        tokens = [token for text in texts for token in text]
        valid = self._ask(lambda: self._matcher.validate_tokens(tokens), otherwise=0)
        return sum(end <= valid for end in accumulate(map(len, texts)))

    def forced(self, most: int) -> tuple[int, ...]:
        """Return the next tokens that the grammar leaves no choice about, at most `most`."""
        none: list[int] = []
        return tuple(self._ask(lambda: self._matcher.compute_ff_tokens(), otherwise=none)[:most])

    def give_up(self, why: str) -> None:
        """Ask the library nothing more: a thread is still in it, or it has failed."""
        self._broken = self._broken or why

    def no_token_left(self) -> ManyloraError:
        """Return the error of a sequence that no token may follow."""
        if self._broken:
            return EngineFault(f"the grammar of `{self._source.field}` failed: {self._broken}")
        why = one_line(self._matcher.get_error()) if self._matcher.is_error() else ""
        return self._source.refusal(why or "no token may come next that the request's other fields allow")

    def _ask(self, question: Callable[[], Answer], *, otherwise: Answer) -> Answer:
        """Return the library's answer, or another one after a failure."""
        if self._broken:
            return otherwise
        try:
            return question()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the library is no `Exception`
            log.exception("grammar.matcher_failed kind=%s", self._source.kind)
            self.give_up(one_line(str(error)) or type(error).__name__)
            return otherwise

    def _fill(self, masks: "TokenMasks", row: int, draft: Sequence[int]) -> bool:
        """Fill the rows; return False after an error."""
        if self._matcher.is_error():
            return False
        if draft:
            self._fill_ahead(masks, row, draft)
        else:
            self._fill_row(self._matcher, masks[row])
        return not self._matcher.is_error()

    def _fill_ahead(self, masks: "TokenMasks", row: int, draft: Sequence[int]) -> None:
        """Fill the rows of draft tokens from a copy that takes them."""
        ahead = self._matcher.deep_copy()
        for offset, token_id in enumerate((*draft, None)):
            line = masks[row + offset]
            self._fill_row(ahead, line)
            if token_id is None or not _has(line, token_id):
                break
            self._consume(ahead, token_id)
            if ahead.is_stopped():
                break

    def _fill_row(self, matcher: "LLMatcher", line: NDArray[np.uint32]) -> None:
        matcher.unsafe_compute_mask_ptr(line.ctypes.data, 4 * self._library_words)
        for token, text in self._spelled.items():
            # The first token of the text is the longest of the base's, so that its bit settles most questions.
            if _has(line, text[0]) and matcher.validate_tokens(list(text)) == len(text):
                line[token >> 5] |= np.uint32(1 << (token & 31))
        for token in self._barred:
            if token >> 5 < len(line):
                line[token >> 5] &= ~np.uint32(1 << (token & 31))

    def _consume(self, matcher: "LLMatcher", token_id: int) -> None:
        text = self._spelled.get(token_id)
        if text is None:
            matcher.consume_token(token_id)
        else:
            matcher.consume_tokens(list(text))

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
