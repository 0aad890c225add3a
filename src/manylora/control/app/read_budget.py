"""How often a tenant may read over the control plane's routes: a bucket for each, beside the limits of inference."""

import hashlib
from collections import OrderedDict

from manylora.clock import Clock
from manylora.errors import RequestRateExceeded

MINUTE_S = 60.0
LEAST_AT_ONCE = 20
MAX_KNOWN = 10_000
"""Tenants whose buckets are kept, and credentials that were refused lately; it bounds what is remembered."""


class ReadBudget:
    """A bucket holds six seconds' allowance and fills evenly. It belongs to one event loop.

    A credential that was refused is refused again by its text alone until the moment it was told to wait for: the
    refusal then costs neither a question to the database nor a signature.
    """

    def __init__(self, clock: Clock, per_minute: int) -> None:
        self._clock = clock
        self._per_minute = per_minute
        self._at_once = min(per_minute, max(LEAST_AT_ONCE, per_minute // 10))
        self._taken: OrderedDict[str, tuple[float, float]] = OrderedDict()  # level above empty, and when, by tenant
        self._refused: OrderedDict[bytes, float] = OrderedDict()  # until when, by credential

    def require_unrefused(self, credential: str) -> None:
        """Raises `RequestRateExceeded` for a credential that was told to wait and does not."""
        until_s = self._refused.get(_digest(credential)) if self._refused else None
        if until_s is not None and (wait_s := until_s - self._clock.monotonic_s()) > 0:
            raise self._refusal(wait_s)

    def take(self, tenant: str, credential: str) -> None:
        """Count one read. Raises `RequestRateExceeded` with the time to wait."""
        now_s = self._clock.monotonic_s()
        level, moment_s = self._taken.pop(tenant, (0.0, now_s))
        level = max(0.0, level - (now_s - moment_s) * self._per_minute / MINUTE_S)
        is_over = level + 1 > self._at_once
        self._taken[tenant] = (level if is_over else level + 1, now_s)
        if len(self._taken) > MAX_KNOWN:
            self._taken.popitem(last=False)
        if is_over:
            wait_s = (level + 1 - self._at_once) * MINUTE_S / self._per_minute
            self._refused[_digest(credential)] = now_s + wait_s
            if len(self._refused) > MAX_KNOWN:
                self._refused.popitem(last=False)
            raise self._refusal(wait_s)

    def _refusal(self, wait_s: float) -> RequestRateExceeded:
        return RequestRateExceeded(
            f"Rate limit exceeded: {self._per_minute} reads a minute (`control.reads_per_minute`)", wait_s=wait_s
        )


def _digest(credential: str) -> bytes:
    return hashlib.sha256(credential.encode()).digest()
