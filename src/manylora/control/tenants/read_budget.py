"""Token buckets that limit how often a tenant reads over the control plane's routes.

The limits of inference (`server/access/limits.py`) are separate.
"""

import asyncio
import hashlib
from collections import OrderedDict
from typing import NoReturn

from manylora.clock import Clock
from manylora.errors import RequestRateExceeded

MINUTE_S = 60.0
LEAST_AT_ONCE = 20
MAX_KNOWN = 10_000
"""Maximum number of tenants with a bucket, and of credentials refused lately, that are kept in memory."""
REFUSAL_PAUSE_S = 0.2
"""Delay of a refusal: it slows down a client that repeats a refused read at once."""


class ReadBudget:
    """One bucket for each tenant; it holds six seconds' allowance and fills evenly. Belongs to one event loop.

    `wait_s` knows by its text alone a credential that was refused and whose time to wait is not over: its next
    refusal needs no query to the database and no signature.
    """

    def __init__(self, clock: Clock, per_minute: int) -> None:
        self._clock = clock
        self._per_minute = per_minute
        self._at_once = min(per_minute, max(LEAST_AT_ONCE, per_minute // 10))
        self._taken: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tenant → reads above empty, at which time
        self._refused: OrderedDict[bytes, float] = OrderedDict()  # digest of a credential → end of its wait

    def wait_s(self, credential: str) -> float:
        """Return the seconds until a credential that was refused may read again; 0 for any other credential."""
        until_s = self._refused.get(_digest(credential)) if self._refused else None
        return 0.0 if until_s is None else max(0.0, until_s - self._clock.monotonic_s())

    async def take(self, tenant: str, credential: str) -> None:
        """Count one read. Raise `RequestRateExceeded` with the time to wait."""
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
            await self.refuse(wait_s)

    async def refuse(self, wait_s: float) -> NoReturn:
        """Raise `RequestRateExceeded` after a pause."""
        await asyncio.sleep(REFUSAL_PAUSE_S)
        raise RequestRateExceeded(
            f"Rate limit exceeded: {self._per_minute} reads a minute (`control.reads_per_minute`)", wait_s=wait_s
        )


def _digest(credential: str) -> bytes:
    return hashlib.sha256(credential.encode()).digest()
