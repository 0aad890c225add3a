"""Whose adapter is checked next: a few at a time, one of each tenant, and a queue with an end."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from manylora.errors import Overloaded, StreamLimitExceeded

MAX_OF_ONE = 16
"""Under way and waiting, of one tenant."""
MAX_OF_ALL = 256
RETRY_S = 5.0


class CheckQueue:
    """Places for `parallel` pieces of work. A tenant's wait for each other first, so that it holds one place at most.

    It belongs to one event loop.
    """

    def __init__(self, parallel: int, *, wait_s: float) -> None:
        """wait_s: after which a piece of work gives up."""
        self._places = asyncio.Semaphore(parallel)
        self._wait_s = wait_s
        self._asked: Counter[str] = Counter()
        self._own: dict[str, asyncio.Lock] = {}  # of the tenants in `_asked`: whose piece of work is next or under way

    @contextmanager
    def asked(self, tenant: str) -> Iterator[None]:
        """Stand in the queue.

        Raises `StreamLimitExceeded` where the tenant has too many in it, `Overloaded` where all together have.
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
        """Wait for a place, and hold it; only within `asked`. Raises `Overloaded` after `wait_s`."""
        own = self._own.setdefault(tenant, asyncio.Lock())
        try:
            async with asyncio.timeout(self._wait_s):
                await own.acquire()
                try:
                    await self._places.acquire()
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
            self._places.release()
            own.release()
