"""The mean times of loads over all replicas, kept as they come: a large fleet sends thousands of beats a second."""

from manylora.cluster.cost import TierRates

USUAL_S = (0.002, 0.02, 1.0)
"""Seconds of a load into the device, the host and the disk, before a replica has measured any."""
BYTES_PER_S = 1e12
"""The measured seconds are those of whole loads, so that bytes add nothing."""
LONGEST_S = 1e6
"""A time from here on is no time of a load."""


class FleetLoadTimes:
    """Sums of what each replica has measured last, in whole nanoseconds: they are exact after any number of beats."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[int, ...]] = {}
        self._sums_ns = [0] * len(USUAL_S)
        self._counts = [0] * len(USUAL_S)

    def put(self, address: str, load_s: tuple[float, float, float]) -> None:
        """Take the mean times of a replica, by tier as `USUAL_S`; a value that is no time of a load is left out."""
        found = tuple(round(1e9 * value) if 0 < value < LONGEST_S else 0 for value in load_s)
        if found != self._of.get(address):
            self.drop(address)
            self._of[address] = found
            self._add(found, 1)

    def drop(self, address: str) -> None:
        """Forget a replica."""
        if (known := self._of.pop(address, None)) is not None:
            self._add(known, -1)

    def rates(self) -> TierRates:
        """Return the means, and the usual times of tiers that no replica has measured."""
        device, host, disk = (
            total / count / 1e9 if count else usual
            for total, count, usual in zip(self._sums_ns, self._counts, USUAL_S, strict=True)
        )
        return TierRates(fixed_s=(device, host, disk), bytes_per_s=(BYTES_PER_S, BYTES_PER_S, BYTES_PER_S))

    def _add(self, times_ns: tuple[int, ...], sign: int) -> None:
        for tier, value in enumerate(times_ns):
            self._sums_ns[tier] += sign * value
            self._counts[tier] += sign * (value > 0)
