"""Batches of tenants, their leases, and their states.

validating → in_progress → finalizing → completed     or expired: the window passed before all lines had a result
    ↓             └──────→ cancelling → cancelled     or failed: the input is refused, or the tenant's bytes are full
  failed
"""

import secrets
from dataclasses import dataclass, field, replace
from enum import StrEnum

from manylora.ids import KeyId, TenantId

WINDOW_S = 24 * 3600
"""Seconds from the creation of a batch to its end; OpenAI's only window."""


class BatchStatus(StrEnum):
    """The states of a batch, in OpenAI's words."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


ENDED = frozenset({BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.EXPIRED, BatchStatus.CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchError:
    """The reason for which a batch has failed. `line`: number of the line in the input, from 1."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


@dataclass(slots=True, kw_only=True)
class StoredBatch:
    """One batch.

    key, origin  the key that created it, and the first key of that key's rotations; None: the server needs no keys
    output_id, error_id  the files of results; `has_output`, `has_errors` once they are visible
    created_ms   milliseconds since 1970; batches of a tenant are listed by it
    moments      state → second since 1970 of its begin
    total        number of lines; 0 before the validation
    completed, failed  number of lines with a result, and with an error
    output_lifetime_s  seconds for which the results are kept; None: `storage.retention_s`
    bases        base models of the edge that took it in, the default first: an edge with all of them and the same
                 default runs it. Empty: any edge
    """

    id: str
    tenant: TenantId
    key: KeyId | None
    origin: KeyId | None
    endpoint: str
    input_id: str
    output_id: str
    error_id: str
    created_ms: int
    metadata: dict[str, str] | None
    status: BatchStatus = BatchStatus.VALIDATING
    moments: dict[str, int] = field(default_factory=dict)
    total: int = 0
    completed: int = 0
    failed: int = 0
    has_output: bool = False
    has_errors: bool = False
    errors: list[BatchError] = field(default_factory=list)
    output_lifetime_s: float | None = None
    bases: tuple[str, ...] = ()

    @property
    def is_ended(self) -> bool:
        return self.status in ENDED

    @property
    def expires_s(self) -> int:
        """The second since 1970 at which its window ends."""
        return self.created_ms // 1000 + WINDOW_S

    def at(self, status: BatchStatus, now_s: int) -> "StoredBatch":
        """Return it in a state, with the moment at which it first entered that state."""
        moments = self.moments if status.value in self.moments else {**self.moments, status.value: now_s}
        return replace(self, status=status, moments=moments)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatches:
    """Batches of a tenant, the oldest first."""

    batches: tuple[StoredBatch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeWish:
    """An edge's wish to run `most` further batches of its base models. `held`: those that it has already."""

    edge: str
    most: int
    held: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTurn:
    """A batch that one edge runs until `lease_ms`, milliseconds since 1970, or longer if it renews its lease.

    lease  counts the edges that took the batch: a write under an earlier number is refused
    """

    batch: StoredBatch
    lease: int
    lease_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTurns:
    """The batches that an edge gets. `states`: the number of batches of all tenants in each state, for the metrics."""

    turns: tuple[BatchTurn, ...]
    states: dict[BatchStatus, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBatches:
    """The batches that an edge runs, each with the number of its lease."""

    leases: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewedBatches:
    """Batches whose leases last on, each with its state; the others have ended, or another edge has them."""

    states: dict[str, BatchStatus]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchChange:
    """A state of a batch that its edge reaches, with all its facts.

    only_from  the states in which the batch may be; in another one nothing changes. Empty: any
    is_over    whether the lease ends with the change, so that any edge may take the batch
    """

    batch: StoredBatch
    lease: int
    status: BatchStatus
    only_from: tuple[BatchStatus, ...] = ()
    is_over: bool = False


def mint_batch_id() -> str:
    return f"batch_{secrets.token_hex(16)}"
