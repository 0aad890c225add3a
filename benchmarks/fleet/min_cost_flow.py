"""Placement of adapters on replicas with slots as a minimum-cost flow, by successive shortest paths.

Each adapter sends its copies to distinct replicas, each replica takes as many as it has slots. The graph is kept in
the replicas alone: a path may move a copy from one replica to the next, which frees its slot.
Source: Ahuja, Magnanti and Orlin, "Network Flows", 1993, section 9.7.
"""

import numpy as np
from numpy.typing import NDArray


class Assignment:
    """Copies added one by one, each along a shortest path, so that the cost is least at any time.

    Args: costs (adapters, replicas), infinite where a copy may not go; slots (replicas,)
    """

    def __init__(self, costs: NDArray[np.float64], slots: NDArray[np.int64]) -> None:
        self.costs, self.free = costs, slots.astype(np.int64).copy()
        self.is_placed = np.zeros(costs.shape, np.bool_)

    def add(self, adapter: int) -> bool:
        """Place one more copy of an adapter; False if no path leads to a free slot."""
        reach = np.where(self.is_placed[adapter], np.inf, self.costs[adapter])
        nearest = int(np.argmin(reach))
        if self.free[nearest] > 0 and np.isfinite(reach[nearest]):
            # No path is shorter: a move to a free slot that saves cost would be one already.
            self.free[nearest] -= 1
            self.is_placed[adapter, nearest] = True
            return True
        return self._add_by_moves(adapter, reach)

    def _add_by_moves(self, adapter: int, reach: NDArray[np.float64]) -> bool:
        moves = self._moves()
        before = np.full(len(reach), -1)
        for _ in range(len(reach)):
            through = reach[:, None] + moves
            best = np.argmin(through, axis=0)
            shorter = through[best, np.arange(len(reach))]
            is_shorter = shorter < reach - 1e-9
            if not is_shorter.any():
                break
            before[is_shorter] = best[is_shorter]
            reach = np.where(is_shorter, shorter, reach)
        open_reach = np.where(self.free > 0, reach, np.inf)
        end = int(np.argmin(open_reach))
        if not np.isfinite(open_reach[end]):
            return False
        self.free[end] -= 1
        while before[end] >= 0:
            start = int(before[end])
            self._move(start, end)
            end = start
        self.is_placed[adapter, end] = True
        return True

    def _moves(self) -> NDArray[np.float64]:
        """Return the least cost of a move of any copy from one replica to another, (replicas, replicas)."""
        count = self.costs.shape[1]
        moves = np.full((count, count), np.inf)
        may_go = np.where(self.is_placed, np.inf, self.costs)
        for start in range(count):
            held = np.flatnonzero(self.is_placed[:, start])
            if len(held):
                moves[start] = (may_go[held] - self.costs[held, start][:, None]).min(axis=0)
        return moves

    def _move(self, start: int, end: int) -> None:
        held = np.flatnonzero(self.is_placed[:, start] & ~self.is_placed[:, end])
        chosen = held[np.argmin(self.costs[held, end] - self.costs[held, start])]
        self.is_placed[chosen, start] = False
        self.is_placed[chosen, end] = True
