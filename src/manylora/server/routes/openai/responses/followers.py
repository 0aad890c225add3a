"""Callers that follow the streams of background responses: a bounded number of each tenant, and one reader of each.

The events of a response that another server runs come with its notes at the control plane. One task reads them, for all
callers that follow that response here.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from manylora.errors import EngineFault, InvalidParameter, LimitExceeded, ManyloraError
from manylora.ids import TenantId
from manylora.server.routes.openai.responses.events import EventLog
from manylora.server.storage.responses import KeptResponse

log = logging.getLogger(__name__)

FOLLOW_S = 1.0
"""Seconds between two looks at a stream that another server runs."""
BUSY_WAIT_S = 5.0
"""Seconds after which a caller beyond a bound on background responses asks again."""
Key = tuple[TenantId, str]


@dataclass(slots=True)
class _Followed:
    """The events of a response elsewhere. num_followers: callers that follow it here."""

    events: EventLog = field(default_factory=EventLog)
    num_followers: int = 0
    reading: "asyncio.Task[None] | None" = None


class Followers:
    """The callers that follow background responses at this server. It belongs to one event loop."""

    def __init__(self, shown: Callable[[TenantId, str], Awaitable[KeptResponse]], *, most_of_tenant: int) -> None:
        """Args: shown  returns a response as it is now, see `BackgroundResponses.shown`."""
        self._shown = shown
        self._most = most_of_tenant
        self._places: Counter[TenantId] = Counter()
        self._followed: dict[Key, _Followed] = {}

    @contextmanager
    def place(self, tenant: TenantId) -> Iterator[None]:
        """Count a caller that follows a response. Raises `LimitExceeded`."""
        if self._places[tenant] >= self._most:
            raise LimitExceeded(
                f"the tenant may follow {self._most} streams of responses with `background` at a server at once "
                "(server.tenant_response_followers)",
                parameter="stream",
                wait_s=BUSY_WAIT_S,
            )
        self._places[tenant] += 1
        try:
            yield
        finally:
            self._places[tenant] -= 1
            if not self._places[tenant]:
                del self._places[tenant]

    @asynccontextmanager
    async def log_of(self, tenant: TenantId, response_id: str) -> AsyncIterator[EventLog]:
        """Give the events of a response that does not run here, with those so far in it.

        Raises as `BackgroundResponses.shown`, and `InvalidParameter` for a response without a stream.
        """
        key = (tenant, response_id)
        if (found := self._followed.get(key)) is None:
            found = self._followed[key] = _Followed()
            found.reading = asyncio.create_task(self._read(key, found))
        found.num_followers += 1
        try:
            await found.events.wait(0, None)
            if not found.events.count and found.events.failure is not None:
                raise found.events.failure
            yield found.events
        finally:
            found.num_followers -= 1
            if not found.num_followers and found.reading is not None:
                found.reading.cancel()
                self._drop(key, found)

    async def _read(self, key: Key, followed: _Followed) -> None:
        """Read a response until its end. A later caller reads one that has ended, or has failed to be read, anew."""
        try:
            while not followed.events.is_over:
                found = await self._shown(*key)
                if not found.events:
                    raise InvalidParameter(
                        "only a response with `background` and `stream` has a stream to rejoin", parameter="stream"
                    )
                followed.events.take(found.events)
                if found.is_running:
                    await asyncio.sleep(FOLLOW_S)
                else:
                    followed.events.end()
        except ManyloraError as error:
            followed.events.end(error)
        except Exception:  # no code awaits this task; those who follow get the failure
            log.exception("response.follow_failed id=%s", key[1])
            followed.events.end(EngineFault("internal error"))
        finally:
            self._drop(key, followed)

    def _drop(self, key: Key, followed: _Followed) -> None:
        if self._followed.get(key) is followed:
            del self._followed[key]
