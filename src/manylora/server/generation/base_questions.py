"""Questions about one adapter to the engines of several bases, any of which may be down or hang.

An engine with an open question sends its numbers about once a second. One that sends nothing for longer is silent: it
hangs, or it is in a long step. A silent engine keeps no other from being asked, and an answer that depends on it is
given up after a while with the name of its base.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from manylora.adapter_ref import AdapterRef
from manylora.clock import Clock
from manylora.errors import AdapterIncompatible, AdapterUnsupported, ManyloraError, QueueTimeout, Unavailable
from manylora.http.callers import Caller
from manylora.server.engine_client.client import ANSWER_WAIT_S
from manylora.server.generation.models import ModelHandle

SILENCE_S = 2.0
"""Seconds without a frame after which the next base is asked as well, and a base that was known before counts."""
LOOK_S = 0.1
"""Seconds between two looks at the engines that have not answered."""
GIVE_UP_S = ANSWER_WAIT_S
"""Seconds without a frame after which an answer is given up that depends on that engine."""
Refusal = (AdapterIncompatible, AdapterUnsupported)
"""The failures of one base alone: the adapter may fit another one."""
NoAnswer = (Unavailable, QueueTimeout)
"""The failures to answer: the adapter may fit the base, or not."""
Answer = TypeVar("Answer")


@dataclass(slots=True)
class _Silence:
    """An engine's number of frames, and the moment since which it has not changed while a question was open."""

    frames: int
    since_s: float
    is_long: bool = False


class BaseQuestions:
    """Asks the engines of several bases. It belongs to one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: Counter[str] = Counter()  # questions by the name of the base
        self._silences: dict[str, _Silence] = {}

    async def refusal(
        self, base: ModelHandle, ref: AdapterRef, caller: Caller, patience_s: float
    ) -> ManyloraError | None:
        """Return the reason why an adapter does not fit a base; None: it fits.

        Raises every other failure. `Unavailable` and `QueueTimeout` have the base's name; an engine that is silent for
        `patience_s` seconds is unavailable, too.
        """
        return await self._answered(base, lambda: _refusal(base, ref, caller), patience_s)

    async def refusals(
        self, bases: Iterable[ModelHandle], ref: AdapterRef, caller: Caller, patience_s: float
    ) -> dict[ModelHandle, ManyloraError | None]:
        """Return `refusal` for several bases at once, with the failure to answer of each that does not."""
        bases = tuple(bases)
        asked = (self.refusal(base, ref, caller, patience_s) for base in bases)
        found = await asyncio.gather(*asked, return_exceptions=True)
        refusals: dict[ModelHandle, ManyloraError | None] = {}
        for base, answer in zip(bases, found, strict=True):
            if isinstance(answer, BaseException) and not isinstance(answer, (*Refusal, *NoAnswer)):
                raise answer
            refusals[base] = answer
        return refusals

    async def declared(self, bases: Sequence[ModelHandle], ref: AdapterRef, caller: Caller, patience_s: float) -> str:
        """Return the base that the config of a remote adapter declares, from the report of the first ingest it passes.

        The bases are asked in their order, the next one as soon as those before have refused or are silent.
        Empty: no ingest passes it, or it declares none. Raises a failure to answer if that is all there is.
        """
        waiting = list(bases)
        asked: dict[asyncio.Task[str | None], ModelHandle] = {}
        down: ManyloraError | None = None
        try:
            while waiting or asked:
                if waiting and all(self._silent_s(base) >= SILENCE_S for base in asked.values()):
                    base = waiting.pop(0)
                    asked[asyncio.create_task(self._report(base, ref, caller, patience_s))] = base
                done, _ = await asyncio.wait(asked, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del asked[task]
                    try:
                        declared = task.result()
                    except NoAnswer as error:  # the adapter may be another base's
                        down = error
                        continue
                    if declared is not None:
                        return declared
        finally:
            await _ended(asked)
        if down is not None:
            raise down
        return ""

    async def _report(self, base: ModelHandle, ref: AdapterRef, caller: Caller, patience_s: float) -> str | None:
        """Return the base that an adapter declares; None: this base's ingest refuses it."""
        if await self.refusal(base, ref, caller, patience_s) is not None:
            return None
        report = (await self._answered(base, lambda: base.engine.info(ref), patience_s)).report or {}
        return str(report.get("base", {}).get("declared", ""))

    async def _answered(
        self, base: ModelHandle, ask: Callable[[], Coroutine[Any, Any, Answer]], patience_s: float
    ) -> Answer:
        """Return an answer of a base's engine. A failure to answer has the name of the base."""
        async with self._asking(base):
            task = asyncio.create_task(ask())
            try:
                while not (await asyncio.wait((task,), timeout=LOOK_S))[0]:
                    if self._silent_s(base) >= patience_s:
                        raise Unavailable(f"the engine of the base `{base.name}` does not answer; repeat the request")
            finally:
                if not task.done():
                    await _ended((task,))
            try:
                return task.result()
            except NoAnswer as error:
                raise type(error)(f"base `{base.name}`: {error.message}") from error

    @asynccontextmanager
    async def _asking(self, base: ModelHandle) -> AsyncIterator[None]:
        """Count an open question. The silence of an engine begins with its first one, and ends with its next frame."""
        known = self._silences.get(base.name)
        is_first = not self._open[base.name]
        if known is None or known.frames != base.engine.num_frames or (is_first and not known.is_long):
            self._silences[base.name] = _Silence(base.engine.num_frames, self._clock.monotonic_s())
        self._open[base.name] += 1
        try:
            yield
        finally:
            self._open[base.name] -= 1

    def _silent_s(self, base: ModelHandle) -> float:
        """Return the seconds for which an engine with an open question has sent nothing."""
        known, frames, now_s = self._silences.get(base.name), base.engine.num_frames, self._clock.monotonic_s()
        if known is None or known.frames != frames:
            self._silences[base.name] = _Silence(frames, now_s)
            return 0.0
        silent_s = now_s - known.since_s
        if silent_s >= SILENCE_S and not known.is_long:
            known.is_long = True
            base.engine.ask_for_stats()  # answered as soon as it goes on, even if no question is open then
        return silent_s


async def _refusal(base: ModelHandle, ref: AdapterRef, caller: Caller) -> ManyloraError | None:
    failure = (await base.texts.of(ref, caller.tenant, caller.weight)).failure
    if failure is None or isinstance(failure, Refusal):
        return failure
    raise failure


async def _ended(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    """Cancel tasks and wait for their ends."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
