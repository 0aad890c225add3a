"""An engine that keeps its own count of every step in a file, for runs that compare it with the ledger.

    counts-<pid>.log, entries: `Committed` as a step returns, `FrameSent` once its frame has left

Nothing else of a server knows these files.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import AdapterAction, AdapterInfo
from manylora.config.folders import metering_dir
from manylora.config.settings import Config
from manylora.engine.events import EngineStats, FinishReason, StepEvents
from manylora.engine.request import Request
from manylora.ids import Flow, RequestId
from manylora.server.engine_client.loop import EngineProtocol, EngineTexts, ProgressLine
from manylora.server.engine_client.served_model import ServedModel
from manylora.server.metering.append_log import FramedFile, read_entries
from manylora.wiring.engine import build_engine

FACTORY = "manylora.bench.faults.counted_engine:build_counted"
FOLDER = "counted"


class Committed(msgspec.Struct, frozen=True, tag=True):
    """A step has returned. tokens: the tokens of each request that has any in the step."""

    tokens: dict[str, int]


class FrameSent(msgspec.Struct, frozen=True, tag=True):
    """The frame of the step before has left the engine."""


_encode = msgspec.msgpack.Encoder().encode
_decode: msgspec.msgpack.Decoder[Committed | FrameSent] = msgspec.msgpack.Decoder(Committed | FrameSent)


@dataclass(slots=True)
class EngineCount:
    """One request's tokens by frame. is_last_sent: the last frame has left the engine for certain."""

    frames: list[int] = field(default_factory=list)
    is_last_sent: bool = True


class CountedEngine:
    """An engine that passes every call on, and counts. The loop reads `has_work` once a step's frame has left."""

    def __init__(self, engine: EngineProtocol, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._engine = engine
        self._file = FramedFile(folder / f"counts-{os.getpid()}.log")
        self._is_unsent = False

    @property
    def texts(self) -> EngineTexts:
        return self._engine.texts

    @property
    def has_work(self) -> bool:
        if self._is_unsent:
            self._file.append(_encode(FrameSent()))
            self._is_unsent = False
        return self._engine.has_work

    @property
    def is_waiting_for_adapters(self) -> bool:
        return self._engine.is_waiting_for_adapters

    def submit(self, request: Request) -> None:
        self._engine.submit(request)

    def abort(self, request_id: RequestId, reason: FinishReason) -> None:
        self._engine.abort(request_id, reason)

    def step(self) -> StepEvents:
        return self._counted(self._engine.step())

    def tend(self) -> bool:
        return self._engine.tend()

    def manage(self, action: AdapterAction, ref: AdapterRef) -> AdapterInfo:
        return self._engine.manage(action, ref)

    def info(self, ref: AdapterRef) -> AdapterInfo:
        return self._engine.info(ref)

    def infos(self) -> tuple[AdapterInfo, ...]:
        return self._engine.infos()

    def drop_grammars(self, flows: Iterable[Flow]) -> None:
        self._engine.drop_grammars(flows)

    def stats(self) -> EngineStats:
        return self._engine.stats()

    def shutdown(self) -> StepEvents:
        return self._counted(self._engine.shutdown())

    def _counted(self, events: StepEvents) -> StepEvents:
        if events.tokens:
            self._file.append(_encode(Committed(dict(Counter(token.request_id for token in events.tokens)))))
            self._is_unsent = True
        return events


def build_counted(config: Config, report: ProgressLine) -> tuple[CountedEngine, ServedModel]:
    """Build the engine that `manylora serve` builds; it counts below `metering.dir`. A `loop.EngineFactory`."""
    engine, served = build_engine(config, report)
    return CountedEngine(engine, metering_dir(config) / FOLDER), served


def read_counts(metering: Path) -> dict[RequestId, EngineCount]:
    """Return the counts of every engine that has counted below a `metering.dir`."""
    found: dict[RequestId, EngineCount] = {}
    for path in (metering / FOLDER).glob("counts-*.log"):
        last: list[RequestId] = []
        for _, payload in read_entries(path):
            match _decode.decode(payload):
                case Committed(tokens):
                    last = [RequestId(name) for name in tokens]
                    for name in last:
                        count = found.setdefault(name, EngineCount())
                        count.frames.append(tokens[name])
                        count.is_last_sent = False
                case FrameSent():
                    for name in last:
                        found[name].is_last_sent = True
    return found
