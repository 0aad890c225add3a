"""Fair shares of the device's memory: flows over their share evict their own adapters first.

Without shares, a flow that touches one cold adapter after the other would evict the adapters of all others. A share is
the device's bytes divided by the number of flows that have adapters there. Adapters of flows over their share are
evicted first, those of flows within it last: a flow over its share waits `PATIENCE_S` before it may evict the latter.
Ties go to the least valuable (`PinnedCache`).
"""

from collections import Counter
from collections.abc import Iterable

from manylora.ids import Digest, Flow


class Shares:
    """The flow that used each version on the device last, and the bytes of each flow."""

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._owners: dict[Digest, tuple[Flow, int]] = {}
        self._bytes: Counter[Flow] = Counter()

    def note(self, digest: Digest, flow: Flow, num_bytes: int) -> None:
        """Count a version for the flow that it was brought for, or that has used it."""
        self.forget(digest)
        self._owners[digest] = flow, num_bytes
        self._bytes[flow] += num_bytes

    def forget(self, digest: Digest) -> None:
        """Count a version, which has left the device, for no flow."""
        if digest in self._owners:
            flow, num_bytes = self._owners.pop(digest)
            self._bytes[flow] -= num_bytes
            if self._bytes[flow] == 0:
                del self._bytes[flow]

    def is_within(self, flow: Flow, more_bytes: int) -> bool:
        """Return whether a flow stays within its share with `more_bytes` more."""
        return self._bytes[flow] + more_bytes <= self._share(flow)

    def protected_from(self, flow: Flow) -> Iterable[Digest]:
        """Return the versions of other flows that are within their share."""
        share = self._share(flow)
        return (digest for digest, (owner, _) in self._owners.items() if owner != flow and self._bytes[owner] <= share)

    def _share(self, flow: Flow) -> float:
        return self._total_bytes / len({*self._bytes, flow})
