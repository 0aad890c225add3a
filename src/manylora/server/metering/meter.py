"""Metering: one usage record for every inference request, for every kind of end and after any kill.

`Meter.open` writes the begin of a request, and `Meter.note` takes the end of each of its sequences. After the last end
the meter makes the record, writes it to disk, and ships it to the control plane until that has it. At the start
`recovery.py` closes the requests that an earlier edge left open.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from manylora.charging import Charge, SequenceUse, charge_of
from manylora.clock import Clock
from manylora.engine.events import Finished, FinishReason
from manylora.engine.request import Request
from manylora.errors import ConfigInvalid, ControlUnavailable, ManyloraError, RequestRejected, UsageUnrecorded
from manylora.ids import KeyId, RequestId, TenantId, mint_usage_id
from manylora.server.access.control_client import ControlClient
from manylora.server.engine_client.messages import UndeliveredCount
from manylora.server.engine_client.streams import SequenceStream
from manylora.server.metering.journal import DeliveryJournal
from manylora.server.metering.records import Timings, charged, record_of, undelivered_record
from manylora.server.metering.recovery import lost_requests, recorded_links, remove_journals
from manylora.server.metering.sent_mark import mark_sent, unmark_sent
from manylora.server.metering.spool import Opened, Spool, hold_folders, segments_in
from manylora.stored.files import KeptQuestion

log = logging.getLogger(__name__)

SHIPMENT = 500
"""Largest number of records in a shipment."""
LONGEST_BACKOFF_S = 10.0
DRAIN_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Payer:
    """The tenant, the key and the HTTP request of some usage.

    is_batch  a line of a batch. Its record waits for `Meter.release`, so that no record is older than the line's result
    alias     the alias that the request named; None: none, or several
    is_shadow  a version that runs beside the one that answers
    """

    tenant: TenantId
    key: KeyId | None
    request_id: str
    is_batch: bool = False
    alias: str | None = None
    is_shadow: bool = False


class MeteredRequest(Protocol):
    """The owner of a request whose usage is recorded."""

    def timings(self) -> Timings:
        """Return the request's timings; the meter calls it after the end of the last sequence."""

    def note_charge(self, charge: Charge) -> None:
        """Take the charge; the meter calls it once, also for a charge of nothing."""


@dataclass(slots=True)
class OpenUsage:
    """The usage of a request under way.

    waiting    ids of the sequences without an end
    settled    done when the record is on the disk
    is_held    whether the record waits for `Meter.release`
    """

    opened: Opened
    owner: MeteredRequest
    waiting: set[RequestId]
    uses: dict[RequestId, SequenceUse] = field(default_factory=dict)
    settled: asyncio.Future[None] | None = None
    is_held: bool = False


class Meter:
    """The meter of one edge. All methods belong to its event loop."""

    def __init__(
        self,
        root: Path,
        *,
        clock: Clock,
        ship_s: float,
        durable_wait_s: float = 10.0,
        keeps_journals: bool = False,
        deployment: str | None = None,
    ) -> None:
        """Lock a folder below `root` and read the files of earlier edges.

        Args:  deployment  name of the dedicated deployment whose replica this edge is; None: it is none

        Raises `ConfigInvalid`, `DataTooNew`. The files of earlier edges change only in `recovered`.
        """
        self._held = hold_folders(root)
        self.folder = self._held[0].path
        self.edge = secrets.token_hex(8)
        self._clock = clock
        self._ship_s = ship_s
        self._durable_wait_s = durable_wait_s
        self._keeps_journals = keeps_journals
        self._deployment = deployment
        for folder in self._held:
            unmark_sent(folder.path)
        left = [(folder.path, edge, path) for folder in self._held for edge, path in segments_in(folder.path)]
        self._lost_edges = {edge for _, edge, _ in left}
        try:
            self._lost = lost_requests(left)
            self._recorded = recorded_links([folder.path for folder in self._held])
            self._spool = Spool(self.folder, self.edge, keeps_segments=keeps_journals)
        except OSError as error:
            self._release_folders()
            raise ConfigInvalid(f"metering.dir {root} cannot be used: {error.strerror}") from error
        except BaseException:
            self._release_folders()
            raise
        self.journal = self._new_journal(self.edge)
        """The engine client writes each frame to the journal before it delivers the frame."""
        self._journals = {self.edge: self.journal}
        self._open: dict[RequestId, OpenUsage] = {}
        self._shipping: asyncio.Task[None] | None = None
        self._shipment = SHIPMENT
        self._left = [path for _, _, path in left]
        self._is_recovered = False

    @property
    def num_open(self) -> int:
        """Number of requests without a record yet."""
        return len({usage.opened.id for usage in self._open.values()})

    @property
    def lost_lines(self) -> list[KeptQuestion]:
        """The lines of batches that earlier edges left open, those of each tenant together."""
        lost = [each.opened for each in self._lost if each.opened.is_batch and not each.opened.is_shadow]
        questions = []
        for tenant in sorted({each.tenant for each in lost}):
            own = [each for each in lost if each.tenant == tenant]
            requests = tuple(each.request_id for each in own)
            opened_ms = min(each.opened_ms for each in own)
            questions.append(KeptQuestion(tenant=tenant, requests=requests, opened_ms=opened_ms))
        return questions

    @property
    def failure(self) -> UsageUnrecorded | None:
        """The reason why requests are refused now; None: requests are accepted."""
        return self._spool.failure

    async def recovered(self, is_kept: Callable[[str], bool] = lambda request_id: False) -> None:
        """Close the requests that earlier edges left open, and delete old segments and journals after a sync.

        Args:  is_kept  returns whether the result of an HTTP request, by its id, is on the disk; it is charged then
        """
        if self._lost:
            log.warning("usage.recovered lost_requests=%d", len(self._lost))
        await asyncio.gather(
            *(self._spool.finish(each.record(is_kept=is_kept(each.opened.request_id))) for each in self._lost)
        )
        self._lost = []
        for path in reversed(self._left):
            self._spool.adopt(path)
        self._is_recovered = True
        if not self._keeps_journals:
            for folder in self._held:
                remove_journals(folder.path, but=self._journals)

    def begin_journal(self) -> DeliveryJournal:
        """Begin and return a journal for one more engine.

        Engines do not share a journal, so that a failed write ends the requests of its own engine alone.
        """
        journal = self._new_journal(secrets.token_hex(8))
        self._journals[journal.edge] = journal
        return journal

    def _new_journal(self, name: str) -> DeliveryJournal:
        return DeliveryJournal(
            self.folder, name, keeps_parts=self._keeps_journals, recorded=self._recorded, adopt=self._adopt
        )

    async def _adopt(self, counts: Sequence[UndeliveredCount]) -> None:
        """Record counts of a fleet's engines that have no edge; return once they are on the disk."""
        await asyncio.gather(*(self._spool.finish(undelivered_record(count, self.edge)) for count in counts))

    def start_shipping(self, client: ControlClient) -> None:
        self._shipping = asyncio.create_task(self._ship_on(client))

    def open(
        self,
        buyer: Payer,
        requests: Sequence[tuple[Request, int]],
        *,
        base: str,
        is_streamed: bool,
        owner: MeteredRequest,
        journal: str = "",
    ) -> OpenUsage:
        """Write the begin of a request, before any of its sequences reaches the engine.

        Args:    requests   the engine request of each sequence, with the number of its prompt
                 journal    the name of the journal of the base's engine; empty: that of the first engine
        Raises:  `UsageUnrecorded` if it cannot be written
        """
        adapter = requests[0][0].adapter
        opened = Opened(
            id=mint_usage_id(),
            tenant=buyer.tenant,
            key=buyer.key,
            request_id=buyer.request_id,
            base=base,
            adapter=None if adapter is None else adapter.id,
            adapter_source=None if adapter is None else adapter.source.value,
            adapter_owner=None if adapter is None or not adapter.tenant else TenantId(adapter.tenant),
            opened_ms=int(1000 * self._clock.wall_s()),
            is_streamed=is_streamed,
            life=journal or self.edge,
            requests=tuple((request.id, prompt, len(request.tokens)) for request, prompt in requests),
            is_batch=buyer.is_batch,
            alias=buyer.alias,
            is_shadow=buyer.is_shadow,
            deployment=self._deployment,
        )
        self._spool.open(opened)
        usage = OpenUsage(opened, owner, {request.id for request, _ in requests}, is_held=buyer.is_batch)
        for request, _ in requests:
            self._open[request.id] = usage
        return usage

    def withdraw(self, usage: OpenUsage, ids: Sequence[RequestId]) -> None:
        """Drop sequences that never reached the engine. A request without other sequences has no record."""
        for request_id in ids:
            usage.waiting.discard(request_id)
            self._open.pop(request_id, None)
        if usage.waiting:
            return
        if usage.uses:
            self._finish_whole(usage)
            return
        self._spool.drop(usage.opened.id)
        usage.owner.note_charge(charge_of([], is_streamed=usage.opened.is_streamed))

    def note(self, stream: SequenceStream, end: Finished) -> None:
        """Take the end of one sequence, also without a reader of its stream."""
        usage = self._open.pop(stream.request.id, None)
        if usage is None:
            return
        if end.failure is not None and end.failure.error == UsageUnrecorded.__name__:
            self._spool.note_failure(UsageUnrecorded(end.failure.message))
        prompt = next(number for each, number, _ in usage.opened.requests if each == stream.request.id)
        usage.uses[stream.request.id] = SequenceUse(
            prompt=prompt,
            prompt_tokens=len(stream.request.tokens),
            cached_tokens=end.counts.cached_tokens,
            committed=end.counts.completion_tokens,
            delivered=stream.num_tokens,
            reason=end.reason.value,
            computed_tokens=end.counts.computed_tokens,
            is_callers=end.reason is FinishReason.REJECTED
            and end.failure is not None
            and issubclass(end.failure.kind, RequestRejected),
        )
        usage.waiting.discard(stream.request.id)
        self._finish_whole(usage)

    def release(self, usage: OpenUsage, *, is_free: bool = False) -> None:
        """Let the record of a batch line be written: its result is on the disk, or it has none. It may be repeated.

        Args:  is_free  the line has no result and runs again: what it has used so far costs nothing
        """
        usage.is_held = False
        if is_free and usage.settled is None:
            reason = FinishReason.SHUTDOWN.value
            usage.uses = {request_id: replace(use, reason=reason) for request_id, use in usage.uses.items()}
        if usage.settled is None and usage.uses:
            self._finish_whole(usage)

    async def settle(self, usage: OpenUsage) -> None:
        """Wait until the record of a request is on the disk; call it after the ends of all its sequences."""
        if usage.settled is None:
            return
        try:
            async with asyncio.timeout(self._durable_wait_s):
                await asyncio.shield(usage.settled)
        except TimeoutError:
            log.error("usage.not_durable id=%s after_s=%g", usage.opened.id, self._durable_wait_s)

    async def stop(self, client: ControlClient) -> None:
        """Write the finished records, ship them for at most a few seconds, return leased credit, and close.

        The meter ships records from memory that the disk did not take.
        """
        await self._stop_shipping()
        unwritten = await self._spool.close()
        with contextlib.suppress(TimeoutError, ManyloraError, OSError):
            async with asyncio.timeout(DRAIN_S):
                for begin in range(0, len(unwritten), size := self._shipment):
                    await client.ship(unwritten[begin : begin + size])
                while await self.ship(client):
                    pass
                if self._is_recovered and not self._open:
                    for folder in self._held:
                        mark_sent(folder.path)
                await client.give_back(self.edge)
        self._release()

    async def close(self) -> None:
        """Write the finished records, which the next start ships, and close."""
        await self._stop_shipping()
        if unwritten := await self._spool.close():
            log.error("usage.left_unwritten records=%d", len(unwritten))
        self._release()

    async def _stop_shipping(self) -> None:
        if self._shipping is not None:
            self._shipping.cancel()
            await asyncio.gather(self._shipping, return_exceptions=True)

    def _release(self) -> None:
        for journal in self._journals.values():
            journal.close()
        self._release_folders()

    def _release_folders(self) -> None:
        for folder in self._held:
            folder.release()

    async def ship(self, client: ControlClient) -> int:
        """Send one shipment and return its number of records. Raises the control plane's error.

        The next shipment is half as large after a failure, and an eighth larger after a success. A control plane that
        takes too long for a large shipment gets small ones, and few shipments fail at the size that is too large.
        """
        records, marks = self._spool.unshipped(self._shipment)
        if records:
            try:
                await client.ship(records)
            except ControlUnavailable:
                self._shipment = max(1, len(records) // 2)
                raise
            self._shipment = min(SHIPMENT, self._shipment + max(1, self._shipment // 8))
        self._spool.shipped(marks)
        if not records and self._is_recovered:
            for edge in sorted(self._lost_edges):
                await client.give_back(edge)
                self._lost_edges.discard(edge)
        return len(records)

    async def _ship_on(self, client: ControlClient) -> None:
        wait_s = self._ship_s
        while True:
            try:
                while await self.ship(client):
                    wait_s = self._ship_s
                wait_s = self._ship_s
            except ManyloraError as error:
                wait_s = min(LONGEST_BACKOFF_S, 2 * wait_s)
                log.warning("usage.not_shipped error=%s next_try_s=%.1f", error.message, wait_s)
            except Exception:  # such as a full table of files: shipping must go on after it
                wait_s = min(LONGEST_BACKOFF_S, 2 * wait_s)
                log.exception("usage.not_shipped next_try_s=%.1f", wait_s)
            await asyncio.sleep(wait_s)

    def _finish_whole(self, usage: OpenUsage) -> None:
        """Write the record of a request whose sequences have all ended, unless it is held back."""
        if usage.waiting or usage.is_held:
            return
        opened = usage.opened
        uses = [usage.uses[request_id] for request_id, _, _ in opened.requests if request_id in usage.uses]
        charge = charged(opened, charge_of(uses, is_streamed=opened.is_streamed))
        record = record_of(opened, self.edge, uses, charge, usage.owner.timings())
        usage.settled = settled = self._spool.finish(record)
        settled.add_done_callback(partial(self._note_settled, opened))
        usage.owner.note_charge(charge)

    def _note_settled(self, opened: Opened, settled: "asyncio.Future[None]") -> None:
        """Remove a request from the journal once its record is on the disk; keep it after a failure."""
        if not settled.cancelled() and settled.exception() is None:
            self._journals[opened.life].settle(request_id for request_id, _, _ in opened.requests)
