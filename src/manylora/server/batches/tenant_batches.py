"""The batches of all tenants on the disk: `<folder>/<tenant>/batches/<id>.json`."""

import asyncio
import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import quote

import msgspec

from manylora.clock import Clock
from manylora.errors import ResourceNotFound
from manylora.ids import TenantId
from manylora.server.batches.stored_batch import BatchStatus, StoredBatch
from manylora.server.storage.disk import as_unavailable, remove, write_durably
from manylora.system.printable import printable

log = logging.getLogger(__name__)


class TenantBatches:
    """All batches, in memory and on the disk. It belongs to one event loop."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        """Read every batch. Raises `OSError`."""
        self._folder = folder
        self._clock = clock
        self._batches: dict[str, StoredBatch] = {}
        self._writes = asyncio.Lock()
        for path in sorted(folder.glob("*/batches/*.json")):
            try:
                batch = msgspec.json.decode(path.read_bytes(), type=StoredBatch)
            except msgspec.DecodeError as error:
                log.error("batch.unreadable file=%s error=%s", path, error)
            else:
                self._batches[batch.id] = batch

    def __iter__(self) -> Iterator[StoredBatch]:
        """Iterate over a snapshot of all batches, the oldest first."""
        return iter(sorted(self._batches.values(), key=lambda batch: (batch.created_ms, batch.id)))

    def of(self, tenant: TenantId) -> list[StoredBatch]:
        """Return the batches of a tenant, the oldest first."""
        return [batch for batch in self if batch.tenant == tenant]

    def get(self, tenant: TenantId, batch_id: str) -> StoredBatch:
        """Return a batch of a tenant. Raises `ResourceNotFound`, also for a batch of another tenant."""
        batch = self._batches.get(batch_id)
        if batch is None or batch.tenant != tenant:
            raise ResourceNotFound(f"No batch found with id '{printable(batch_id[:80])}'", parameter="batch_id")
        return batch

    async def save(
        self, batch: StoredBatch, status: BatchStatus | None = None, *, only_from: Collection[BatchStatus] | None = None
    ) -> None:
        """Write a batch, and set its status once that is on the disk. Raises `StorageUnavailable`.

        Args:  only_from  the states in which the batch may be; in another one nothing changes. None: any
        """
        path = self._path(batch)
        async with self._writes:
            if only_from is not None and batch.status not in only_from:
                return
            now_s = int(self._clock.wall_s())
            status = status or batch.status
            moments = batch.moments if status in batch.moments else {**batch.moments, status.value: now_s}
            written = msgspec.structs.replace(batch, status=status, moments=moments)
            with as_unavailable(path):
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                await asyncio.to_thread(write_durably, path, msgspec.json.encode(written))
            batch.status, batch.moments = status, moments
            self._batches[batch.id] = batch

    async def delete(self, batch: StoredBatch) -> None:
        """Delete the facts of a batch; its files stay."""
        self._batches.pop(batch.id, None)
        await asyncio.to_thread(remove, self._path(batch))

    def _path(self, batch: StoredBatch) -> Path:
        return self._folder / quote(batch.tenant, safe="") / "batches" / f"{batch.id}.json"
