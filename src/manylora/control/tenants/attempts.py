"""Counts of attempts in a window of time, for limits on sign-ups, sign-ins and one-time codes."""

import ipaddress
from collections import OrderedDict

from manylora.clock import Clock

MAX_SUBJECTS = 10_000
"""Limit of the subjects in memory; the one that was counted longest ago makes room."""


class Attempts:
    """Counts attempts of each subject, such as an address, over the last `window_s` seconds."""

    def __init__(self, clock: Clock, *, most: int, window_s: float) -> None:
        self._clock = clock
        self._most = most
        self._window_s = window_s
        self._seen: OrderedDict[str, list[float]] = OrderedDict()  # subject → moments within the window

    def wait_s(self, subject: str, most: int | None = None) -> float:
        """Return the seconds until the subject has room for another attempt; 0: it has room.

        most  a smaller limit than that of the object; None: that of the object
        """
        allowed, recent = self._most if most is None else most, self._recent(subject)
        if len(recent) < allowed:
            return 0.0
        return recent[-allowed] + self._window_s - self._clock.monotonic_s()

    def count(self, subject: str) -> None:
        """Count an attempt, also beyond the limit."""
        recent = self._recent(subject)
        self._seen[subject] = [*recent[-self._most + 1 :], self._clock.monotonic_s()]
        self._seen.move_to_end(subject)
        while len(self._seen) > MAX_SUBJECTS:
            self._seen.popitem(last=False)

    def forgive(self, subject: str) -> None:
        """Take back the last attempt of a subject: it succeeded."""
        if moments := self._seen.get(subject):
            moments.pop()

    def _recent(self, subject: str) -> list[float]:
        begun_s = self._clock.monotonic_s() - self._window_s
        return [moment for moment in self._seen.get(subject, []) if moment > begun_s]


def counted_address(address: str) -> str:
    """Return the address that counts as one caller: the /64 network of an IPv6 address, which has one holder."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))
