"""The masks of a step, filled on a thread beside its forward pass: they are known as soon as the step is planned."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from manylora.engine.grammars.matcher import GrammarMatcher

if TYPE_CHECKING:
    from manylora.kernels.sampling import TokenMasks  # the scheduler imports without torch

Matched = tuple[GrammarMatcher, tuple[int, ...]]
"""A sequence's matcher and its draft tokens."""


class MaskFiller:
    """Fills the masks of matchers and of their draft tokens, one row each, in order.

    The library computes without the interpreter's lock, so that the forward pass goes on meanwhile. Between `begin` and
    `take` the matchers belong to the thread.
    Thread: one calls the methods
    """

    def __init__(self) -> None:
        self._masks: TokenMasks = np.empty((0, 0), dtype=np.uint32)
        self._threads: ThreadPoolExecutor | None = None
        self._filling: Future[TokenMasks] | None = None

    def begin(self, matched: Sequence[Matched]) -> None:
        """Begin to fill the masks of the next `take`."""
        self.drop()
        if not matched:
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, thread_name_prefix="manylora-masks")
        self._filling = self._threads.submit(self._fill, tuple(matched))

    def take(self, matched: Sequence[Matched]) -> "TokenMasks":
        """Return the masks, which the next call overwrites: those begun, or filled now if none were.

        Args:  matched  as for `begin`
        """
        filling, self._filling = self._filling, None
        return self._fill(matched) if filling is None else filling.result()

    def drop(self) -> None:
        """Wait for masks that were begun, and forget them."""
        filling, self._filling = self._filling, None
        if filling is not None:
            filling.exception()

    def close(self) -> None:
        """End the thread."""
        self.drop()
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None

    def _fill(self, matched: Sequence[Matched]) -> "TokenMasks":
        num_rows = sum(1 + len(draft) for _, draft in matched)
        words = max(matcher.words for matcher, _ in matched)
        if self._masks.shape[0] < num_rows or self._masks.shape[1] != words:
            self._masks = np.empty((num_rows, words), dtype=np.uint32)
        masks, start = self._masks[:num_rows], 0
        for matcher, draft in matched:
            matcher.fill(masks, start, draft)
            start += 1 + len(draft)
        return masks
