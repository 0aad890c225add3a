"""The event loop: the next event in time, ties in the order in which they were set."""

import heapq
from collections.abc import Callable

Act = Callable[[float], None]


class Events:
    """Acts by the time at which they happen."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._queue: list[tuple[float, int, Act]] = []
        self._number = 0

    def at(self, time_s: float, act: Act) -> None:
        """Set an act for a time that has not passed."""
        self._number += 1
        heapq.heappush(self._queue, (time_s, self._number, act))

    def run(self, until_s: float) -> None:
        """Let everything happen until a time, that time included."""
        queue = self._queue
        while queue and queue[0][0] <= until_s:
            self.now_s, _, act = heapq.heappop(queue)
            act(self.now_s)
        self.now_s = max(self.now_s, until_s)
