"""The run of one batch: its lines side by side, each result on the disk before it counts, and the end."""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from manylora.clock import Clock
from manylora.errors import (
    AdapterError,
    EngineFault,
    IncompleteGeneration,
    ManyloraError,
    StorageUnavailable,
    TenantSuspended,
)
from manylora.http.callers import Caller
from manylora.server.access.access import Access
from manylora.server.batches.line_replies import LineReplies, expired_result, failed_result
from manylora.server.batches.lines import BatchLine, LineResult, Mark, mark_of, pending_lines, result_line
from manylora.server.batches.stored_batch import BatchError, BatchStatus, StoredBatch
from manylora.server.batches.tenant_batches import TenantBatches
from manylora.server.storage.files import TenantFiles

log = logging.getLogger(__name__)

MOST_FAULTS = 3
"""Runs of a line that end with a fault of its adapter or of the engine, before that is the line's result."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""Seconds between two attempts of a line that a limit or the server refused."""
EXPIRED_AT_ONCE = 500
"""Lines without a run that are written together."""
_OF_THE_LINE = (AdapterError, EngineFault, IncompleteGeneration)


@dataclass(slots=True)
class LineNumbers:
    """Lines that run now, and totals of those that got a result since the start."""

    running: int = 0
    completed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobParts:
    """The parts of the server that all jobs share.

    slots           places of the lines of all batches under way
    counts          the lines of all batches, for the metrics
    lines_at_once   number of those places
    max_line_bytes  of a line of the input
    """

    batches: TenantBatches
    files: TenantFiles
    access: Access
    replies: LineReplies
    clock: Clock
    slots: asyncio.Semaphore
    counts: LineNumbers
    lines_at_once: int
    max_line_bytes: int


@dataclass(slots=True)
class Job:
    """One batch under way. `abort` ends its lines, at no cost; those without a result run again after a restart.

    done        digests of the ids of lines with a result
    is_stopped  whether the server ends
    """

    batch: StoredBatch
    parts: JobParts
    done: set[Mark] = field(default_factory=set)
    is_stopped: bool = False
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    async def run(self) -> None:
        """Run the lines without a result, then end the batch. Raises `OSError` if the input cannot be read."""
        if self.batch.status is BatchStatus.IN_PROGRESS:
            await self._run_lines()
        while not self.is_stopped:
            try:
                await self._end()
            except StorageUnavailable:
                await asyncio.sleep(LONGEST_WAIT_S)
            else:
                return

    def abort(self) -> None:
        for task in self._tasks:
            task.cancel()

    @property
    def is_expired(self) -> bool:
        return self.parts.clock.wall_s() >= self.batch.expires_s

    @property
    def has_turn(self) -> bool:
        """Return whether lines may begin or be repeated."""
        return not self.is_stopped and self.batch.status is BatchStatus.IN_PROGRESS and not self.is_expired

    # ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _run_lines(self) -> None:
        places = asyncio.Semaphore(self._lines_at_once())
        lines = self._pending()
        try:
            while True:
                await places.acquire()
                line = next(lines, None) if self.has_turn and self._has_room() else None
                if line is None:
                    break
                task = asyncio.create_task(self._run_line(line))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                task.add_done_callback(lambda _: places.release())
            while self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            self.abort()

    def _lines_at_once(self) -> int:
        """Return the places of this batch: of the tenant's sequences at one time it takes half."""
        try:
            limits = [limits.concurrent_streams for _, limits in self._caller().limits]
        except ManyloraError:
            limits = []
        return min([self.parts.lines_at_once, *(max(1, most // 2) for most in limits if most is not None)])

    def _pending(self) -> Iterator[BatchLine]:
        batch, parts = self.batch, self.parts
        path = parts.files.path(batch.tenant, batch.input_id)
        return pending_lines(path, batch.endpoint, self.done, parts.max_line_bytes)

    def _has_room(self) -> bool:
        if self.parts.files.has_room(self.batch.tenant):
            return True
        message = "the files of the tenant have as many bytes as they may (storage.tenant_bytes)"
        self.batch.errors = [BatchError(code="storage_limit_exceeded", message=message)]
        return False

    async def _run_line(self, line: BatchLine) -> None:
        """Repeat a line until it has a result, or its batch has no turn any more."""
        wait_s, faults = FIRST_WAIT_S, 0
        while self.has_turn:
            try:
                async with self.parts.slots:
                    await self._reply(line)
                return
            except ManyloraError as error:
                faults += isinstance(error, _OF_THE_LINE)
                pause_s = self._pause_s(error, wait_s, faults)
                if pause_s is None:
                    await self._keep(failed_result(line, error))
                    return
            except Exception as error:  # an error of the program is one line's, not the batch's
                log.exception("batch.line_failed batch=%s", self.batch.id)
                await self._keep(failed_result(line, error))
                return
            await asyncio.sleep(pause_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _reply(self, line: BatchLine) -> None:
        self.parts.counts.running += 1
        try:
            await self.parts.replies.reply(self.batch.endpoint, line, self._caller(), self._keep)
        finally:
            self.parts.counts.running -= 1

    @staticmethod
    def _pause_s(error: ManyloraError, wait_s: float, faults: int) -> float | None:
        """Return the seconds before the next attempt; None: the error is the line's result."""
        if isinstance(error, TenantSuspended):
            return LONGEST_WAIT_S
        if isinstance(error, _OF_THE_LINE) and (faults >= MOST_FAULTS or not error.is_retryable):
            return None
        return None if error.retry_after_s is None else max(wait_s, min(error.retry_after_s, LONGEST_WAIT_S))

    def _caller(self) -> Caller:
        return self.parts.access.batch_caller(self.batch.tenant, self.batch.key, self.batch.origin)

    async def _keep(self, result: LineResult) -> None:
        """Write a result. While the disk takes none, try on, unless the server ends."""
        batch, response = self.batch, result.response
        is_output = response is not None and response.status_code < 400
        file_id = batch.output_id if is_output else batch.error_id
        while True:
            try:
                await self.parts.files.append(batch.tenant, file_id, result_line(result))
                break
            except StorageUnavailable:
                if self.is_stopped:
                    raise asyncio.CancelledError from None
                await asyncio.sleep(FIRST_WAIT_S)
        self.done.add(mark_of(result.custom_id))
        if is_output:
            batch.completed += 1
            self.parts.counts.completed += 1
        else:
            batch.failed += 1
            self.parts.counts.failed += 1

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _end(self) -> None:
        """Write the errors of lines that did not run, make the results visible, and end the batch."""
        batch = self.batch
        await self.parts.batches.save(batch, BatchStatus.FINALIZING, only_from=(BatchStatus.IN_PROGRESS,))
        if batch.status is BatchStatus.CANCELLING:
            end = BatchStatus.CANCELLED
        elif batch.errors:
            end = BatchStatus.FAILED
        elif len(self.done) < batch.total:
            end = BatchStatus.EXPIRED
            await self._expire_lines()
        else:
            end = BatchStatus.EXPIRED if BatchStatus.EXPIRED.value in batch.moments else BatchStatus.COMPLETED
        batch.has_output = await self._publish(batch.output_id, "output")
        batch.has_errors = await self._publish(batch.error_id, "error")
        await self.parts.batches.save(batch, end)
        log.info("batch.ended batch=%s status=%s completed=%d failed=%d", batch.id, end, batch.completed, batch.failed)

    async def _expire_lines(self) -> None:
        batch = self.batch
        batch.moments = {**batch.moments, BatchStatus.EXPIRED.value: int(self.parts.clock.wall_s())}
        await self.parts.batches.save(batch)
        lines = self._pending()
        while some := list(islice(lines, EXPIRED_AT_ONCE)):
            data = b"".join(result_line(expired_result(line)) for line in some)
            await self.parts.files.append(batch.tenant, batch.error_id, data)
            self.done.update(mark_of(line.custom_id) for line in some)
            batch.failed += len(some)
            self.parts.counts.failed += len(some)

    async def _publish(self, file_id: str, kind: str) -> bool:
        batch = self.batch
        published = await self.parts.files.publish(
            batch.tenant,
            file_id,
            name=f"{batch.id}_{kind}.jsonl",
            purpose="batch_output",
            lifetime_s=batch.output_lifetime_s,
        )
        return published is not None
