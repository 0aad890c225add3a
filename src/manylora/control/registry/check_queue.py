"""Queue of adapter checks: a few run at a time, at most one of each tenant, and the queue is bounded."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from manylora.errors import Overloaded, StreamLimitExceeded

MAX_OF_ONE = 16
"""Maximum number of a tenant's checks, running and waiting."""
MAX_OF_ALL = 256
RETRY_S = 5.0


class CheckQueue:
    """Runs `parallel` checks at a time. Checks of one tenant run one after the other.

    An object belongs to one event loop.
    """

    def __init__(self, parallel: int, *, wait_s: float) -> None:
        """wait_s: longest wait of a check in seconds."""
        self._slots = asyncio.Semaphore(parallel)
        self._wait_s = wait_s
        self._asked: Counter[str] = Counter()
        self._own: dict[str, asyncio.Lock] = {}  # one lock for each tenant in `_asked`: its holder is next or running

    @contextmanager
    def asked(self, tenant: str) -> Iterator[None]:
        """Hold a place in the queue.

        Raises `StreamLimitExceeded` where the tenant has `MAX_OF_ONE` checks, `Overloaded` where all have `MAX_OF_ALL`.
        """
        if self._asked[tenant] >= MAX_OF_ONE:
            raise StreamLimitExceeded(
                f"tenant `{tenant}` has {MAX_OF_ONE} adapters waiting to be checked; repeat the request later",
                wait_s=RETRY_S,
            )
        if self._asked.total() >= MAX_OF_ALL:
            raise Overloaded("too many adapters wait to be checked; repeat the request later")
        self._asked[tenant] += 1
        try:
            yield
        finally:
            self._asked[tenant] -= 1
            if not self._asked[tenant]:
                del self._asked[tenant]
                self._own.pop(tenant, None)

    @asynccontextmanager
    async def turn(self, tenant: str) -> AsyncIterator[None]:
        """Wait for a free slot and hold it. Call within `asked`. Raise `Overloaded` after `wait_s`."""
        own = self._own.setdefault(tenant, asyncio.Lock())
        try:
            async with asyncio.timeout(self._wait_s):
                await own.acquire()
                try:
                    await self._slots.acquire()
                except BaseException:
                    own.release()
                    raise
        except TimeoutError as error:
            raise Overloaded(
                f"the adapter waited {self._wait_s:g} s to be checked; repeat the request later"
            ) from error
        try:
            yield
        finally:
            self._slots.release()
            own.release()
