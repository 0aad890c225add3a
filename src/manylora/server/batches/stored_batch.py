"""The facts of a batch on the disk, and its states.

validating → in_progress → finalizing → completed     or expired: the window passed before all lines had a result
    ↓             └──────→ cancelling → cancelled     or failed: the input is refused, or the tenant's bytes are full
  failed
"""

import secrets
from enum import StrEnum

import msgspec

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


class BatchError(msgspec.Struct, frozen=True, kw_only=True):
    """The reason for which a batch has failed. `line`: number of the line in the input, from 1."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class StoredBatch(msgspec.Struct, kw_only=True):
    """One batch.

    key, origin  the key that created it, and the first key of that key's rotations; None: the server needs no keys
    output_id, error_id  the files of results; `has_output`, `has_errors` once they are visible
    created_ms   milliseconds since 1970; batches of a tenant are listed by it
    moments      state → second since 1970 of its begin
    total        number of lines; 0 before the validation
    completed, failed  number of lines with a result, and with an error
    output_lifetime_s  seconds for which the results are kept; None: `storage.retention_s`
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
    moments: dict[str, int] = {}
    total: int = 0
    completed: int = 0
    failed: int = 0
    has_output: bool = False
    has_errors: bool = False
    errors: list[BatchError] = []
    output_lifetime_s: float | None = None

    @property
    def is_ended(self) -> bool:
        return self.status in ENDED

    @property
    def expires_s(self) -> int:
        """The second since 1970 at which its window ends."""
        return self.created_ms // 1000 + WINDOW_S


def mint_batch_id() -> str:
    return f"batch_{secrets.token_hex(16)}"
