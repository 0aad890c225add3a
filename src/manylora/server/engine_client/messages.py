"""What crosses the boundary between the edge and the engine: operations down, frames up, as MessagePack."""

import msgspec

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import AdapterAction, AdapterInfo, AdapterWords
from manylora.config.settings import Config
from manylora.engine.events import EngineStats, FinishReason, StepEvents
from manylora.engine.request import Request
from manylora.failure import Failure
from manylora.ids import Flow, RequestId
from manylora.server.engine_client.served_model import ServedModel


class JournalOrder(msgspec.Struct, frozen=True):
    """Where the engine writes down its own counts (`journal.py`)."""

    folder: str
    life: str
    keeps_parts: bool


class Boot(msgspec.Struct, frozen=True, tag=True):
    """First message to a worker: `factory` is `module:function`, see `driver.EngineFactory`."""

    factory: str
    config: Config
    journal: JournalOrder | None = None


class Submit(msgspec.Struct, frozen=True, tag=True):
    request: Request


class Abort(msgspec.Struct, frozen=True, tag=True):
    request_id: RequestId
    reason: FinishReason


class GetStats(msgspec.Struct, frozen=True, tag=True):
    """Answered by a `StatsUpdate`."""


class ManageAdapter(msgspec.Struct, frozen=True, tag=True):
    """An operator's act on an adapter. An `AdapterReply` of that number answers it: one adapter, or a failure."""

    number: int
    action: AdapterAction
    ref: AdapterRef


class GetAdapters(msgspec.Struct, frozen=True, tag=True):
    """How one adapter stands, or with `ref` None every adapter. Answered by a `AdapterReply` of that number."""

    number: int
    ref: AdapterRef | None = None


class GetAdapterText(msgspec.Struct, frozen=True, tag=True):
    """What an adapter says of text, before a prompt for it is made. Answered by a `AdapterTextReply` of that number."""

    number: int
    ref: AdapterRef
    flow: Flow
    weight: int


class DropText(msgspec.Struct, frozen=True, tag=True):
    """Whoever asked for the text of that number has gone."""

    number: int


class StopEngine(msgspec.Struct, frozen=True, tag=True):
    """End everything with SHUTDOWN and leave."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine is built and takes requests."""

    served: ServedModel


class Progress(msgspec.Struct, frozen=True, tag=True):
    """One line about the start, for the terminal."""

    line: str


class Step(msgspec.Struct, frozen=True, tag=True):
    """All that one step committed, for every row. `number` counts these frames in one life of the engine, from 1."""

    events: StepEvents
    number: int = 0


class StatsUpdate(msgspec.Struct, frozen=True, tag=True):
    """The engine's numbers: about once a second while there is work, and whenever asked."""

    stats: EngineStats
    lost_log_lines: int = 0  # of the engine process, since it began


class AdapterReply(msgspec.Struct, frozen=True, tag=True):
    """The answer to the `ManageAdapter` or `GetAdapters` of that number; `failure` is why it could not be done."""

    number: int
    infos: tuple[AdapterInfo, ...] = ()
    failure: Failure | None = None


class AdapterTextReply(msgspec.Struct, frozen=True, tag=True):
    """The answer to the `GetAdapterText` of that number: a `TextAnswer`, with `failure` in place of its error."""

    number: int
    words: AdapterWords
    failure: Failure | None = None
    found_in: str = ""
    waited_ms: float = 0.0


class EngineDied(msgspec.Struct, frozen=True, tag=True):
    """Last words: what ended the engine, and where its last plan was written, if it was."""

    failure: Failure
    dump: str = ""


Operation = Boot | Submit | Abort | GetStats | ManageAdapter | GetAdapters | GetAdapterText | DropText | StopEngine
Frame = Ready | Progress | Step | StatsUpdate | AdapterReply | AdapterTextReply | EngineDied

_encoder = msgspec.msgpack.Encoder()
_operations: msgspec.msgpack.Decoder[Operation] = msgspec.msgpack.Decoder(Operation)
_frames: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)


def encode(message: Operation | Frame) -> bytes:
    return _encoder.encode(message)


def decode_operation(data: bytes) -> Operation:
    return _operations.decode(data)


def decode_frame(data: bytes) -> Frame:
    return _frames.decode(data)
