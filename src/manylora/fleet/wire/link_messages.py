"""The messages between an edge and a host, as MessagePack: those of `engine_client/messages.py`, and these.

A *link* is one connection of one edge to one host. It has a name, which no other connection ever has, and numbers its
`StepFrame`s from 1.
"""

import msgspec

from manylora.server.engine_client.messages import (
    AbortRequest,
    AcknowledgeFrame,
    AdapterReply,
    AdapterTextReply,
    CancelAdapterText,
    DropGrammars,
    EngineReady,
    GetAdapters,
    GetAdapterText,
    GetStats,
    ManageAdapter,
    StatsUpdate,
    StepFrame,
    SubmitRequest,
    UndeliveredCount,
)

BEAT_S = 0.5
"""Seconds between two beats of a host, and of an edge."""


# ── edge → host ──────────────────────────────────────────────────────────────────────────────────────────────────


class ResumeEdge(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The edge's first message: the frames of earlier links that it, or an edge before it on its disk, has recorded.

    recorded  the number of the last `StepFrame` in a journal, by the name of its link
    """

    recorded: dict[str, int] = {}


class EdgeBeat(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The edge lives. A host drops a silent edge."""


class CountsTaken(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The edge has durably recorded the `KeptCounts` of that number."""

    number: int


class GetBaseFiles(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Return the text files of the base. A `BaseTextFiles` answers it."""


# ── host → edge ──────────────────────────────────────────────────────────────────────────────────────────────────


class HostBeat(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The state of a replica, twice a second.

    backlog_tokens  prompt tokens of its requests without a first token, and one of each running row
    tokens_per_s    prompt tokens that the engine computes in a second in which prompts wait
    received        number of the requests of this link so far
    is_open         whether the replica takes requests: its engine is up and not being drained
    tiers           the tier of each adapter that has changed it (0 device, 1 host, 2 disk, 3 none); the first beat of a
                    link has all of them
    sizes           bytes of the packed image of each adapter in `tiers` that is in a tier
    load_s          mean seconds of a load: host → device, disk → host, store → disk; 0: none was measured
    bank_bytes      bytes of the bank
    disk_bytes      budget of the disk tier; 0: it is unknown, and nothing is prefetched there
    arrivals        requests of all edges since the beat before: their number and their prompts' tokens, by adapter
    """

    backlog_tokens: float
    tokens_per_s: float
    received: int
    is_open: bool
    tiers: dict[str, int] = {}
    sizes: dict[str, int] = {}
    load_s: tuple[float, float, float] = (0.0, 0.0, 0.0)
    bank_bytes: int = 0
    arrivals: dict[str, tuple[int, int]] = {}
    disk_bytes: int = 0


class EngineGone(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The engine of the host has ended, and with it every request of this link. A beat reports the next one.

    is_innocent  no request is at fault: the host shuts down, or a rank was lost
    """

    is_innocent: bool = False


class TextFile(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The text of an adapter, before the `AdapterTextReply` that names its digest."""

    digest: str
    data: bytes


class BaseTextFiles(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The text files of the base by their paths below its folder."""

    files: dict[str, bytes]


class KeptCounts(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Counts without an edge. `CountsTaken` answers it; until then another edge may get them as well."""

    number: int
    counts: list[UndeliveredCount]


FromEdge = (
    ResumeEdge
    | EdgeBeat
    | CountsTaken
    | GetBaseFiles
    | SubmitRequest
    | AbortRequest
    | AcknowledgeFrame
    | GetStats
    | ManageAdapter
    | GetAdapters
    | DropGrammars
    | GetAdapterText
    | CancelAdapterText
)
FromHost = (
    HostBeat
    | EngineGone
    | TextFile
    | BaseTextFiles
    | KeptCounts
    | EngineReady
    | StepFrame
    | StatsUpdate
    | AdapterReply
    | AdapterTextReply
)

_encoder = msgspec.msgpack.Encoder()
_from_edge: msgspec.msgpack.Decoder[FromEdge] = msgspec.msgpack.Decoder(FromEdge)
_from_host: msgspec.msgpack.Decoder[FromHost] = msgspec.msgpack.Decoder(FromHost)


def encode_link(message: FromEdge | FromHost) -> bytes:
    return _encoder.encode(message)


def decode_from_edge(data: bytes) -> FromEdge:
    """Return the message of an edge. Raises `msgspec.MsgspecError` for bytes that are none."""
    return _from_edge.decode(data)


def decode_from_host(data: bytes) -> FromHost:
    """Return the message of a host. Raises `msgspec.MsgspecError` for bytes that are none."""
    return _from_host.decode(data)
