"""Totals of loads into the tiers: times, bytes, and bytes that were loaded again soon after they had left."""

from bisect import bisect_left
from collections import OrderedDict

from manylora.adapter_ref import SourceName
from manylora.adapter_state import LOAD_BUCKETS_S, LoadTimes
from manylora.ids import Digest

RELOAD_S = 60.0
"""Bytes that return to the device within this time of leaving it count as reloaded."""
MAX_REMEMBERED = 4_096

DISK = "disk"
HOST = "host"
DEVICE = "device"
"""Names of the tiers that loads are timed into."""


class LoadStats:
    """Totals since the start. At most `MAX_REMEMBERED` versions that left the device in `RELOAD_S` are remembered.

    loads           loads into the disk tier
    loaded_bytes    bytes placed on the device; `reloaded_bytes` of them had left it within `RELOAD_S`
    evictions       evictions from the device
    """

    def __init__(self) -> None:
        self.loads = 0
        self.loaded_bytes = 0
        self.reloaded_bytes = 0
        self.evictions = 0
        self._left: OrderedDict[Digest, float] = OrderedDict()  # when each left the device, the oldest first
        self._counts: dict[tuple[SourceName, str], list[int]] = {}
        self._total_s: dict[tuple[SourceName, str], float] = {}

    def note_load(self, source: SourceName, took_s: float) -> None:
        """Count a load from `source` into the disk tier."""
        self.loads += 1
        self.note_load_time(source, DISK, took_s)

    def note_placed(self, source: SourceName, digest: Digest, num_bytes: int, took_s: float, now_s: float) -> None:
        """Count a placement of a version from `source` on the device."""
        self.note_load_time(source, DEVICE, took_s)
        self.loaded_bytes += num_bytes
        left_s = self._left.pop(digest, None)
        if left_s is not None and now_s - left_s < RELOAD_S:
            self.reloaded_bytes += num_bytes

    def note_eviction(self, digest: Digest, now_s: float) -> None:
        """Count an eviction from the device."""
        self.evictions += 1
        self._left[digest] = now_s
        self._left.move_to_end(digest)
        while len(self._left) > MAX_REMEMBERED or now_s - next(iter(self._left.values())) >= RELOAD_S:
            self._left.popitem(last=False)

    def note_load_time(self, source: SourceName, tier: str, took_s: float) -> None:
        """Count the time of one load from `source` into `tier`."""
        counts = self._counts.setdefault((source, tier), [0] * (len(LOAD_BUCKETS_S) + 1))
        counts[bisect_left(LOAD_BUCKETS_S, took_s)] += 1
        self._total_s[source, tier] = self._total_s.get((source, tier), 0.0) + took_s

    def load_times(self) -> tuple[LoadTimes, ...]:
        """Return the histogram of load times of each source and tier that had a load."""
        return tuple(
            LoadTimes(source=key[0].value, tier=key[1], counts=tuple(counts), total_s=self._total_s[key])
            for key, counts in sorted(self._counts.items())
        )
