"""The masks of a step, filled on a thread beside its forward pass: they are known as soon as the step is planned."""

import logging
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from manylora.engine.grammars.matcher import GrammarMatcher

if TYPE_CHECKING:
    from manylora.kernels.sampling import TokenMasks  # the scheduler imports without torch

log = logging.getLogger(__name__)

Matched = tuple[GrammarMatcher, tuple[int, ...]]
"""A sequence's matcher and its draft tokens."""
MAX_FILL_S = 20.0
"""A step waits so long for the masks of one sequence. Then its grammar counts as stuck, and its request ends."""
Wait = Callable[[threading.Event], bool]
"""Waits for an event, and returns whether it came in time."""


def wait_for(event: threading.Event) -> bool:
    return event.wait(MAX_FILL_S)


class _Filling:
    """Masks on their way. The thread moves `index`, the matcher under way; both sides look at it under the lock."""

    def __init__(self, matched: Sequence[Matched], masks: "TokenMasks") -> None:
        self.matched = matched
        self.masks = masks
        self.starts = [0]
        for _, draft in matched:
            self.starts.append(self.starts[-1] + 1 + len(draft))
        self.is_over = threading.Event()
        self._lock = threading.Lock()  # over the two fields below
        self._index = 0
        self._is_given_up = False

    def run(self) -> None:
        """Fill the masks one after the other, until they are given up."""
        for index, (matcher, draft) in enumerate(self.matched):
            with self._lock:
                if self._is_given_up:
                    return
                self._index = index
            try:
                matcher.fill(self.masks, self.starts[index], draft)
            except Exception as error:
                log.exception("grammar.mask_failed")
                matcher.give_up(str(error) or type(error).__name__)
                self.masks[self.starts[index] : self.starts[index + 1]] = 0
        self.is_over.set()

    def give_up(self) -> int:
        """Let the thread end behind the matcher under way; return the index of that one, which stays the thread's."""
        with self._lock:
            self._is_given_up = True
            return self._index


class MaskFiller:
    """Fills the masks of matchers and of their draft tokens, one row each, in order.

    The library computes without the interpreter's lock, so that the forward pass goes on meanwhile. Between `begin` and
    `take` the matchers belong to the thread. A matcher that does not return keeps its thread and is not asked again;
    another thread fills the masks behind it.
    Thread: one calls the methods
    """

    def __init__(self, wait: Wait | None = None) -> None:
        """`wait` None: `wait_for`."""
        self._wait = wait
        self._masks: TokenMasks = np.empty((0, 0), dtype=np.uint32)
        self._jobs: SimpleQueue[_Filling | None] | None = None  # of the thread; None: there is none
        self._filling: _Filling | None = None

    def begin(self, matched: Sequence[Matched]) -> None:
        """Begin to fill the masks of the next `take`."""
        self.drop()
        if matched:
            self._filling = self._begun(tuple(matched))

    def take(self, matched: Sequence[Matched]) -> "TokenMasks":
        """Return the masks, which the next call overwrites: those begun, or filled now if none were.

        Args:  matched  as for `begin`
        """
        filling, self._filling = self._filling, None
        return self._ended(filling or self._begun(tuple(matched)))

    def drop(self) -> None:
        """Wait for masks that were begun, and forget them."""
        filling, self._filling = self._filling, None
        if filling is not None:
            self._ended(filling)

    def close(self) -> None:
        """End the thread."""
        self.drop()
        if self._jobs is not None:
            self._jobs.put(None)
            self._jobs = None

    def _begun(self, matched: Sequence[Matched]) -> _Filling:
        num_rows = sum(1 + len(draft) for _, draft in matched)
        words = max(matcher.words for matcher, _ in matched)
        if self._masks.shape[0] < num_rows or self._masks.shape[1] != words:
            self._masks = np.empty((num_rows, words), dtype=np.uint32)
        filling = _Filling(matched, self._masks[:num_rows])
        if self._jobs is None:
            self._jobs = SimpleQueue()
            # A thread that a matcher holds must not keep the process alive.
            threading.Thread(target=_work, args=(self._jobs,), name="manylora-masks", daemon=True).start()
        self._jobs.put(filling)
        return filling

    def _ended(self, filling: _Filling) -> "TokenMasks":
        """Return the masks of a filling; those of a matcher that does not return are empty."""
        if (self._wait or wait_for)(filling.is_over):
            return filling.masks
        index = filling.give_up()
        matcher, draft = filling.matched[index]
        log.error("grammar.mask_stuck rows=%d", 1 + len(draft))
        matcher.give_up("it takes too long to say which tokens may come next")
        if self._jobs is not None:
            self._jobs.put(None)  # for the thread, once it returns
        self._jobs = None
        self._masks = np.empty((0, 0), dtype=np.uint32)  # the thread may write into the other
        masks = filling.masks.copy()
        start, stop = filling.starts[index], filling.starts[index + 1]
        masks[start:stop] = 0
        if rest := filling.matched[index + 1 :]:
            others = self._ended(self._begun(rest))
            masks[stop:] = 0
            masks[stop:, : others.shape[1]] = others
        return masks


def _work(jobs: "SimpleQueue[_Filling | None]") -> None:
    while (filling := jobs.get()) is not None:
        filling.run()
