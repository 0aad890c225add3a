"""The loop of a synchronous engine in a thread or a process: take operations, step, send a frame."""

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, cast

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import AdapterAction, AdapterInfo
from manylora.clock import Clock
from manylora.config.settings import Config
from manylora.engine.events import EngineStats, FinishReason, StepEvents, TokenEvent
from manylora.engine.request import Request
from manylora.engine.texts import TextAnswer
from manylora.errors import ManyloraError
from manylora.failure import Failure
from manylora.ids import Flow, RequestId
from manylora.server.engine_client.messages import (
    AbortRequest,
    AcknowledgeFrame,
    AdapterReply,
    AdapterTextReply,
    CancelAdapterText,
    DropGrammars,
    Frame,
    GetAdapters,
    GetAdapterText,
    GetStats,
    ManageAdapter,
    Operation,
    StatsUpdate,
    StepFrame,
    StopEngine,
    SubmitRequest,
    TokenDetails,
)
from manylora.server.engine_client.served_model import ServedModel

IDLE_WAIT_S = 1.0
LOADING_WAIT_S = 0.001
TENDING_WAIT_S = 0.01
BEAT_S = 1.0
ACKNOWLEDGEMENT_WAIT_S = 1.0
"""Seconds between two checks that a client lives while the loop waits for its acknowledgement."""

_PLAIN = TokenEvent(RequestId(""), 0)[2:8]
"""The fields of `TokenDetails` with their defaults."""


class EngineTexts(Protocol):
    """The engine's answers to questions about the text rules of adapters. `engine/texts.py` implements it."""

    def ask(self, number: int, ref: AdapterRef, flow: Flow, weight: int) -> None:
        """Queue a question. `take` returns its answer once, unless `drop` removes the question before."""

    def drop(self, number: int) -> None:
        """Remove a question."""

    def take(self) -> list[TextAnswer]:
        """Return the answers since the last call."""


class EngineProtocol(Protocol):
    """The engine as its loop sees it. One thread calls it, and no method waits. `engine/engine.py` implements it."""

    @property
    def texts(self) -> EngineTexts: ...

    @property
    def has_work(self) -> bool: ...

    @property
    def is_waiting_for_adapters(self) -> bool:
        """Return whether all requests under way wait for an adapter."""

    def submit(self, request: Request) -> None:
        """Take a request. If it is refused, the next step finishes it with REJECTED."""

    def abort(self, request_id: RequestId, reason: FinishReason) -> None:
        """End a request at the next step. Ignore a request that is unknown or has ended."""

    def step(self) -> StepEvents:
        """Plan, run and commit once."""

    def tend(self) -> bool:
        """Continue loads of adapters while there is no other work; return whether to call it again soon."""

    def manage(self, action: AdapterAction, ref: AdapterRef) -> AdapterInfo:
        """Begin an operator's action on one adapter. Raises the `ManyloraError` that refuses it."""

    def info(self, ref: AdapterRef) -> AdapterInfo:
        """Return one adapter as an operator sees it. Raises `AdapterNotFound`."""

    def infos(self) -> tuple[AdapterInfo, ...]:
        """Return every adapter that the store knows or loads."""

    def drop_grammars(self, flows: Iterable[Flow]) -> None:
        """Drop the compiled grammars of closed tenants, those in use at the end of their use."""

    def stats(self) -> EngineStats: ...

    def shutdown(self) -> StepEvents:
        """End every request with SHUTDOWN and release everything."""


ProgressLine = Callable[[str], None]
EngineFactory = Callable[[Config, ProgressLine], tuple[EngineProtocol, ServedModel]]
"""Builds the engine in the process that will own it, and reports each stage of the start as a line."""


def load_factory(name: str) -> EngineFactory:
    """Import the factory named `module:function`; only the process of the engine calls it, since it needs torch."""
    module, _, function = name.partition(":")
    # The type is known: the name comes from this program, not from a user.
    return cast(EngineFactory, getattr(importlib.import_module(module), function))


class ClientConnection(Protocol):
    """The engine's connection to its client."""

    @property
    def is_open(self) -> bool:
        """Return whether the client still lives."""

    def receive(self, wait_s: float) -> list[Operation]:
        """Return the operations that have arrived; wait up to `wait_s` seconds for the first of them."""

    def send(self, frame: Frame) -> None:
        """Queue a frame, and wait a while if the client lags."""


def run_engine_loop(engine: EngineProtocol, connection: ClientConnection, clock: Clock) -> None:
    """Run the engine until `StopEngine`, then shut it down. Raises the exception of a step, after which it is unusable.

    While there is work, the loop takes operations without waiting. If all requests wait for an adapter, it checks every
    millisecond. Without requests it waits for operations, and calls `tend` each time it wakes: once a second, and more
    often only while adapters load.
    """
    _EngineLoop(engine, connection, clock).run()


class _EngineLoop:
    """The loop's state: the requests under way, and the frame that is not acknowledged yet."""

    def __init__(self, engine: EngineProtocol, connection: ClientConnection, clock: Clock) -> None:
        self._engine = engine
        self._connection = connection
        self._clock = clock
        self._indexes: dict[RequestId, int] = {}
        self._ids: dict[int, RequestId] = {}  # the inverse of `_indexes`
        self._sent = self._acknowledged = 0
        self._is_stopping = False

    def run(self) -> None:
        wait_s = 0.0  # the preloads of the start begin at once
        next_beat_s = self._clock.monotonic_s()
        while True:
            self._take(wait_s)
            if self._is_stopping:
                self._send_step(self._engine.shutdown())
                return
            self._send_texts()
            if not self._engine.has_work:
                wait_s = TENDING_WAIT_S if self._engine.tend() else IDLE_WAIT_S
                continue
            self._send_step(self._engine.step())
            self._send_texts()
            wait_s = self._wait_after_step()
            now_s = self._clock.monotonic_s()
            if now_s >= next_beat_s:
                next_beat_s = now_s + BEAT_S
                self._connection.send(StatsUpdate(self._engine.stats()))

    def _take(self, wait_s: float) -> None:
        for operation in self._connection.receive(wait_s):
            self._apply(operation)

    def _apply(self, operation: Operation) -> None:
        match operation:
            case SubmitRequest(index, request):
                self._indexes[request.id], self._ids[index] = index, request.id
                self._engine.submit(request)
            case AbortRequest(index, reason):
                if (request_id := self._ids.get(index)) is not None:
                    self._engine.abort(request_id, reason)
            case AcknowledgeFrame(number):
                self._acknowledged = number
            case GetStats():
                self._connection.send(StatsUpdate(self._engine.stats()))
            case GetAdapterText(number, ref, flow, weight):
                self._engine.texts.ask(number, ref, flow, weight)
            case CancelAdapterText(number):
                self._engine.texts.drop(number)
            case StopEngine():
                self._is_stopping = True
            case _:
                self._connection.send(self._reply(operation))

    def _reply(self, operation: Operation) -> AdapterReply:
        """Answer a question about adapters, or an order about grammars."""
        engine = self._engine
        match operation:
            case ManageAdapter(number, action, ref):
                return _adapter_reply(number, lambda: (engine.manage(action, ref),))
            case GetAdapters(number, None):
                return _adapter_reply(number, engine.infos)
            case GetAdapters(number, AdapterRef() as ref):
                return _adapter_reply(number, lambda: (engine.info(ref),))
            case DropGrammars(number, flows):
                engine.drop_grammars(flows)
                return AdapterReply(number)
            case _:
                raise AssertionError(f"not an operation of a running engine: {operation}")

    def _send_step(self, events: StepEvents) -> None:
        """Send a step's events once the frame before is acknowledged, so that a kill loses at most one frame."""
        if not events:
            return
        while self._acknowledged < self._sent and self._connection.is_open:
            self._take(ACKNOWLEDGEMENT_WAIT_S)
        self._sent += 1
        self._connection.send(pack_step(self._sent, events, self._indexes))
        for end in events.finished:
            del self._ids[self._indexes.pop(end.request_id)]

    def _send_texts(self) -> None:
        for answer in self._engine.texts.take():
            failure = None if answer.error is None else Failure.of(answer.error)
            reply = AdapterTextReply(answer.number, answer.words, failure, answer.found_in, answer.waited_ms)
            self._connection.send(reply)

    def _wait_after_step(self) -> float:
        """Return the time to wait for operations before the next step, in seconds."""
        if not self._engine.has_work:
            return TENDING_WAIT_S  # loads of adapters may be under way
        return LOADING_WAIT_S if self._engine.is_waiting_for_adapters else 0.0


def pack_step(number: int, events: StepEvents, indexes: Mapping[RequestId, int]) -> StepFrame:
    """Return the frame of one step, with indexes in place of request ids and without default values.

    `indexes` has every request of `events`.
    """
    tokens = events.tokens
    return StepFrame(
        number,
        [indexes[token[0]] for token in tokens],
        [token[1] for token in tokens],
        {position: TokenDetails(*token[2:8]) for position, token in enumerate(tokens) if token[2:8] != _PLAIN},
        [(indexes[end.request_id], end) for end in events.finished],
    )


def _adapter_reply(number: int, ask: Callable[[], tuple[AdapterInfo, ...]]) -> AdapterReply:
    """Return a reply with the infos or with the refusal. Raise any other exception, which is a fault of the engine."""
    try:
        return AdapterReply(number, ask())
    except ManyloraError as error:
        return AdapterReply(number, failure=Failure.of(error))
