"""Messages between an engine client and its engine, as MessagePack: operations to the engine, frames to the client.

Requests have small numbers on the wire, their *indexes*, which the client assigns; only a `Finished` carries the
request's id. A question has a number, which its reply repeats. A transport queues at most `MAX_QUEUED` messages in
each direction. At that bound a client gets `Overloaded`, and an engine waits.
"""

import msgspec

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import AdapterAction, AdapterInfo, AdapterWords
from manylora.config.settings import Config
from manylora.engine.events import AdapterUse, EngineStats, Finished, FinishReason, PromptScore
from manylora.engine.request import Request
from manylora.failure import Failure
from manylora.ids import Flow, RequestId, TenantId, UsageId
from manylora.server.engine_client.served_model import ServedModel

MAX_QUEUED = 4096


# ── operations: client → engine ──────────────────────────────────────────────────────────────────────────────────


class StartEngine(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Build the engine. `EngineReady` or `EngineDied` answers it. It is sent once, as the first message to a process.

    factory  `module:function` of a `loop.EngineFactory`
    """

    factory: str
    config: Config


class SubmitRequest(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Generate. `StepFrame`s answer it; the last of them has the request's `Finished`.

    index    number of the request in all further messages; a client gives out each number once
    request  at most `max_model_len` prompt tokens
    """

    index: int
    request: Request


class AbortRequest(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """End a request at the next step. A `Finished` with `reason` answers it, unless the request has already ended."""

    index: int
    reason: FinishReason


class AcknowledgeFrame(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Acknowledge the `StepFrame` of that number, which the client has recorded and delivered.

    The engine sends the next frame only after this message, so that a kill loses at most one frame.
    """

    number: int


class GetStats(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Return the engine's numbers. A `StatsUpdate` answers it."""


class ManageAdapter(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Begin an operator's action on one adapter. An `AdapterReply` with one adapter or a failure answers it."""

    number: int
    action: AdapterAction
    ref: AdapterRef


class GetAdapters(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Return the state of one adapter, or of every adapter if `ref` is None. An `AdapterReply` answers it."""

    number: int
    ref: AdapterRef | None = None


class DropGrammars(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Drop the compiled grammars of closed tenants, by their flows. An `AdapterReply` without adapters answers it."""

    number: int
    flows: tuple[Flow, ...]


class GetAdapterText(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Return the text rules of an adapter, once it is on the engine's disk. An `AdapterTextReply` answers it.

    flow, weight  the share of the adapter store that pays for the fetch
    """

    number: int
    ref: AdapterRef
    flow: Flow
    weight: int


class CancelAdapterText(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Cancel the `GetAdapterText` of that number. Its reply may still arrive."""

    number: int


class StopEngine(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """End every request with SHUTDOWN in a last `StepFrame`, and stop."""


# ── frames: engine → client ──────────────────────────────────────────────────────────────────────────────────────


class EngineReady(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The engine is built and takes requests. It is sent once."""

    served: ServedModel


class StartProgress(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """One line about the start, for the terminal. There are at most some dozens, all before `EngineReady`."""

    line: str


class TokenDetails(msgspec.Struct, frozen=True, array_like=True):
    """The fields of a `TokenEvent` that only first tokens and tokens with log-probabilities set."""

    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
    adapter: AdapterUse | None = None
    queue_ms: float | None = None
    cached_tokens: int | None = None
    prompt: tuple[PromptScore, ...] | None = None


class StepFrame(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The tokens and ends of one step. `AcknowledgeFrame` answers it; at most one frame is unacknowledged.

    number     counts the frames of one life of the engine, from 1
    indexes    request of each token, in the order of their commit
    token_ids  the tokens, as many as `indexes`
    details    details by position in `indexes`; a token without an entry has the defaults
    finished   (index, end) of the requests that have ended, after their last token
    link       in a fleet, the name of the sequence of numbers: of one start of a host and one of an edge
    """

    number: int
    indexes: list[int] = []
    token_ids: list[int] = []
    details: dict[int, TokenDetails] = {}
    finished: list[tuple[int, Finished]] = []
    link: str = ""


class UndeliveredCount(msgspec.Struct, frozen=True, array_like=True):
    """Tokens of one request that an engine of a fleet has committed and that no edge has recorded.

    id             the same for every delivery of this count
    tenant         the flow of the request
    adapter_owner  the tenant whose upload the adapter is; None: it is no upload
    opened_ms      milliseconds since 1970 of its submission
    """

    id: UsageId
    tenant: TenantId
    request_id: RequestId
    base: str
    adapter: str | None
    adapter_source: str | None
    adapter_owner: TenantId | None
    opened_ms: int
    tokens: int


class StatsUpdate(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The engine's numbers, about once a second while there is work, and as the reply to `GetStats`.

    lost_log_lines  log lines that the engine process could not write since its start
    silent          the replicas of a fleet that did not answer, and whose numbers are missing
    """

    stats: EngineStats
    lost_log_lines: int = 0
    silent: tuple[str, ...] = ()


class AdapterReply(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The reply to `ManageAdapter`, `GetAdapters` and `DropGrammars`. A refusal has its `failure` and no infos."""

    number: int
    infos: tuple[AdapterInfo, ...] = ()
    failure: Failure | None = None


class AdapterTextReply(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The reply to `GetAdapterText`: a `TextAnswer` with `failure` in place of its error."""

    number: int
    words: AdapterWords
    failure: Failure | None = None
    found_in: str = ""
    waited_ms: float = 0.0


class EngineDied(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The last frame of an engine that has failed.

    traceback  the error's traceback for the log; empty: there is none
    """

    failure: Failure
    traceback: str = ""


Operation = (
    StartEngine
    | SubmitRequest
    | AbortRequest
    | AcknowledgeFrame
    | GetStats
    | ManageAdapter
    | GetAdapters
    | DropGrammars
    | GetAdapterText
    | CancelAdapterText
    | StopEngine
)
Frame = EngineReady | StartProgress | StepFrame | StatsUpdate | AdapterReply | AdapterTextReply | EngineDied

_encoder = msgspec.msgpack.Encoder()
_operations: msgspec.msgpack.Decoder[Operation] = msgspec.msgpack.Decoder(Operation)
_frames: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)


def encode(message: Operation | Frame) -> bytes:
    return _encoder.encode(message)


def decode_operation(data: bytes) -> Operation:
    """Return the operation in a message. Raises `msgspec.MsgspecError` for bytes that are no operation."""
    return _operations.decode(data)


def decode_frame(data: bytes) -> Frame:
    """Return the frame in a message. Raises `msgspec.MsgspecError` for bytes that are no frame."""
    return _frames.decode(data)
