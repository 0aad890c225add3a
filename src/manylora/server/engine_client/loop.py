"""The loop that turns a synchronous engine: take operations, step, tell what happened; in a thread or a process."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, cast

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import AdapterAction, AdapterInfo
from manylora.clock import Clock
from manylora.config.settings import Config
from manylora.engine.events import EngineStats, Finished, FinishReason, StepEvents
from manylora.engine.request import Request
from manylora.engine.texts import TextAnswer
from manylora.errors import ManyloraError, UsageUnrecorded
from manylora.failure import Failure
from manylora.ids import PROBE_FLOW, Flow, RequestId
from manylora.server.engine_client.messages import (
    Abort,
    AdapterReply,
    AdapterTextReply,
    Boot,
    DropText,
    Frame,
    GetAdapters,
    GetAdapterText,
    GetStats,
    ManageAdapter,
    Operation,
    StatsUpdate,
    Step,
    StopEngine,
    Submit,
)
from manylora.server.engine_client.served_model import ServedModel
from manylora.usage import Counts

IDLE_WAIT_S = 1.0
LOADING_WAIT_S = 0.001
TENDING_WAIT_S = 0.01
BEAT_S = 1.0


class TextDesk(Protocol):
    """Where the engine is asked what adapters say of text; `engine/texts.py` is the real one."""

    def ask(self, number: int, ref: AdapterRef, flow: Flow, weight: int) -> None:
        """Take a question; it is answered once, unless it is dropped before."""

    def drop(self, number: int) -> None:
        """Forget a question."""

    def take(self) -> list[TextAnswer]:
        """The answers since the last call."""


class EngineProtocol(Protocol):
    """What the edge needs of the engine; `engine/engine.py` is the real one. One thread, no method waits."""

    @property
    def texts(self) -> TextDesk: ...

    @property
    def has_work(self) -> bool: ...

    @property
    def is_waiting_for_adapters(self) -> bool:
        """Whether every request under way waits for an adapter."""

    def submit(self, request: Request) -> None:
        """Take a request. If it is refused, the next step finishes it with REJECTED."""

    def abort(self, request_id: RequestId, reason: FinishReason) -> None:
        """End a request at the next step; one that is unknown or has ended is passed over."""

    def step(self) -> StepEvents:
        """Plan, run and commit once."""

    def tend(self) -> bool:
        """Let adapters move while there is no other work; whether it should be called again soon."""

    def manage(self, action: AdapterAction, ref: AdapterRef) -> AdapterInfo:
        """Begin what an operator asks of one adapter. Raises a `ManyloraError` when that cannot be."""

    def info(self, ref: AdapterRef) -> AdapterInfo:
        """One adapter as an operator sees it. Raises `AdapterNotFound`."""

    def infos(self) -> tuple[AdapterInfo, ...]:
        """Every adapter there is something to tell of."""

    def stats(self) -> EngineStats: ...

    def shutdown(self) -> StepEvents:
        """End every request with SHUTDOWN and release everything."""


ProgressLine = Callable[[str], None]
EngineFactory = Callable[[Config, ProgressLine], tuple[EngineProtocol, ServedModel]]
"""Builds the engine in the process that will own it, telling each stage of the start as a line."""


def load_factory(name: str) -> EngineFactory:
    """Import the factory named `module:function`. The edge itself never calls this: it stays without torch."""
    module, _, function = name.partition(":")
    return cast(EngineFactory, getattr(importlib.import_module(module), function))  # named by our own command line


class Port(Protocol):
    """The driver's end of the boundary."""

    def receive(self, wait_s: float) -> list[Operation]:
        """Return what has arrived, waiting up to `wait_s` seconds for the first of it."""

    def send(self, frame: Frame) -> None: ...


class CountKeeper(Protocol):
    """Writes down what the engine counted before anyone is told; `journal.py` is the real one."""

    def submit(self, request: Request) -> None:
        """Raises `UsageUnrecorded` while nothing can be written."""

    def write(self, number: int, events: StepEvents) -> None:
        """Raises `UsageUnrecorded` if it cannot be written; all that is under way is then forgotten."""


CALLER_LEFT = (FinishReason.ABORT, FinishReason.DISCONNECT)


class _Teller:
    """Sends each step's events as a numbered frame, after they have been written down.

    Where that fails, nothing of the step is told but the ends of its requests, all of which end with that failure.
    """

    def __init__(self, engine: EngineProtocol, port: Port, journal: CountKeeper | None) -> None:
        self._engine = engine
        self._port = port
        self._journal = journal
        self._number = 0
        self._counted: set[RequestId] = set()  # under way, and written down
        self._uncounted: dict[RequestId, Failure] = {}  # under way in the engine until it takes the abort

    def submit(self, request: Request) -> None:
        """Hand a request to the engine, or tell its end if it cannot be written down."""
        if self._journal is not None and request.flow != PROBE_FLOW:
            try:
                self._journal.submit(request)
            except UsageUnrecorded as error:
                self._refuse(request, error)
                return
            self._counted.add(request.id)
        self._engine.submit(request)

    def tell(self, events: StepEvents) -> None:
        self._number += 1
        if self._uncounted:
            events = self._failed(events)
        if self._journal is not None:
            try:
                self._journal.write(self._number, events)
            except UsageUnrecorded as error:
                events = self._end_all(events, error)
            self._counted.difference_update([end.request_id for end in events.finished])
        self._port.send(Step(events, self._number))

    def _refuse(self, request: Request, error: UsageUnrecorded) -> None:
        counts = Counts(prompt_tokens=len(request.tokens), cached_tokens=0, completion_tokens=0)
        failure = Failure.of(error)
        end = Finished(request_id=request.id, reason=FinishReason.REJECTED, counts=counts, failure=failure)
        self._number += 1
        self._port.send(Step(StepEvents(finished=(end,)), self._number))

    def _end_all(self, events: StepEvents, error: UsageUnrecorded) -> StepEvents:
        """End every request that is written down, since this step of it cannot be; returns what may be told of it."""
        self._uncounted |= dict.fromkeys(self._counted, Failure.of(error))
        ended = {end.request_id for end in events.finished}
        for request_id in self._counted - ended:
            self._engine.abort(request_id, FinishReason.ENGINE_FAILURE)
        self._counted &= ended
        return self._failed(events)

    def _failed(self, events: StepEvents) -> StepEvents:
        """The events without tokens that are not written down; what ended with them has failed."""
        tokens = tuple(token for token in events.tokens if token.request_id not in self._uncounted)
        finished = tuple(_end_of(end, self._uncounted.pop(end.request_id, None)) for end in events.finished)
        return StepEvents(tokens, finished)


def _end_of(end: Finished, failure: Failure | None) -> Finished:
    if failure is None or end.reason in CALLER_LEFT:
        return end
    return replace(end, reason=FinishReason.ENGINE_FAILURE, stop_string=None, failure=failure)


def drive(engine: EngineProtocol, port: Port, clock: Clock, journal: CountKeeper | None = None) -> None:
    """Turn the engine until `StopEngine`, then shut it down. What a step raises is raised: the engine is then lost.

    While there is work, operations are taken without waiting. When every request waits for an adapter, the loop
    looks every millisecond. When there is none it sleeps on the port, and tends the adapters each time it wakes: once
    a second, and more often only while something of theirs is under way.
    """
    wait_s = 0.0  # what is to be preloaded need not wait for anyone
    next_beat_s = clock.monotonic_s()
    teller = _Teller(engine, port, journal)
    while True:
        for operation in port.receive(wait_s):
            if isinstance(operation, StopEngine):
                teller.tell(engine.shutdown())
                return
            _apply(engine, operation, port, teller)
        _tell_texts(engine, port)
        wait_s = IDLE_WAIT_S
        if not engine.has_work:
            wait_s = TENDING_WAIT_S if engine.tend() else IDLE_WAIT_S
            continue
        events = engine.step()
        if events:
            teller.tell(events)
        _tell_texts(engine, port)
        wait_s = _wait_after(engine)
        now_s = clock.monotonic_s()
        if now_s >= next_beat_s:
            next_beat_s = now_s + BEAT_S
            port.send(StatsUpdate(engine.stats()))


def _apply(engine: EngineProtocol, operation: Operation, port: Port, teller: _Teller) -> None:
    match operation:
        case Submit(request):
            teller.submit(request)
        case Abort(request_id, reason):
            engine.abort(request_id, reason)
        case GetStats():
            port.send(StatsUpdate(engine.stats()))
        case ManageAdapter(number, action, ref):
            port.send(_told(number, lambda: (engine.manage(action, ref),)))
        case GetAdapters(number, None):
            port.send(_told(number, engine.infos))
        case GetAdapters(number, AdapterRef() as ref):
            port.send(_told(number, lambda: (engine.info(ref),)))
        case GetAdapterText(number, ref, flow, weight):
            engine.texts.ask(number, ref, flow, weight)
        case DropText(number):
            engine.texts.drop(number)
        case Boot() | StopEngine():
            raise AssertionError(f"not an operation of a running engine: {operation}")


def _told(number: int, ask: Callable[[], tuple[AdapterInfo, ...]]) -> AdapterReply:
    """An answer, or the refusal in its place; what is not a refusal is a fault, and is raised."""
    try:
        return AdapterReply(number, ask())
    except ManyloraError as error:
        return AdapterReply(number, failure=Failure.of(error))


def _tell_texts(engine: EngineProtocol, port: Port) -> None:
    for answer in engine.texts.take():
        failure = None if answer.error is None else Failure.of(answer.error)
        port.send(AdapterTextReply(answer.number, answer.words, failure, answer.found_in, answer.waited_ms))


def _wait_after(engine: EngineProtocol) -> float:
    """How long to wait for operations before the next step."""
    if not engine.has_work:
        return TENDING_WAIT_S  # the adapters may still have something under way
    return LOADING_WAIT_S if engine.is_waiting_for_adapters else 0.0
