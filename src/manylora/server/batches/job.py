"""The run of one batch: its validation, its lines side by side, each result on the disk before it counts, the end."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import msgspec

from manylora.clock import Clock
from manylora.errors import (
    AdapterError,
    ControlUnavailable,
    EngineFault,
    IncompleteGeneration,
    ManyloraError,
    ResourceNotFound,
    StorageUnavailable,
    TenantSuspended,
)
from manylora.http.callers import Caller
from manylora.server.access.access import Access
from manylora.server.batches.line_replies import LineReplies, expired_result, failed_result, uncancelled
from manylora.server.batches.lines import BatchLine, LineResult, check_input, mark_of, pending_lines, result_line
from manylora.server.batches.results import BatchResults, LeaseLost
from manylora.server.storage.storage import Storage
from manylora.stored.batches import BatchChange, BatchError, BatchStatus, BatchTurn, StoredBatch

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
    max_lines       of a batch
    max_line_bytes  of a line of the input
    """

    storage: Storage
    access: Access
    replies: LineReplies
    clock: Clock
    slots: asyncio.Semaphore
    counts: LineNumbers
    lines_at_once: int
    max_lines: int
    max_line_bytes: int


class Job:
    """One batch under way on this edge. `abort` ends its lines, at no cost; those without a result run again."""

    def __init__(self, turn: BatchTurn, parts: JobParts) -> None:
        self.batch: StoredBatch = turn.batch
        self.parts = parts
        self.lease = turn.lease
        self.has_input = True
        self.results = BatchResults(turn, parts.storage.store, self.note)
        self._input = parts.storage.folder / f"{turn.batch.id}.jsonl"
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Check the input or run the lines without a result, then end the batch. It ends early without the lease."""
        try:
            await self._fetch()
            if self.batch.status is BatchStatus.VALIDATING:
                await self._validate()
                return
            await self._read_results()
            if self.batch.status is BatchStatus.IN_PROGRESS:
                await self._run_lines()
            await self._patiently(self._end)
        except LeaseLost as lost:
            if not self.is_stopped:
                log.warning("batch.lease_lost batch=%s lease=%d cause=%s", self.batch.id, self.lease, lost)
        finally:
            self._input.unlink(missing_ok=True)

    def note(self, status: BatchStatus) -> None:
        """Take the state that the control plane knows: any edge may have cancelled the batch."""
        if status is BatchStatus.CANCELLING and self.batch.status in (BatchStatus.IN_PROGRESS, BatchStatus.VALIDATING):
            self.batch.moments.setdefault(status.value, int(self.parts.clock.wall_s()))
            self.batch.status = status

    def stop(self) -> None:
        """End without an end of the batch: another edge, or the next start, goes on with it."""
        self.results.is_stopped = True
        self.abort()

    @property
    def is_stopped(self) -> bool:
        return self.results.is_stopped

    def abort(self) -> None:
        for task in self._tasks:
            task.cancel()

    @property
    def is_expired(self) -> bool:
        return self.parts.clock.wall_s() >= self.batch.expires_s

    @property
    def has_turn(self) -> bool:
        """Return whether lines may begin or be repeated."""
        is_running = self.batch.status is BatchStatus.IN_PROGRESS and not self.batch.errors
        return is_running and not self.is_stopped and not self.is_expired

    # ── the input ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _fetch(self) -> None:
        batch, storage = self.batch, self.parts.storage

        async def fetch() -> None:
            try:
                await storage.files.fetch(batch.tenant, batch.input_id, self._input)
            except ResourceNotFound:
                self.has_input = False
                message = "the input file cannot be read"
                batch.errors = [BatchError(code="file_unreadable", message=message)]

        await self._patiently(fetch)

    async def _validate(self) -> None:
        """Let the batch run or fail."""
        batch, parts = self.batch, self.parts
        if self.has_input:
            found = await asyncio.to_thread(
                check_input,
                self._input,
                batch.endpoint,
                max_lines=parts.max_lines,
                max_line_bytes=parts.max_line_bytes,
            )
            batch.total, batch.errors = (0 if found.errors else found.total), found.errors
        status = BatchStatus.FAILED if batch.errors else BatchStatus.IN_PROGRESS
        await self._patiently(lambda: self._change(status, only_from=(BatchStatus.VALIDATING,), is_over=True))

    async def _read_results(self) -> None:
        async def read() -> None:
            self.results.done.clear()
            try:
                await self.results.read(self.parts.storage.files)
            except msgspec.DecodeError as error:
                log.error("batch.results_unreadable batch=%s error=%s", self.batch.id, error)
                raise LeaseLost("the results cannot be read") from error

        await self._patiently(read)

    async def _patiently(self, work: Callable[[], Awaitable[None]]) -> None:
        """Repeat until the control plane and the disks take it. Raises `LeaseLost` where the server ends first."""
        wait_s = FIRST_WAIT_S
        while not self.is_stopped:
            try:
                return await work()
            except (ControlUnavailable, StorageUnavailable):
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        raise LeaseLost("the server ends")

    async def _change(
        self, status: BatchStatus, *, only_from: tuple[BatchStatus, ...] = (), is_over: bool = False
    ) -> None:
        """Bring the batch into a state. Raises `LeaseLost`, `ControlUnavailable`, `StorageUnavailable`."""
        change = BatchChange(batch=self.batch, lease=self.lease, status=status, only_from=only_from, is_over=is_over)
        try:
            now = await self.parts.storage.store.change_batch(change)
        except (ControlUnavailable, StorageUnavailable):
            raise
        except ManyloraError as error:
            raise LeaseLost(error.message) from error
        self.batch.status, self.batch.moments = now.status, now.moments

    # ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _run_lines(self) -> None:
        if not self.has_input:
            return
        places = asyncio.Semaphore(self._lines_at_once())
        lines = self._pending()
        try:
            while True:
                await places.acquire()
                # In a thread: where another edge left off, all lines with a result come before the next one.
                line = await asyncio.to_thread(next, lines, None) if self.has_turn else None
                if line is None or self.batch.errors or not self._has_room():
                    break
                task = asyncio.create_task(self._run_line(line))
                self._tasks.add(task)
                task.add_done_callback(self._note_end)
                task.add_done_callback(lambda _: places.release())
            while self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            self.abort()

    def _note_end(self, task: "asyncio.Task[None]") -> None:
        """Take the end of a line. One whose error could not be written fails the batch: it has no result."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("batch.result_lost batch=%s", self.batch.id, exc_info=error)
            message = (
                "an internal error of the server kept the result of a line from being written; create the batch again"
            )
            self.batch.errors = [BatchError(code="internal_error", message=message)]

    def _lines_at_once(self) -> int:
        """Return the places of this batch: of the tenant's sequences at one time it takes half."""
        try:
            limits = [limits.concurrent_streams for _, limits in self._caller().limits]
        except ManyloraError:
            limits = []
        return min([self.parts.lines_at_once, *(max(1, most // 2) for most in limits if most is not None)])

    def _pending(self) -> Iterator[BatchLine]:
        return pending_lines(self._input, self.batch.endpoint, self.results.done, self.parts.max_line_bytes)

    def _has_room(self) -> bool:
        if self.results.has_room:
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
                    await uncancelled(self._keep(failed_result(line, error)))
                    return
            except Exception as error:  # an error of the program is one line's, not the batch's
                log.exception("batch.line_failed batch=%s", self.batch.id)
                await uncancelled(self._keep(failed_result(line, error)))
                return
            await asyncio.sleep(pause_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _reply(self, line: BatchLine) -> None:
        self.parts.counts.running += 1
        try:
            await self.parts.replies.reply(self.batch.endpoint, line, self._caller(), self._keep, batch=self.batch.id)
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
        """Write a result. Without the lease it is no result, and the line costs nothing."""
        response = result.response
        is_output = response is not None and response.status_code < 400
        try:
            await self.results.append(result_line(result), {mark_of(result.custom_id)}, is_output=is_output)
        except LeaseLost:
            self.stop()
            raise asyncio.CancelledError from None
        if is_output:
            self.parts.counts.completed += 1
        else:
            self.parts.counts.failed += 1

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _end(self) -> None:
        """Write the errors of lines that did not run, make the results visible, and end the batch."""
        batch = self.batch
        await self._change(BatchStatus.FINALIZING, only_from=(BatchStatus.IN_PROGRESS,))
        if batch.status is BatchStatus.CANCELLING:
            end = BatchStatus.CANCELLED
        elif batch.errors:
            end = BatchStatus.FAILED
        elif len(self.results.done) < batch.total:
            end = BatchStatus.EXPIRED
            await self._expire_lines()
        else:
            end = BatchStatus.EXPIRED if BatchStatus.EXPIRED.value in batch.moments else BatchStatus.COMPLETED
        batch.has_output = await self.results.publish("output")
        batch.has_errors = await self.results.publish("error")
        batch.completed, batch.failed = self.results.completed, self.results.failed
        await self._change(end)
        log.info("batch.ended batch=%s status=%s completed=%d failed=%d", batch.id, end, batch.completed, batch.failed)

    async def _expire_lines(self) -> None:
        batch = self.batch
        batch.moments = {**batch.moments, BatchStatus.EXPIRED.value: int(self.parts.clock.wall_s())}
        await self._change(batch.status)
        lines = self._pending()
        while some := await asyncio.to_thread(lambda: list(islice(lines, EXPIRED_AT_ONCE))):
            data = b"".join(result_line(expired_result(line)) for line in some)
            await self.results.append(data, {mark_of(line.custom_id) for line in some}, is_output=False)
            self.parts.counts.failed += len(some)
