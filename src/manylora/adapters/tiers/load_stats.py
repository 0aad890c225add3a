"""What loading adapters cost so far: how long, how many bytes, and how many of them for the second time."""

from bisect import bisect_left
from collections import OrderedDict

from manylora.adapter_ref import SourceName
from manylora.adapter_state import LOAD_BUCKETS_S, LoadTimes
from manylora.ids import Digest

RELOAD_S = 60.0
MAX_REMEMBERED = 4_096

DISK = "disk"
DEVICE = "device"


class LoadStats:
    """Totals since the start. Of what left the device it remembers the last minute, and `MAX_REMEMBERED` at most.

    loads           brought to the disk tier
    loaded_bytes    brought to the device; `reloaded_bytes` of them had left it within `RELOAD_S`
    evictions       from the device
    """

    def __init__(self) -> None:
        self.loads = 0
        self.loaded_bytes = 0
        self.reloaded_bytes = 0
        self.evictions = 0
        self._left: OrderedDict[Digest, float] = OrderedDict()  # when each left the device, in that order
        self._counts: dict[tuple[SourceName, str], list[int]] = {}
        self._total_s: dict[tuple[SourceName, str], float] = {}

    def note_load(self, source: SourceName, took_s: float) -> None:
        """An adapter from `source` is packed and on disk."""
        self.loads += 1
        self._count(source, DISK, took_s)

    def note_read(self, source: SourceName, digest: Digest, num_bytes: int, took_s: float, now_s: float) -> None:
        """An adapter from `source` is on the device."""
        self._count(source, DEVICE, took_s)
        self.loaded_bytes += num_bytes
        left_s = self._left.pop(digest, None)
        if left_s is not None and now_s - left_s < RELOAD_S:
            self.reloaded_bytes += num_bytes

    def note_eviction(self, digest: Digest, now_s: float) -> None:
        """An adapter has left the device."""
        self.evictions += 1
        self._left[digest] = now_s
        self._left.move_to_end(digest)
        while len(self._left) > MAX_REMEMBERED or now_s - next(iter(self._left.values())) >= RELOAD_S:
            self._left.popitem(last=False)

    def load_times(self) -> tuple[LoadTimes, ...]:
        return tuple(
            LoadTimes(source=key[0].value, tier=key[1], counts=tuple(counts), total_s=self._total_s[key])
            for key, counts in sorted(self._counts.items())
        )

    def _count(self, source: SourceName, tier: str, took_s: float) -> None:
        counts = self._counts.setdefault((source, tier), [0] * (len(LOAD_BUCKETS_S) + 1))
        counts[bisect_left(LOAD_BUCKETS_S, took_s)] += 1
        self._total_s[source, tier] = self._total_s.get((source, tier), 0.0) + took_s
