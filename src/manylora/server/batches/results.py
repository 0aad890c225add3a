"""The files of results of one batch under way: each result is on the control plane's disk before it counts."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from manylora.errors import ControlUnavailable, ManyloraError, ResourceNotFound, StorageUnavailable
from manylora.ids import TenantId
from manylora.server.batches.lines import Mark, read_results
from manylora.server.storage.control_store import ControlStore, ResultClaim
from manylora.server.storage.files import TenantFiles
from manylora.stored.batches import BatchStatus, BatchTurn
from manylora.stored.files import Publication

AWAY_WAIT_S = 0.5
"""Seconds between two attempts of a write while the control plane or its disk is away."""


class LeaseLost(Exception):
    """The batch is not this edge's any more: it has ended, or another edge has it."""


@dataclass(slots=True)
class BatchResults:
    """The results of a batch, in order of their ends.

    done       digests of the ids of lines with a result
    completed, failed  their numbers, by file
    has_room   whether the tenant may store any further byte
    note       called with the state of the batch that the control plane knows
    """

    turn: BatchTurn
    store: ControlStore
    note: Callable[[BatchStatus], None]
    done: set[Mark] = field(default_factory=set)
    completed: int = 0
    failed: int = 0
    has_room: bool = True
    is_stopped: bool = False
    _sizes: dict[str, int] = field(default_factory=dict)
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def read(self, files: TenantFiles) -> None:
        """Read the results that earlier edges left."""
        batch, counts = self.turn.batch, []
        for file_id in (batch.output_id, batch.error_id):
            found = await read_results(_grown(files, batch.tenant, file_id))
            self._sizes[file_id] = found.size
            self.done |= found.marks
            counts.append(len(found.marks))
        self.completed, self.failed = counts

    async def append(self, data: bytes, marks: set[Mark], *, is_output: bool) -> None:
        """Write results. While the control plane or its disk is away, try on, unless the server ends.

        Raises `LeaseLost`, and then the results do not count.
        """
        batch = self.turn.batch
        file_id = batch.output_id if is_output else batch.error_id
        async with self._writing:
            completed = self.completed + len(marks) * is_output
            failed = self.failed + len(marks) * (not is_output)
            claim = ResultClaim(batch=batch.id, lease=self.turn.lease, completed=completed, failed=failed)
            while True:
                try:
                    grown = await self.store.append(batch.tenant, file_id, self._sizes[file_id], data, claim)
                    break
                except (ControlUnavailable, StorageUnavailable) as error:
                    if self.is_stopped:
                        raise LeaseLost(error.message) from error
                except ManyloraError as error:
                    raise LeaseLost(error.message) from error
                await asyncio.sleep(AWAY_WAIT_S)
            self._sizes[file_id] = grown.size
            self.has_room = grown.has_room
            self.completed, self.failed = completed, failed
            self.done |= marks
        if grown.status is not None:
            self.note(grown.status)

    async def publish(self, kind: str) -> bool:
        """Make the results visible; return whether there are any. Raises `LeaseLost`, `ControlUnavailable`."""
        batch = self.turn.batch
        order = Publication(
            name=f"{batch.id}_{kind}.jsonl",
            purpose="batch_output",
            lifetime_s=batch.output_lifetime_s,
            batch=batch.id,
            lease=self.turn.lease,
        )
        file_id = batch.output_id if kind == "output" else batch.error_id
        try:
            return await self.store.publish(batch.tenant, file_id, order) is not None
        except (ControlUnavailable, StorageUnavailable):
            raise
        except ManyloraError as error:
            raise LeaseLost(error.message) from error


async def _grown(files: TenantFiles, tenant: TenantId, file_id: str) -> AsyncIterator[bytes]:
    """Yield the bytes of a file of results; none before its first result."""
    try:
        async for chunk in files.chunks(tenant, file_id):
            yield chunk
    except ResourceNotFound:
        return
