"""Handlers of SIGTERM and SIGINT: the first signal starts an orderly end, the second a fast one."""

import asyncio
import atexit
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from manylora.clock import Clock
from manylora.errors import StartupError

HASTE_WAIT_S = 2.0
LOOK_S = 0.2
SIGNALS = (signal.SIGTERM, signal.SIGINT)

Result = TypeVar("Result")


def _end_at_once_on(number: signal.Signals, *, code: int) -> None:
    """Exit at a further signal with `code`.

    The interpreter restores default handlers as it ends, but not those of ignored signals; `atexit` ignores them.
    """
    signal.signal(number, lambda *_: os._exit(code))
    atexit.register(signal.signal, number, signal.SIG_IGN)


class StopSignals:
    """Context that counts signals: the first sets `first`, the second `second`, later ones have no effect.

    If a signal has come, the process ends soon after the context; a further signal then ends it at once, with the same
    exit code.
    """

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._loop.add_signal_handler(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in SIGNALS:
            self._loop.remove_signal_handler(number)
            if self.first.is_set():
                _end_at_once_on(number, code=0 if kind is None else 1)

    def _note(self) -> None:
        if self.first.is_set():
            self.second.set()
        self.first.set()

    async def first_or(self, other: asyncio.Event) -> None:
        """Wait for the first signal, or for another event."""
        waiting = [asyncio.ensure_future(event.wait()) for event in (self.first, other)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()

    async def interrupting(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Await a part of the start and return its result. Raise `StartupError` if the first signal comes before."""
        doing, stopped = asyncio.ensure_future(work), asyncio.ensure_future(self.first.wait())
        try:
            await asyncio.wait((doing, stopped), return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                return doing.result()
            doing.cancel()
            await asyncio.wait((doing,))
            raise StartupError("stopped before the engine was ready")
        finally:
            stopped.cancel()
            doing.cancel()

    async def hastening(
        self, work: Coroutine[Any, Any, None], hasten: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Await a part of the end. After the second signal call `hasten` and wait at most `HASTE_WAIT_S` seconds."""
        doing, hurried = asyncio.ensure_future(work), asyncio.ensure_future(self.second.wait())
        try:
            await asyncio.wait((doing, hurried), return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                if hasten is not None:
                    await hasten()
                await asyncio.wait((doing,), timeout=HASTE_WAIT_S)
            if doing.done():
                doing.result()
        finally:
            hurried.cancel()
            doing.cancel()


def wait_for_stop(clock: Clock) -> None:
    """Wait for SIGTERM or SIGINT. Later signals have no effect, so that the caller ends in order."""
    come: list[int] = []
    for number in SIGNALS:
        signal.signal(number, lambda number, _: come.append(number))
    while not come:
        clock.sleep_s(LOOK_S)
