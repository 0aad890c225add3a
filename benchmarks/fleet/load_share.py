"""A baseline after Dynamo's description: copies by each adapter's share of the load, placed by minimum-cost flow.

A re-implementation from its published behaviour and constants (NVIDIA Dynamo 1.2 to 1.4, "LoRA Adapters"), not its
code: every 3 s, an average (α 0.3) of the arrivals in 90 s; copies in proportion to the share of all slots; fewer only
after 3 ticks; costs of α·rank + γ for a new place − β for a kept one, over the 16 first of the rendezvous order, and
over all where these overflow. Adapters out of use, and those beyond the slots, stay where they were or go to their
rendezvous home. Of an adapter's replicas, those that hold it come first, the least busy of them.
"""

from collections import Counter, deque

import numpy as np
from numpy.typing import NDArray

from benchmarks.fleet.min_cost_flow import Assignment
from benchmarks.fleet.policy import Policy
from benchmarks.fleet.replica import Call
from manylora.cluster.homes import key_of, keys_of, scores

TICK_S, WINDOW_S = 3.0, 90.0
SMOOTHING = 0.3
PREFERENCE, NEW_PLACE, KEPT_PLACE = 1.0, 1000.0, 250.0
CANDIDATES = 16
COOLDOWN_TICKS = 3


class LoadShare(Policy):
    """Load-share placement with `slots` adapters on each replica."""

    slots = 64
    period_s = TICK_S

    def prepare(self) -> None:
        self._arrived: Counter[str] = Counter()
        self._window: deque[Counter[str]] = deque()
        self._sums: Counter[str] = Counter()
        self._loads: dict[str, float] = {}
        self._table: dict[str, list[int]] = {}
        self._fewer_since: dict[str, int] = {}
        self._ticks = 0

    def choose(self, call: Call) -> int:
        self._arrived[call.adapter] += 1
        places = [number for number in self._table.get(call.adapter, ()) if self.replicas[number].is_alive]
        if not places:
            return self._home(call.adapter)
        holders = [number for number in places if call.adapter in self.replicas[number].bank]
        return self.least(holders or places)

    def tick(self, now: float) -> None:
        self._ticks += 1
        self._window.append(self._arrived)
        self._sums.update(self._arrived)
        self._arrived = Counter()
        if len(self._window) > WINDOW_S / TICK_S:
            self._sums.subtract(self._window.popleft())
        self._smooth()
        self._place(self._copies())

    def lost(self, number: int) -> None:
        super().lost(number)
        for adapter, places in list(self._table.items()):
            if number in places:
                self._table[adapter] = [other for other in places if other != number]

    def seed(self, requests: int, rate: float) -> None:
        """Begin with a full window, as drawn from the shares, and with the tiers that its table leads to."""
        for _ in range(int(WINDOW_S / TICK_S)):
            drawn = self.rng.poisson(self.adapters.shares * rate * TICK_S)
            found = Counter({self.names[adapter]: int(drawn[adapter]) for adapter in np.flatnonzero(drawn).tolist()})
            self._window.append(found)
            self._sums.update(found)
        self._loads = {adapter: float(count) for adapter, count in self._sums.items()}
        self._place(self._copies())
        homes = self.homes()
        self.seed_at(requests, [self._table.get(name) or homes[place] for place, name in enumerate(self.names)])

    def _home(self, adapter: str) -> int:
        keys = keys_of([str(self.replicas[number].name) for number in self.open])
        return self.open[int(np.argmax(scores(key_of(adapter), keys)))]

    def _smooth(self) -> None:
        for adapter in set(self._loads) | set(self._sums):
            before = self._loads.get(adapter, 0.0)
            now = SMOOTHING * self._sums[adapter] + (1 - SMOOTHING) * before
            if now < 0.5:  # loads are whole numbers there
                self._loads.pop(adapter, None)
            else:
                self._loads[adapter] = now
        self._sums = +self._sums

    def _copies(self) -> dict[str, int]:
        """Return the copies of each active adapter by largest remainders, at least one each while slots last."""
        total = self.slots * len(self.open)
        ordered = sorted(self._loads, key=lambda adapter: (-self._loads[adapter], adapter))[:total]
        loads = np.array([self._loads[adapter] for adapter in ordered])
        if not len(loads):
            return {}
        raw = np.minimum(loads / loads.sum() * total, len(self.open))
        copies = np.maximum(1, np.floor(raw)).astype(np.int64)
        spare = total - int(copies.sum())
        for place in np.argsort(-(raw - np.floor(raw)), kind="stable")[: max(0, spare)].tolist():
            copies[place] += copies[place] < len(self.open)
        for place in range(len(copies))[: max(0, -spare)]:
            copies[place] = max(1, copies[place] - 1)
        return {adapter: self._held_back(adapter, int(count)) for adapter, count in zip(ordered, copies, strict=True)}

    def _held_back(self, adapter: str, wanted: int) -> int:
        """Return the copies after the pause of some ticks before any is given back."""
        now = len(self._table.get(adapter, ()))
        if wanted >= now:
            self._fewer_since.pop(adapter, None)
            return wanted
        since = self._fewer_since.setdefault(adapter, self._ticks)
        return wanted if self._ticks - since >= COOLDOWN_TICKS else min(now, len(self.open))

    def _place(self, copies: dict[str, int]) -> None:
        """Place the adapters whose number of copies changed; all others stay, and hold their slots."""
        for adapter in self._table.keys() - copies.keys():
            self._table[adapter] = self._table[adapter][:1]
        used: Counter[int] = Counter()
        changed = []
        for adapter, count in copies.items():
            places = self._table.get(adapter, [])
            if len(places) == count:
                used.update(places)
            else:
                changed.append(adapter)
        slots = np.array([max(0, self.slots - used[number]) for number in self.open])
        is_last = self._solve(changed, copies, slots, CANDIDATES)
        if not is_last:
            self._solve(changed, copies, slots, len(self.open))

    def _solve(self, changed: list[str], copies: dict[str, int], slots: NDArray[np.int64], candidates: int) -> bool:
        """Place the changed adapters; False if copies overflow that more candidates might place."""
        if not changed:
            return True
        keys = keys_of([str(self.replicas[number].name) for number in self.open])
        ranks = np.argsort(np.argsort(-scores(keys_of(changed)[:, None], keys), axis=1), axis=1)
        costs: NDArray[np.float64] = (PREFERENCE * ranks + NEW_PLACE).astype(np.float64)
        for row, adapter in enumerate(changed):
            kept = [self.open.index(number) for number in self._table.get(adapter, ())]
            costs[row, kept] -= NEW_PLACE + KEPT_PLACE
            far = ranks[row] >= max(candidates, copies[adapter])
            far[kept] = False
            costs[row, far] = np.inf
        solved = Assignment(costs, slots)
        overflow = sum(not solved.add(row) for row, adapter in enumerate(changed) for _ in range(copies[adapter]))
        if overflow and candidates < len(self.open) and solved.free.sum():
            return False
        for row, adapter in enumerate(changed):
            places = [self.open[place] for place in np.flatnonzero(solved.is_placed[row]).tolist()]
            if places:
                self._table[adapter] = places
        return True
