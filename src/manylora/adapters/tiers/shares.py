"""Whose adapters make way: whoever takes more than a fair share of the device evicts its own first.

A flow that touches one cold adapter after the other would otherwise push out what everybody else uses. The share is the
device's bytes divided by the number of flows that have anything there. Adapters of flows over their share are evicted
first, those of flows within it last: a flow over its share waits `PATIENCE_S` before it may evict the latter. Ties go
to the least valuable (`PinnedCache`).
"""

from collections import Counter
from collections.abc import Iterable

from manylora.ids import Digest, Flow


class Shares:
    """Which flow used each version on the device last, and what that comes to."""

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._owners: dict[Digest, tuple[Flow, int]] = {}
        self._bytes: Counter[Flow] = Counter()

    def note(self, digest: Digest, flow: Flow, num_bytes: int) -> None:
        """A version was brought, or used, for a flow."""
        self.forget(digest)
        self._owners[digest] = flow, num_bytes
        self._bytes[flow] += num_bytes

    def forget(self, digest: Digest) -> None:
        """A version is not on the device any more."""
        if digest in self._owners:
            flow, num_bytes = self._owners.pop(digest)
            self._bytes[flow] -= num_bytes
            if self._bytes[flow] == 0:
                del self._bytes[flow]

    def is_within(self, flow: Flow, more_bytes: int) -> bool:
        """Whether a flow would have no more than its share with so many bytes more."""
        return self._bytes[flow] + more_bytes <= self._share(flow)

    def protected_from(self, flow: Flow) -> Iterable[Digest]:
        """What belongs to other flows that have no more than their share."""
        share = self._share(flow)
        return (digest for digest, (owner, _) in self._owners.items() if owner != flow and self._bytes[owner] <= share)

    def _share(self, flow: Flow) -> float:
        return self._total_bytes / len({*self._bytes, flow})
