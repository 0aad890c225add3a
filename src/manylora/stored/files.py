"""Files of tenants, and the answers to an edge that writes one."""

import secrets
from dataclasses import dataclass

from manylora.ids import TenantId
from manylora.stored.batches import BatchStatus

BATCH_PURPOSE, RESULTS_PURPOSE = "batch", "batch_output"
"""The purposes of files: the input of a batch, and its results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """The facts of one file.

    created_ms  milliseconds since 1970; files of a tenant are listed by it
    expires_ms  the moment of its deletion
    purpose     OpenAI's name of the file's use, such as `batch` or `batch_output`
    """

    id: str
    size: int
    created_ms: int
    expires_ms: int
    name: str
    purpose: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BegunFile:
    """A file that grows. `max_bytes`: its largest size."""

    id: str
    max_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """The order to make a file that has grown visible.

    lifetime_s  seconds until its deletion; None: `storage.retention_s`
    created_ms, expires_ms  of a file that an earlier version kept; None: now, and by the lifetime
    batch, lease  of a file of results: the batch, and the number of the edge's lease; an empty file is dropped then
    """

    name: str
    purpose: str
    lifetime_s: float | None = None
    created_ms: int | None = None
    expires_ms: int | None = None
    batch: str = ""
    lease: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GrownFile:
    """The answer to an append.

    size      bytes of the file now
    has_room  whether its tenant may store any further byte
    status    of the batch that the file has results of; None: it has none
    """

    size: int
    has_room: bool
    status: BatchStatus | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptQuestion:
    """The question which lines of a tenant's batches have a result.

    requests   ids of their HTTP requests
    opened_ms  milliseconds since 1970 at which the earliest was admitted, by its edge's clock
    """

    tenant: TenantId
    requests: tuple[str, ...]
    opened_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptLines:
    """The ids of the HTTP requests of lines that have a result."""

    requests: tuple[str, ...]


def mint_file_id() -> str:
    return f"file-{secrets.token_hex(16)}"
