"""Requests and questions that wait at an edge for a first engine, in a fleet that may have none."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field, replace

import msgspec

from manylora.clock import Clock
from manylora.errors import ManyloraError
from manylora.server.engine_client.messages import StepFrame

log = logging.getLogger(__name__)

WAKE_AGAIN_S = 1.0
"""Seconds until an engine is asked for anew, while any request waits: the one that came may be gone again."""


@dataclass(frozen=True, slots=True)
class _Queued:
    """since_s: the moment of its entry. again, late: as in `EdgeQueue.keep`. timer: of its lateness."""

    since_s: float
    again: Callable[[float], bool]
    timer: asyncio.TimerHandle | None = field(default=None)


class EdgeQueue:
    """Keeps its members in the order of their entry. All methods belong to one event loop.

    Args:
        wake        asks for an engine, and returns once one runs; an error of `errors/` means that none came
        max_wait_s  seconds after which a member is late
    """

    def __init__(self, wake: Callable[[], Awaitable[object]], max_wait_s: float, clock: Clock) -> None:
        self._wake = wake
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._kept: dict[Hashable, _Queued] = {}
        self._waking: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, key: Hashable, again: Callable[[float], bool], late: Callable[[], None] | None = None) -> None:
        """Keep a member until an engine takes it, and ask for an engine.

        Args:
            again  tries to send it, given the milliseconds that it has waited; false: it waits on
            late   ends it after `max_wait_s` seconds; None: it has the time of its caller
        """
        timer = None
        if late is not None:
            timer = asyncio.get_running_loop().call_later(self._max_wait_s, self._expire, key, late)
        self._kept[key] = _Queued(self._clock.monotonic_s(), again, timer)
        if self._waking is None or self._waking.done():
            self._waking = asyncio.create_task(self._wake_on())

    def leave(self, key: Hashable) -> bool:
        """Let go of a member. Returns false for one that does not wait."""
        kept = self._kept.pop(key, None)
        if kept is not None and kept.timer is not None:
            kept.timer.cancel()
        return kept is not None

    def admit(self) -> None:
        """Try to send each member, the first ones first: an engine takes requests."""
        now_s = self._clock.monotonic_s()
        for key, kept in tuple(self._kept.items()):
            if key in self._kept and kept.again(1e3 * (now_s - kept.since_s)):
                self.leave(key)

    async def close(self) -> None:
        """Forget all members, and ask for no engine any more."""
        for key in tuple(self._kept):
            self.leave(key)
        if self._waking is not None:
            self._waking.cancel()
            await asyncio.gather(self._waking, return_exceptions=True)

    def _expire(self, key: Hashable, late: Callable[[], None]) -> None:
        if self.leave(key):
            late()

    async def _wake_on(self) -> None:
        while self._kept:
            try:
                with contextlib.suppress(ManyloraError):
                    await self._wake()
            except Exception:  # no code awaits this task, and all members wait for it
                log.exception("edge.wake_failed")
            await asyncio.sleep(WAKE_AGAIN_S)


def with_wait(frame: StepFrame, index: int, waited_ms: float) -> StepFrame:
    """Return a frame whose times in the queue count a request's wait for an engine, too."""
    if not frame.details and not frame.finished:
        return frame
    details = dict(frame.details)
    for place, each in enumerate(frame.indexes):
        found = details.get(place)
        if each == index and found is not None and found.queue_ms is not None:
            details[place] = msgspec.structs.replace(found, queue_ms=found.queue_ms + waited_ms)
    finished = [
        (each, end if each != index or end.queue_ms is None else replace(end, queue_ms=end.queue_ms + waited_ms))
        for each, end in frame.finished
    ]
    return msgspec.structs.replace(frame, details=details, finished=finished)
