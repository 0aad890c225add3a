"""Responses that run without a waiting caller: queued at the control plane, run here, and seen at every edge.

The server that runs a response notes every few seconds that it still does. One that is killed notes nothing more, and
the response counts as failed then. Every change names the bytes that it replaces, so that a response that was cancelled
at another server is not completed here. With each note it keeps the events of a stream so far, which another server
shows from there.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from manylora.clock import Clock
from manylora.config.groups.server import ServerConfig
from manylora.errors import (
    EngineFault,
    InvalidParameter,
    LimitExceeded,
    ManyloraError,
    NameTaken,
    Overloaded,
    QueueTimeout,
    ResourceNotFound,
)
from manylora.ids import TenantId
from manylora.server.http.context import RequestState
from manylora.server.routes.openai.responses.events import EventLog
from manylora.server.routes.openai.responses.followers import BUSY_WAIT_S, Followers
from manylora.server.storage.responses import KeptResponse, TenantResponses

log = logging.getLogger(__name__)

Json = dict[str, Any]  # JSON values of several types
BEAT_S = 5.0
"""Seconds between two notes of the server that runs a response, and looks for its cancellation."""
LOST_MS = 60_000
"""Milliseconds without a note after which a response counts as lost with its server."""
LONGEST_QUEUE_S = 3600.0
"""Seconds for which a response is tried again that a limit or the full server refuses."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""Seconds between two of those attempts."""
STOP_S = 5.0
"""Seconds for which a server that ends waits for the control plane; then the responses count as lost."""
REFUSED_UNCOMPUTED = (Overloaded, QueueTimeout)
"""Refusals of the engine before a request's first step."""
_INTERNAL = EngineFault("internal error")
_Key = tuple[TenantId, str]


class BackgroundWork(Protocol):
    """A response that runs without a waiting caller.

    is_begun  whether the engine has taken the request in the last attempt
    growth    bytes by which the kept response may grow until its end
    log       the events of its stream; None: it has none
    """

    is_begun: bool
    growth: int
    log: EventLog | None

    @property
    def arrival(self) -> RequestState:
        """Return its request; `has_left` once its caller has cancelled or deleted it, and so pays what was computed."""

    async def run(self) -> KeptResponse:
        """Run the response and return it at its end. It raises the failure of the request."""

    async def go_on(self) -> None:
        """Add the response to its conversation. A second call adds nothing."""


@dataclass(slots=True)
class _UnderWay:
    work: BackgroundWork
    task: "asyncio.Task[None] | None" = field(default=None)

    def leave(self) -> None:
        """End the run as of a caller that leaves."""
        self.work.arrival.has_left = True
        if self.task is not None:
            self.task.cancel()


class BackgroundResponses:
    """The responses that this server runs without a waiting caller. It belongs to one event loop."""

    def __init__(self, kept: TenantResponses, settings: ServerConfig, clock: Clock) -> None:
        self._kept = kept
        self._settings = settings
        self._clock = clock
        self._held: dict[_Key, _UnderWay] = {}
        self.followers = Followers(self.shown, most_of_tenant=settings.tenant_response_followers)

    async def begin(self, tenant: TenantId, queued: KeptResponse, work: BackgroundWork) -> None:
        """Keep a queued response, which is at the control plane at the return, and run it.

        Raises `LimitExceeded`, `Overloaded`, `ControlUnavailable`, `StorageUnavailable`, `StorageLimitExceeded`.
        """
        self._require_place(tenant)
        key = (tenant, queued.id)
        held = self._held[key] = _UnderWay(work)
        try:
            beginning = _with_events(msgspec.structs.replace(queued, beat_ms=self._now_ms()), work.log)
            await self._kept.put(tenant, beginning, growth=work.growth)
        except BaseException:
            del self._held[key]
            raise
        held.task = asyncio.create_task(self._run(key, work))
        held.task.add_done_callback(lambda _: self._held.pop(key, None))

    def _require_place(self, tenant: TenantId) -> None:
        of_tenant, of_all = self._settings.tenant_background_responses, self._settings.background_responses
        if sum(key[0] == tenant for key in self._held) >= of_tenant:
            raise LimitExceeded(
                f"the tenant may have {of_tenant} responses with `background` under way at a server "
                "(server.tenant_background_responses)",
                parameter="background",
                wait_s=BUSY_WAIT_S,
            )
        if len(self._held) >= of_all:
            raise Overloaded(
                f"the server has {of_all} responses with `background` under way (server.background_responses)"
            )

    async def cancel(self, tenant: TenantId, response_id: str) -> KeptResponse:
        """Cancel a response at whichever server it runs; one that has ended stays as it is.

        Raises as `TenantResponses.get`, and `InvalidParameter` for one that has not run in the background.
        """
        if not status_of(await self._kept.get(tenant, response_id))[1]:
            raise InvalidParameter("only a response with `background` can be cancelled", parameter="response_id")
        changed = await self._kept.replace(tenant, response_id, lambda found: self._ended(found, "cancelled"))
        if status_of(changed)[0] == "cancelled":
            self._leave((tenant, response_id))
        return changed

    async def delete(self, tenant: TenantId, response_id: str) -> None:
        """Delete a response, and end its run; another server ends it at its next note. Raises as `get`."""
        await self._kept.delete(tenant, response_id)
        self._leave((tenant, response_id))

    def _leave(self, key: _Key) -> None:
        if (held := self._held.get(key)) is not None:
            held.leave()

    async def shown(self, tenant: TenantId, response_id: str) -> KeptResponse:
        """Return a response; one that is lost with its server has failed. Raises as `TenantResponses.get`."""
        found = await self._kept.get(tenant, response_id)
        if not self._is_lost(found):
            return found
        lost = "the server that ran the response has ended"

        def failed(now: KeptResponse) -> KeptResponse:
            return self._ended(now, "failed", lost) if self._is_lost(now) else now

        return await self._kept.replace(tenant, response_id, failed)

    @asynccontextmanager
    async def log_of(self, tenant: TenantId, response_id: str) -> AsyncIterator[EventLog]:
        """Give the events of a response: of a run here as they come, of another server's with its notes.

        Raises as `shown`, and `InvalidParameter` for a response without a stream.
        """
        held = self._held.get((tenant, response_id))
        if held is not None and held.work.log is not None:
            yield held.work.log
            return
        async with self.followers.log_of(tenant, response_id) as events:
            yield events

    async def stop(self) -> None:
        """End all runs; their responses have failed."""
        for task in (tasks := [held.task for held in self._held.values() if held.task is not None]):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_S)

    async def _run(self, key: _Key, work: BackgroundWork) -> None:
        """Run a response, keep its end, and let its conversation go on; one that was cancelled meanwhile does not."""
        beating = asyncio.create_task(self._beat(key, work))
        try:
            await self._change(key, lambda found: _with(found, status="in_progress"))
            done = await self._tried(work)
            beating.cancel()  # a note after the end would take it for a cancellation
            kept = await self._change(key, lambda _: done)
            if kept is not None and kept.reply == done.reply:
                _show(work.log, kept)
                await self._gone_on(key, work)
        except asyncio.CancelledError:
            await self._fail(key, work, "the server has ended the response")
        except Exception as error:  # no code awaits this task; the response has its failure
            if not isinstance(error, ManyloraError):
                log.exception("response.background_failed id=%s", key[1])
            await self._fail(key, work, error.message if isinstance(error, ManyloraError) else _INTERNAL.message)
        finally:
            beating.cancel()
            if work.log is not None:
                work.log.end()

    async def _tried(self, work: BackgroundWork) -> KeptResponse:
        """Run a response; run it again while a limit or the full server refuses it, which has cost nothing."""
        wait_s, end_s = FIRST_WAIT_S, self._clock.monotonic_s() + LONGEST_QUEUE_S
        while True:
            work.is_begun = False
            try:
                return await work.run()
            except ManyloraError as error:
                is_refused = not work.is_begun or isinstance(error, REFUSED_UNCOMPUTED)
                if not is_refused or error.retry_after_s is None or self._clock.monotonic_s() >= end_s:
                    raise
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _gone_on(self, key: _Key, work: BackgroundWork) -> None:
        """Let the conversation go on. The response shows no conversation if that fails for good."""
        wait_s, end_s = FIRST_WAIT_S, self._clock.monotonic_s() + LONGEST_QUEUE_S
        while True:
            try:
                await work.go_on()
                return
            except ManyloraError as error:
                if not _passes(error) or self._clock.monotonic_s() >= end_s:
                    log.warning("response.not_in_conversation id=%s error=%s", key[1], error.message)
                    break
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        with contextlib.suppress(ManyloraError):
            await self._kept.replace(*key, lambda found: _with(found, conversation=None))

    async def _fail(self, key: _Key, work: BackgroundWork, message: str) -> None:
        try:
            kept = await self._change(key, lambda found: self._ended(_with_events(found, work.log), "failed", message))
            if kept is not None:
                _show(work.log, kept)
        except ManyloraError as error:
            log.error("response.end_not_kept id=%s error=%s", key[1], error.message)

    async def _beat(self, key: _Key, work: BackgroundWork) -> None:
        """Note that the response still runs, and end its run once it was cancelled or deleted elsewhere."""
        while True:
            await asyncio.sleep(BEAT_S)
            try:
                found = await self._change(key, lambda now: self._noted(now, work))
            except Exception:  # the next note may succeed; without notes the response counts as lost
                log.exception("response.note_failed id=%s", key[1])
                continue
            if found is None or not found.is_running:
                self._leave(key)
                return

    async def _change(self, key: _Key, change: Callable[[KeptResponse], KeptResponse]) -> KeptResponse | None:
        """Change a response that has not ended; None: it is deleted. A control plane that is away is asked again.

        Raises every error that does not pass with time, as `StorageLimitExceeded`.
        """
        wait_s = FIRST_WAIT_S
        while True:
            try:
                return await self._kept.replace(*key, lambda found: change(found) if found.is_running else found)
            except ResourceNotFound:
                return None
            except ManyloraError as error:
                if not _passes(error):
                    raise
                log.warning("response.not_kept id=%s error=%s", key[1], error.message)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _noted(self, found: KeptResponse, work: BackgroundWork) -> KeptResponse:
        return _with_events(msgspec.structs.replace(found, beat_ms=self._now_ms()), work.log)

    def _ended(self, found: KeptResponse, status: str, message: str = "") -> KeptResponse:
        """Return a response at its end without a text; one that has ended already stays as it is."""
        if not found.is_running:
            return found
        error = {"code": "server_error", "message": message} if message else None
        ended = _with(found, status=status, error=error)
        if not found.events or status != "failed":
            return ended
        last = [("response.failed", {"response": ended.reply})]
        return msgspec.structs.replace(ended, events=EventLog(found.events).packed(last))

    def _is_lost(self, found: KeptResponse) -> bool:
        return found.is_running and self._now_ms() - found.beat_ms > LOST_MS

    def _now_ms(self) -> int:
        return int(1000 * self._clock.wall_s())


def status_of(response: KeptResponse) -> tuple[str, bool]:
    """Return the status of a response, and whether it runs, or has run, in the background."""
    reply = msgspec.json.decode(response.reply)
    return str(reply.get("status", "")), bool(reply.get("background"))


def _passes(error: ManyloraError) -> bool:
    """Return whether a repetition may succeed: of what another server has changed meanwhile, too."""
    return error.retry_after_s is not None or isinstance(error, NameTaken)


def _with_events(response: KeptResponse, log: EventLog | None) -> KeptResponse:
    return response if log is None else msgspec.structs.replace(response, events=log.packed())


def _show(log: EventLog | None, ended: KeptResponse) -> None:
    """Let those who follow a response here see its end as it is kept; one that was cancelled elsewhere has none."""
    if log is not None and EventLog(ended.events).ending is not None:
        log.take(ended.events)
        log.end()


def _with(response: KeptResponse, **fields: object) -> KeptResponse:
    """Return a response with changed fields of its reply."""
    reply = {**msgspec.json.decode(response.reply), **fields}
    return msgspec.structs.replace(response, reply=msgspec.Raw(msgspec.json.encode(reply)))
