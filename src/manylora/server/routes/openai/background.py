"""Responses that run without a waiting caller: queued at the control plane, run here, and seen at every edge.

The server that runs a response notes every few seconds that it still does. One that is killed notes nothing more, and
the response counts as failed then. Every change names the bytes that it replaces, so that a response that was cancelled
at another server is not completed here.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from manylora.clock import Clock
from manylora.errors import EngineFault, InvalidParameter, ManyloraError, ResourceNotFound
from manylora.ids import TenantId
from manylora.server.storage.responses import KeptResponse, TenantResponses

log = logging.getLogger(__name__)

Json = dict[str, Any]  # JSON values of several types
Run = Callable[[], Awaitable[KeptResponse]]
"""Runs a response and returns it at its end. It raises the failure of the request."""

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
RUNNING = ("queued", "in_progress")
_Key = tuple[TenantId, str]


class BackgroundResponses:
    """The responses that this server runs without a waiting caller. It belongs to one event loop."""

    def __init__(self, kept: TenantResponses, clock: Clock) -> None:
        self._kept = kept
        self._clock = clock
        self._tasks: dict[_Key, asyncio.Task[None]] = {}

    async def begin(self, tenant: TenantId, queued: KeptResponse, run: Run) -> None:
        """Keep a queued response, which is at the control plane at the return, and run it.

        Raises `ControlUnavailable`, `StorageUnavailable`.
        """
        await self._kept.put(tenant, msgspec.structs.replace(queued, beat_ms=self._now_ms()))
        key = (tenant, queued.id)
        task = self._tasks[key] = asyncio.create_task(self._run(key, run))
        task.add_done_callback(lambda _: self._tasks.pop(key, None))

    async def cancel(self, tenant: TenantId, response_id: str) -> KeptResponse:
        """Cancel a response at whichever server it runs; one that has ended stays as it is.

        Raises as `TenantResponses.get`, and `InvalidParameter` for one that has not run in the background.
        """
        if not status_of(await self._kept.get(tenant, response_id))[1]:
            raise InvalidParameter("only a response with `background` can be cancelled", parameter="response_id")
        changed = await self._kept.replace(tenant, response_id, lambda found: self._ended(found, "cancelled"))
        if (task := self._tasks.get((tenant, response_id))) is not None:
            task.cancel()
        return changed

    async def shown(self, tenant: TenantId, response_id: str) -> KeptResponse:
        """Return a response; one that is lost with its server has failed. Raises as `TenantResponses.get`."""
        found = await self._kept.get(tenant, response_id)
        if not self._is_lost(found):
            return found
        lost = "the server that ran the response has ended"

        def failed(now: KeptResponse) -> KeptResponse:
            return self._ended(now, "failed", lost) if self._is_lost(now) else now

        return await self._kept.replace(tenant, response_id, failed)

    async def stop(self) -> None:
        """End all runs; their responses have failed."""
        for task in (tasks := list(self._tasks.values())):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_S)

    async def _run(self, key: _Key, run: Run) -> None:
        beating = asyncio.create_task(self._beat(key, asyncio.current_task()))
        try:
            await self._change(key, lambda found: _with(found, status="in_progress"))
            done = await self._tried(run)
            await self._change(key, lambda _: done)
        except asyncio.CancelledError:
            await self._change(key, lambda found: self._ended(found, "failed", "the server has ended the response"))
        except Exception as error:  # no code awaits this task; the response has its failure
            if not isinstance(error, ManyloraError):
                log.exception("response.background_failed id=%s", key[1])
            told = error.message if isinstance(error, ManyloraError) else EngineFault("internal error").message
            await self._change(key, lambda found: self._ended(found, "failed", told))
        finally:
            beating.cancel()

    async def _tried(self, run: Run) -> KeptResponse:
        """Run a response; run it again while a limit or the full server refuses it."""
        wait_s, end_s = FIRST_WAIT_S, self._clock.monotonic_s() + LONGEST_QUEUE_S
        while True:
            try:
                return await run()
            except ManyloraError as error:
                if error.retry_after_s is None or self._clock.monotonic_s() >= end_s:
                    raise
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _beat(self, key: _Key, running: "asyncio.Task[None] | None") -> None:
        """Note that the response still runs, and end its run once it was cancelled or deleted elsewhere."""
        while True:
            await asyncio.sleep(BEAT_S)
            found = await self._change(
                key, lambda now: msgspec.structs.replace(now, beat_ms=self._now_ms()) if _runs(now) else now
            )
            if running is not None and (found is None or not _runs(found)):
                running.cancel()
                return

    async def _change(self, key: _Key, change: Callable[[KeptResponse], KeptResponse]) -> KeptResponse | None:
        """Change a response that has not ended; None: it is deleted. A control plane that is away is asked again."""
        wait_s = FIRST_WAIT_S
        while True:
            try:
                return await self._kept.replace(*key, lambda found: change(found) if _runs(found) else found)
            except ResourceNotFound:
                return None
            except ManyloraError as error:
                log.warning("response.not_kept id=%s error=%s", key[1], error.message)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _ended(self, found: KeptResponse, status: str, message: str = "") -> KeptResponse:
        """Return a response at its end without a text; one that has ended already stays as it is."""
        if not _runs(found):
            return found
        error = {"code": "server_error", "message": message} if message else None
        return _with(found, status=status, error=error)

    def _is_lost(self, found: KeptResponse) -> bool:
        return _runs(found) and self._now_ms() - found.beat_ms > LOST_MS

    def _now_ms(self) -> int:
        return int(1000 * self._clock.wall_s())


def status_of(response: KeptResponse) -> tuple[str, bool]:
    """Return the status of a response, and whether it runs, or has run, in the background."""
    reply = msgspec.json.decode(response.reply)
    return str(reply.get("status", "")), bool(reply.get("background"))


def _runs(response: KeptResponse) -> bool:
    return response.beat_ms > 0 and status_of(response)[0] in RUNNING


def _with(response: KeptResponse, **fields: object) -> KeptResponse:
    """Return a response with changed fields of its reply."""
    reply = {**msgspec.json.decode(response.reply), **fields}
    return msgspec.structs.replace(response, reply=msgspec.Raw(msgspec.json.encode(reply)))
