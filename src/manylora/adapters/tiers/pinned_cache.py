"""The cache that every tier counts its bytes with: a byte budget, pins, and an order of eviction."""

import heapq
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Generic, TypeVar

FIXED_COST_BYTES = 1 << 20
"""Fixed cost of bringing an entry back, in bytes: it favours many small entries a little."""

Key = TypeVar("Key", bound=str)


@dataclass(slots=True)
class _Entry:
    num_bytes: int
    pins: int
    uses: int
    tick: int


class PinnedCache(Generic[Key]):
    """Entries of known size under a byte budget. Pinned entries stay; of the others the least valuable goes first.

    Value = age + uses × (cost to bring back ÷ bytes). The age rises to the value of the entry evicted last, so that
    entries out of use are overtaken.  Source: GreedyDual-Size-Frequency, Cherkasova, HP Labs HPL-98-69.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._entries: dict[Key, _Entry] = {}
        self._queue: list[tuple[float, int, Key]] = []  # unpinned entries; an item with an old tick is void
        self._age = 0.0
        self._ticks = 0

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def num_bytes(self, key: Key) -> int:
        return self._entries[key].num_bytes

    def pins(self, key: Key) -> int:
        """Return the number of pins of an entry; 0 if it is not here."""
        entry = self._entries.get(key)
        return 0 if entry is None else entry.pins

    def is_pinned(self, key: Key) -> bool:
        return self._entries[key].pins > 0

    def uses(self, key: Key) -> int:
        return self._entries[key].uses

    @property
    def num_pinned(self) -> int:
        """Return the number of pinned entries.  Complexity: linear in the number of entries."""
        return sum(entry.pins > 0 for entry in self._entries.values())

    def reserve(self, key: Key, num_bytes: int, evict: Callable[[Key], None], keep: Container[Key] = ()) -> bool:
        """Make room and add an entry, pinned once; False, and nothing is evicted, if pins and `keep` leave too little.

        Entries in `keep` are not evicted. `evict` is called with each evicted key, after its entry is removed.
        Raises `AssertionError` if the entry is here: its bytes would be counted twice.
        """
        if key in self._entries:
            raise AssertionError(f"{key} has its room already")
        if not self.free(self.used_bytes + num_bytes - self.budget_bytes, evict, keep):
            return False
        self._entries[key] = _Entry(num_bytes, 1, 0, 0)
        self.used_bytes += num_bytes
        return True

    def resize(self, budget_bytes: int, evict: Callable[[Key], None], keep: Container[Key] = ()) -> bool:
        """Change the budget; False, and nothing changes, if pinned entries and those in `keep` do not fit in it."""
        if not self.free(self.used_bytes - budget_bytes, evict, keep):
            return False
        self.budget_bytes = budget_bytes
        return True

    def grow(self, key: Key, num_bytes: int, evict: Callable[[Key], None]) -> bool:
        """Add bytes to an entry; False, and nothing changes, if pinned entries leave too little room."""
        if not self.free(self.used_bytes + num_bytes - self.budget_bytes, evict, {key}):
            return False
        self._entries[key].num_bytes += num_bytes
        self.used_bytes += num_bytes
        return True

    def free(self, num_bytes: int, evict: Callable[[Key], None], keep: Container[Key] = ()) -> bool:
        """Evict the least valuable entries until `num_bytes` are free; False, and nothing is evicted, if pins and
        `keep` leave fewer.
        """
        victims = self._victims(num_bytes, keep)
        if victims is None:
            return False
        for victim in victims:
            self.remove(victim)
            evict(victim)
        return True

    def pin(self, key: Key) -> None:
        entry = self._entries[key]
        entry.pins += 1
        entry.uses += 1
        entry.tick = 0

    def unpin(self, key: Key, *, was_used: bool = True) -> None:
        """Give back a pin; `was_used` False takes back the use that it counted as.

        Raises `AssertionError` if the entry has no pin: another one's pin would be given back.
        """
        entry = self._entries[key]
        if entry.pins <= 0:
            raise AssertionError(f"{key} was unpinned more often than pinned")
        entry.pins -= 1
        entry.uses -= not was_used
        if entry.pins == 0:
            self._enqueue(key, entry)

    def remove(self, key: Key) -> None:
        """Remove an entry, pinned or not, and free its bytes."""
        self.used_bytes -= self._entries.pop(key).num_bytes

    def _enqueue(self, key: Key, entry: _Entry) -> None:
        self._ticks += 1
        entry.tick = self._ticks
        worth = max(1, entry.uses) * (1 + FIXED_COST_BYTES / max(1, entry.num_bytes))
        heapq.heappush(self._queue, (self._age + worth, entry.tick, key))
        if len(self._queue) > 2 * len(self._entries) + 64:
            self._queue = [item for item in self._queue if self._is_current(item)]
            heapq.heapify(self._queue)

    def _is_current(self, item: tuple[float, int, Key]) -> bool:
        entry = self._entries.get(item[2])
        return entry is not None and entry.tick == item[1]

    def _victims(self, needed_bytes: int, keep: Container[Key]) -> list[Key] | None:
        victims: list[tuple[float, int, Key]] = []
        kept: list[tuple[float, int, Key]] = []
        while needed_bytes > 0 and self._queue:
            item = heapq.heappop(self._queue)
            if not self._is_current(item):
                continue
            if item[2] in keep:
                kept.append(item)
                continue
            victims.append(item)
            needed_bytes -= self._entries[item[2]].num_bytes
        is_enough = needed_bytes <= 0
        if is_enough and victims:
            self._age = victims[-1][0]
        for item in kept if is_enough else kept + victims:
            heapq.heappush(self._queue, item)
        return [item[2] for item in victims] if is_enough else None
