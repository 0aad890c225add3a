"""The states of an adapter, the statistics of the store, and the acts of operators, as other rooms read them."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from manylora.adapter_ref import AdapterRef
from manylora.ids import Digest


class AdapterState(StrEnum):
    """The state of an adapter: the place of its weights, or the step on the way there."""

    ABSENT = "absent"
    FETCHING = "fetching"
    ON_DISK = "on_disk"
    IN_HOST = "in_host"
    ON_DEVICE = "on_device"
    FAILED = "failed"


class AdapterAction(StrEnum):
    """An operator's act on one adapter. Each begins at once; `AdapterInfo` shows its progress.

    PRELOAD  bring it to the device before any request for it
    PREFETCH bring it to the disk, from which its first request reads it; a fleet's routers alone ask for it
    PIN      keep its current version on the device until UNPIN, used or not
    EVICT    take it off the device and off the disk, unless it is in use
    DELETE   remove the name at once; running requests finish, then no byte of the weights is left in any tier
    VERIFY   read its packed image again and compare it with its checksum
    """

    PRELOAD = "preload"
    PREFETCH = "prefetch"
    PIN = "pin"
    UNPIN = "unpin"
    EVICT = "evict"
    DELETE = "delete"
    VERIFY = "verify"


class HeadKind(StrEnum):
    """The things that a classification head gives classes to: a text as a whole, or each of its tokens."""

    TEXT = "text"
    TOKEN = "token"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterHandle:
    """One pin of an adapter's version on the device: plain data, while the back end keeps the tensors by `digest`.

    ref                the name that the version is pinned under
    digest             content identity of the version
    num_bytes          true bytes of its weights
    rank               the largest rank of its modules
    vocabulary         number of token ids that may be used with it; 0: it adds none, and the base's number applies
    has_extras         it changes more than the seven projections of a block (`kernels/adapter_layout.py`)
    invocation_tokens  an activated LoRA applies from the start of their last occurrence in the prompt on; the rows
                       before that are the base's. Empty: the adapter applies to every row
    parts              pins of the adapters that apply to the same rows, with their weights; empty: it is one adapter.
                       `digest` follows from theirs, from the weights and from the order
    head               the kind of its classification head; None: it has none
    """

    ref: AdapterRef
    digest: Digest
    num_bytes: int = 0
    rank: int = 0
    vocabulary: int = 0
    has_extras: bool = False
    invocation_tokens: tuple[int, ...] = ()
    head: HeadKind | None = None
    parts: "tuple[tuple[AdapterHandle, float], ...]" = ()

    @property
    def weighted(self) -> "tuple[tuple[AdapterHandle, float], ...]":
        """The adapters of a row with their weights."""
        return self.parts or ((self, 1.0),)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInfo:
    """One named adapter as an operator sees it.

    digest        of the version that requests get now; empty until it is known
    rank          the largest rank of its modules; 0 until it is known
    num_bytes     bytes of its packed image, in any tier; 0 until they are known
    pins          requests that hold it on the device now
    is_pinned     an operator, or the configuration, keeps it on the device
    is_deleted    its name is removed, and running requests still hold it
    hits          number of requests that were given a place on the device with it
    last_use_s    seconds since the last such request began or ended; None if there was none
    stage_ms      milliseconds of each stage of its last load
    error         the reason for which it cannot be served now; empty: there is none
    is_verified   the result of the last VERIFY; None before the first, and while one is under way
    tenant        the owner of the upload; empty for an adapter of any other source
    base          the base model of the engine that has it; the engine itself leaves it empty
    replicas      the state at each replica of a fleet, by its name; empty: there is one engine
    silent        the replicas of a fleet that did not answer; one of `LASTING_ACTIONS` reaches them once they do
    report        the ingest report of its version, in the form of `adapters/report.py`; None if it is unknown, for a
                  version packed by an older release, and in lists
    """

    id: str
    source: str
    state: AdapterState
    digest: str = ""
    rank: int = 0
    num_bytes: int = 0
    pins: int = 0
    is_pinned: bool = False
    is_deleted: bool = False
    hits: int = 0
    last_use_s: float | None = None
    stage_ms: dict[str, float] = field(default_factory=dict)
    error: str = ""
    is_verified: bool | None = None
    tenant: str = ""
    base: str = ""
    replicas: dict[str, AdapterState] = field(default_factory=dict)
    silent: tuple[str, ...] = ()
    report: dict[str, Any] | None = None  # JSON values of several types


@dataclass(frozen=True, slots=True)
class AdapterWords:
    """The text of an adapter's version: its digest, and the file with the text. Both may be empty."""

    digest: str = ""
    path: str = ""


NO_WORDS = AdapterWords()


LASTING_ACTIONS = (AdapterAction.PIN, AdapterAction.UNPIN, AdapterAction.EVICT, AdapterAction.DELETE)
"""Acts that a replica of a fleet gets which was away. The others serve the replicas that are there."""


def is_over(action: AdapterAction, info: AdapterInfo) -> bool:
    """Return whether an act has ended, well or badly, in the adapter's present state."""
    match action:
        case AdapterAction.PRELOAD:
            return info.state in (AdapterState.ON_DEVICE, AdapterState.FAILED)
        case AdapterAction.PREFETCH:
            return info.state not in (AdapterState.ABSENT, AdapterState.FETCHING)
        case AdapterAction.PIN:  # a pin of an adapter that turns out too large is given up
            return info.state in (AdapterState.ON_DEVICE, AdapterState.FAILED) or not info.is_pinned
        case AdapterAction.UNPIN:
            return not info.is_pinned
        case AdapterAction.EVICT | AdapterAction.DELETE:
            return info.state is AdapterState.ABSENT and not info.pins
        case AdapterAction.VERIFY:  # an image that is evicted before its turn can no longer be read
            is_gone = info.state in (AdapterState.FAILED, AdapterState.ABSENT)
            return info.is_verified is not None or is_gone


LOAD_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds, in seconds, of the buckets of load times. One more bucket has the longer loads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTimes:
    """A histogram of the seconds that loads from one source into one tier took.

    tier    `disk` (fetched, checked and packed), `host` (read, where host memory is a tier of its own) or `device`
    counts  loads in each bucket of `LOAD_BUCKETS_S`, and in the last one above them
    """

    source: str
    tier: str
    counts: tuple[int, ...]
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """Gauges and totals of the store; bytes are true bytes of packed images.

    A tier counts an image that a higher tier has as well. On a CPU host memory and device are one tier: images there
    count in `bank_bytes_used` and `on_device` only, and `host_bytes_used` and `in_host` are 0.
    disk_bytes_total  budget of the disk tier; 0: it is unknown
    loaded_bytes    bytes placed on the device; `reloaded_bytes` of them had been there within the last minute
    evictions       from the device; `disk_evictions` from the disk tier
    load_times      one entry for each pair of source and tier with a load
    answers         answers of the loaders, good or bad; a load that the store gave up has none
    """

    bank_bytes_total: int
    bank_bytes_used: int
    host_bytes_used: int
    disk_bytes_used: int
    disk_bytes_total: int = 0
    on_device: int
    in_host: int
    on_disk: int
    pinned: int = 0
    loads: int
    failures: int
    evictions: int
    disk_evictions: int = 0
    loaded_bytes: int = 0
    reloaded_bytes: int = 0
    load_times: tuple[LoadTimes, ...] = ()
    answers: int = 0

    @property
    def thrash_ratio(self) -> float:
        """The share of loaded bytes that were evicted within the minute before. Near 1, the bank is too small."""
        return self.reloaded_bytes / self.loaded_bytes if self.loaded_bytes else 0.0
