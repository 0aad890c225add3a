"""The runner of all batches of a server: it takes up those that an earlier server left, and runs one of each tenant.

The tenants share the places of lines in turn, and the engine shares its steps among their lines as among any requests.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from manylora.clock import Clock
from manylora.config.settings import Config
from manylora.errors import InvalidParameter, StorageLimitExceeded, StorageUnavailable
from manylora.http.callers import Caller
from manylora.ids import TenantId
from manylora.server.access.access import Access
from manylora.server.batches.job import LONGEST_WAIT_S, Job, JobParts, LineNumbers
from manylora.server.batches.line_replies import LineReplies
from manylora.server.batches.lines import Mark, check_input, read_results
from manylora.server.batches.stored_batch import BatchError, BatchStatus, StoredBatch, mint_batch_id
from manylora.server.batches.tenant_batches import TenantBatches
from manylora.server.http.routing import Handler
from manylora.server.storage.files import mint_file_id
from manylora.server.storage.storage import Storage
from manylora.tenancy import TenantState

log = logging.getLogger(__name__)

CANCEL_WAIT_S = 600
"""Seconds for which the lines under way of a cancelled batch go on, as OpenAI's do."""
BATCH_PURPOSE = "batch"
_MAY_CANCEL = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchWish:
    """The order of a batch, from its request."""

    endpoint: str
    input_id: str
    metadata: dict[str, str] | None = None
    output_lifetime_s: float | None = None


class BatchRunner:
    """All batches of one server. It belongs to one event loop. `start` follows the engine's, `stop` goes before it."""

    def __init__(
        self, storage: Storage, config: Config, *, access: Access, handlers: Mapping[str, Handler], clock: Clock
    ) -> None:
        """`handlers` has the handler of each endpoint of batches."""
        self._storage, self._files = storage, storage.files
        self._access = access
        self._clock = clock
        self._settings = config.batches
        self.batches = TenantBatches(storage.folder, clock)
        self._parts = JobParts(
            batches=self.batches,
            files=storage.files,
            access=access,
            replies=LineReplies(handlers, clock),
            clock=clock,
            slots=asyncio.Semaphore(config.batches.lines_at_once),
            counts=LineNumbers(),
            lines_at_once=config.batches.lines_at_once,
            max_line_bytes=config.server.max_body_bytes,
        )
        self._jobs: dict[str, Job] = {}
        self._workers: dict[TenantId, asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[None]] = set()
        self._done: dict[str, set[Mark]] = {}  # of batches that an earlier server left
        self._is_stopped = False
        self.kept_requests: set[str] = set()
        """Ids of the HTTP requests of lines whose results are on the disk, of batches that have not ended."""
        self._read_left()

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(self._parts.replies.handlers)

    def numbers(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Return the values of the metrics of batches, by name and labels."""
        lines, states = self._parts.counts, Counter(batch.status for batch in self.batches)
        left = sum(batch.total - batch.completed - batch.failed for batch in self.batches if not batch.is_ended)
        return {
            "manylora_batches": {(status.value,): states[status] for status in BatchStatus},
            "manylora_batch_lines": {("queued",): max(0, left - lines.running), ("running",): lines.running},
            "manylora_batch_lines_finished": {("completed",): lines.completed, ("failed",): lines.failed},
        }

    def _read_left(self) -> None:
        """Read the results of the batches that have not ended. Raises `OSError`."""
        for batch in self.batches:
            if batch.is_ended:
                continue
            done: set[Mark] = set()
            counts = []
            for file_id in (batch.output_id, batch.error_id):
                found = read_results(self._files.path(batch.tenant, file_id))
                self._files.cut(batch.tenant, file_id, found.size)
                done |= found.marks
                counts.append(len(found.marks))
                self.kept_requests |= found.requests
            batch.completed, batch.failed = counts
            self._done[batch.id] = done

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Take up the batches that have not ended, and begin to look for those whose time is over."""
        left = [batch for batch in self.batches if not batch.is_ended]
        claimed = {(batch.tenant, file_id) for batch in left for file_id in (batch.output_id, batch.error_id)}
        await self._files.discard_unclaimed(claimed)
        for batch in left:
            self._take_up(batch)
        self._spawn(self._look_on())

    async def stop(self) -> None:
        """End the lines under way, which cost nothing and run again after the next start."""
        self._is_stopped = True
        for job in self._jobs.values():
            job.is_stopped = True
            job.abort()
        tasks = [*self._workers.values(), *self._others]
        for task in self._others:
            task.cancel()
        done, slow = await asyncio.wait(tasks, timeout=LONGEST_WAIT_S) if tasks else (set(), set())
        for task in slow:
            task.cancel()
        await asyncio.gather(*done, *slow, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    # ── orders ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def create(self, caller: Caller, wish: BatchWish) -> StoredBatch:
        """Store a batch and begin its validation.

        Raises `ResourceNotFound`, `InvalidParameter`, `StorageLimitExceeded`, `StorageUnavailable`.
        """
        file = self._files.get(caller.tenant, wish.input_id, field="input_file_id")
        if file.purpose != BATCH_PURPOSE:
            raise InvalidParameter(
                f"`input_file_id` must be a file of the purpose `{BATCH_PURPOSE}`. Given: `{file.purpose}`",
                parameter="input_file_id",
            )
        most = self._settings.tenant_batches
        if len(self.batches.of(caller.tenant)) >= most:
            raise StorageLimitExceeded(f"the tenant has {most} batches, the limit (batches.tenant_batches)")
        batch = StoredBatch(
            id=mint_batch_id(),
            tenant=caller.tenant,
            key=caller.key,
            origin=caller.origin,
            endpoint=wish.endpoint,
            input_id=wish.input_id,
            output_id=mint_file_id(),
            error_id=mint_file_id(),
            created_ms=int(1000 * self._clock.wall_s()),
            metadata=wish.metadata,
            output_lifetime_s=wish.output_lifetime_s,
        )
        await self.batches.save(batch, BatchStatus.VALIDATING)
        self._take_up(batch)
        return batch

    async def cancel(self, batch: StoredBatch) -> StoredBatch:
        """Begin no further line of a batch; those under way end. Raises `InvalidParameter` for one that has ended."""
        if batch.status not in (*_MAY_CANCEL, BatchStatus.CANCELLING):
            raise InvalidParameter(f"Cannot cancel a batch with status '{batch.status}'.", parameter="batch_id")
        await self.batches.save(batch, BatchStatus.CANCELLING, only_from=_MAY_CANCEL)
        self._wake(batch.tenant)
        return batch

    async def delete_file(self, tenant: TenantId, file_id: str) -> None:
        """Delete a file. Raises `ResourceNotFound`, and `InvalidParameter` for the input of a batch under way."""
        self._files.get(tenant, file_id)
        for batch in self.batches.of(tenant):
            if batch.input_id == file_id and not batch.is_ended:
                raise InvalidParameter(
                    f"the file is the input of {batch.id}, which has not ended: cancel it first", parameter="file_id"
                )
        await self._files.delete(tenant, file_id)

    # ── work ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _take_up(self, batch: StoredBatch) -> None:
        if batch.status is BatchStatus.VALIDATING:
            self._spawn(self._validate(batch))
        else:
            self._wake(batch.tenant)

    async def _validate(self, batch: StoredBatch) -> None:
        """Check the input, and let the batch run or fail."""
        path = self._files.path(batch.tenant, batch.input_id)

        def check() -> tuple[int, list[BatchError]]:
            bounds = {"max_lines": self._settings.max_lines, "max_line_bytes": self._parts.max_line_bytes}
            try:
                found = check_input(path, batch.endpoint, **bounds)
            except OSError as error:
                return 0, [BatchError(code="file_unreadable", message=f"the input file cannot be read: {error}")]
            return found.total, found.errors

        total, errors = await asyncio.to_thread(check)
        batch.total, batch.errors = (0 if errors else total), errors
        status = BatchStatus.FAILED if errors else BatchStatus.IN_PROGRESS
        await self._patiently(lambda: self.batches.save(batch, status, only_from=(BatchStatus.VALIDATING,)))
        self._wake(batch.tenant)

    async def _patiently(self, write: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Repeat a write until the disk takes it."""
        while True:
            try:
                return await write()
            except StorageUnavailable:
                await asyncio.sleep(LONGEST_WAIT_S)

    def _wake(self, tenant: TenantId) -> None:
        if not self._is_stopped and tenant not in self._workers:
            self._workers[tenant] = asyncio.create_task(self._work_for(tenant))

    async def _work_for(self, tenant: TenantId) -> None:
        """Run the batches of a tenant one after the other, the oldest first."""
        try:
            while (batch := self._next(tenant)) is not None:
                job = self._jobs[batch.id] = Job(batch, self._parts, self._done.pop(batch.id, set()))
                try:
                    await job.run()
                except OSError as error:
                    log.error("batch.input_unreadable batch=%s error=%s", batch.id, error)
                    message = f"the input file cannot be read: {error.strerror}"
                    batch.errors = [BatchError(code="file_unreadable", message=message)]
                    await self._patiently(lambda batch=batch: self.batches.save(batch, BatchStatus.FAILED))  # type: ignore[misc]
                finally:
                    del self._jobs[batch.id]
        finally:
            del self._workers[tenant]

    def _next(self, tenant: TenantId) -> StoredBatch | None:
        if self._is_stopped or self._access.state_of(tenant) is TenantState.CLOSED:
            return None
        waiting = (BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING, BatchStatus.CANCELLING)
        return next((batch for batch in self.batches.of(tenant) if batch.status in waiting), None)

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _look_on(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:  # the looks must go on after any error: they end batches and free the disk
                log.exception("batch.look_failed")
            await asyncio.sleep(self._settings.check_s)

    async def look(self) -> None:
        """End what has lasted too long, and delete what has been kept long enough or whose tenant is closed."""
        now_s = self._clock.wall_s()
        for job in self._jobs.values():
            cancelled_s = job.batch.moments.get(BatchStatus.CANCELLING.value)
            if job.is_expired or (cancelled_s is not None and now_s >= cancelled_s + CANCEL_WAIT_S):
                job.abort()
        await self._delete_closed()
        in_use = {(batch.tenant, batch.input_id) for batch in self.batches if not batch.is_ended}
        await self._storage.delete_expired(in_use)
        kept_s = self._files.retention_s
        for batch in self.batches:
            if batch.is_ended and now_s >= max(batch.moments.values(), default=0) + kept_s:
                await self.batches.delete(batch)

    async def _delete_closed(self) -> None:
        """Delete everything of the tenants that are closed."""
        for tenant in {*self._storage.tenants, *(batch.tenant for batch in self.batches)}:
            if self._access.state_of(tenant) is not TenantState.CLOSED:
                continue
            for job in [job for job in self._jobs.values() if job.batch.tenant == tenant]:
                job.is_stopped = True
                job.abort()
            if (worker := self._workers.get(tenant)) is not None:
                await asyncio.wait([worker])
            for batch in self.batches.of(tenant):
                await self.batches.delete(batch)
            await self._storage.delete_all_of(tenant)
