"""The runner of the batches of one edge: it takes batches from the control plane, and runs one of each tenant.

The tenants share the places of lines in turn, and the engine shares its steps among their lines as among any requests.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from manylora.clock import Clock
from manylora.config.settings import Config
from manylora.errors import ManyloraError, ResourceNotFound
from manylora.http.callers import Caller
from manylora.ids import TenantId
from manylora.server.access.access import Access
from manylora.server.batches.job import LONGEST_WAIT_S, Job, JobParts, LineNumbers
from manylora.server.batches.line_replies import LineReplies
from manylora.server.http.routing import Handler
from manylora.server.storage.storage import Storage
from manylora.stored.batches import BatchStatus, StoredBatch, TakeWish, mint_batch_id
from manylora.stored.files import mint_file_id
from manylora.system.printable import printable
from manylora.tenancy import TenantState

log = logging.getLogger(__name__)

CANCEL_WAIT_S = 600
"""Seconds for which the lines under way of a cancelled batch go on, as OpenAI's do."""
MOST_JOBS, TAKEN_AT_ONCE = 256, 4
"""Batches under way on one edge, and those that it takes in one look, so that the edges share them."""
RENEWALS = 3
"""Renewals of a lease in its time, so that one that fails loses no batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchWish:
    """The order of a batch, from its request."""

    endpoint: str
    input_id: str
    metadata: dict[str, str] | None = None
    output_lifetime_s: float | None = None


class BatchRunner:
    """The batches that one edge runs, in one event loop. `start` follows the engine's, `stop` goes before it."""

    def __init__(
        self,
        storage: Storage,
        config: Config,
        *,
        access: Access,
        handlers: Mapping[str, Handler],
        clock: Clock,
        edge: str,
        bases: Sequence[str],
    ) -> None:
        """`handlers` are those of the endpoints of batches; `edge` is this server's name, `bases` are its models."""
        self._bases = tuple(bases)
        self._store = storage.store
        self._access = access
        self._clock = clock
        self._edge = edge
        self._look_s = min(config.batches.check_s, config.batches.lease_s / RENEWALS)
        self._parts = JobParts(
            storage=storage,
            access=access,
            replies=LineReplies(handlers, clock),
            clock=clock,
            slots=asyncio.Semaphore(config.batches.lines_at_once),
            counts=LineNumbers(),
            lines_at_once=config.batches.lines_at_once,
            max_lines=config.batches.max_lines,
            max_line_bytes=config.server.max_body_bytes,
        )
        self._jobs: dict[str, Job] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._looks: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._states: dict[BatchStatus, int] = {}  # of all batches of the control plane, at the last look

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(self._parts.replies.handlers)

    def numbers(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Return the values of the metrics of batches, by name and labels: states of all, lines of this edge's."""
        lines, jobs = self._parts.counts, [job for job in self._jobs.values() if not job.batch.is_ended]
        left = sum(job.batch.total - len(job.results.done) for job in jobs)
        return {
            "manylora_batches": {(status.value,): self._states.get(status, 0) for status in BatchStatus},
            "manylora_batch_lines": {("queued",): max(0, left - lines.running), ("running",): lines.running},
            "manylora_batch_lines_finished": {("completed",): lines.completed, ("failed",): lines.failed},
        }

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Begin to take batches: new ones, and those that an earlier or a lost edge left."""
        self._looks = asyncio.create_task(self._look_on())

    async def stop(self) -> None:
        """End the lines under way, which cost nothing and run again; the batches go on elsewhere, or after a start."""
        if self._looks is not None:
            self._looks.cancel()
            await asyncio.gather(self._looks, return_exceptions=True)
        for job in self._jobs.values():
            job.stop()
        done, slow = await asyncio.wait(self._running, timeout=LONGEST_WAIT_S) if self._running else (set(), set())
        for task in slow:
            task.cancel()
        await asyncio.gather(*done, *slow, return_exceptions=True)

    # ── orders ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def create(self, caller: Caller, wish: BatchWish) -> StoredBatch:
        """Store a batch and begin its validation.

        Raises `ResourceNotFound`, `InvalidParameter`, `StorageLimitExceeded`, `StorageUnavailable`.
        """
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
            bases=self._bases,
        )
        try:
            created = await self._store.create_batch(batch)
        except ResourceNotFound as error:
            text = f"No such File object: {printable(wish.input_id[:80])}"
            raise ResourceNotFound(text, parameter="input_file_id") from error
        self._wanted.set()
        return created

    async def of(self, tenant: TenantId) -> Sequence[StoredBatch]:
        """Return the batches of a tenant, the oldest first."""
        return await self._store.batches(tenant)

    async def get(self, tenant: TenantId, batch_id: str) -> StoredBatch:
        """Return a batch of a tenant. Raises `ResourceNotFound`, also for a batch of another tenant."""
        try:
            return await self._store.batch(tenant, batch_id)
        except ResourceNotFound as error:
            raise _no_batch(batch_id) from error

    async def cancel(self, tenant: TenantId, batch_id: str) -> StoredBatch:
        """Begin no further line of a batch; those under way end.

        Raises `ResourceNotFound`, `InvalidParameter` for one that has ended.
        """
        try:
            batch = await self._store.cancel_batch(tenant, batch_id)
        except ResourceNotFound as error:
            raise _no_batch(batch_id) from error
        if (job := self._jobs.get(batch_id)) is not None:
            job.note(batch.status)
        return batch

    # ── work ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _look_on(self) -> None:
        while True:
            self._wanted.clear()
            try:
                await self.look()
            except ManyloraError as error:
                log.warning("batch.look_failed error=%s", error.message)
            except Exception:  # the looks must go on after any error: they renew leases and end batches
                log.exception("batch.look_failed")
            try:
                async with asyncio.timeout(self._look_s):
                    await self._wanted.wait()
            except TimeoutError:
                continue

    async def look(self) -> None:
        """Renew the leases, end what has lasted too long, and take further batches."""
        now_s = self._clock.wall_s()
        for job in self._jobs.values():
            cancelled_s = job.batch.moments.get(BatchStatus.CANCELLING.value)
            if job.is_expired or (cancelled_s is not None and now_s >= cancelled_s + CANCEL_WAIT_S):
                job.abort()
            if self._access.state_of(job.batch.tenant) is TenantState.CLOSED:
                job.stop()
        await self._renew()
        most = min(TAKEN_AT_ONCE, MOST_JOBS - len(self._jobs))
        wish = TakeWish(edge=self._edge, most=most, held=tuple(self._jobs), bases=self._bases)
        taken = await self._store.take_batches(wish)
        self._states = taken.states
        for turn in taken.turns:
            job = self._jobs[turn.batch.id] = Job(turn, self._parts)
            task = asyncio.create_task(self._run(job))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _renew(self) -> None:
        held = {batch_id: job for batch_id, job in self._jobs.items() if not job.is_stopped}
        if not held:
            return
        renewed = await self._store.renew_batches((batch_id, job.lease) for batch_id, job in held.items())
        for batch_id, job in held.items():
            if (status := renewed.states.get(batch_id)) is not None:
                job.note(status)
            else:
                job.stop()

    async def _run(self, job: Job) -> None:
        try:
            await job.run()
        except Exception:  # nothing awaits this task; the lease ends, and the batch is taken again
            log.exception("batch.failed batch=%s", job.batch.id)
        finally:
            del self._jobs[job.batch.id]
            self._wanted.set()


def _no_batch(batch_id: str) -> ResourceNotFound:
    return ResourceNotFound(f"No batch found with id '{printable(batch_id[:80])}'", parameter="batch_id")
