"""Metering: one usage record for every inference request, whatever way it ends, and none lost to any kill.

`Meter.open` writes down that a request begins; each of its sequences' ends is noted; when the last has ended the record
is made, written to disk, and shipped to the control plane until that has it. At the start, what an edge before us left
open is closed as `edge_lost` by what its engine's journal holds.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from manylora.charging import Charge, SequenceUse, charge_of
from manylora.clock import Clock
from manylora.engine.events import Finished as SequenceEnd
from manylora.engine.events import FinishReason
from manylora.engine.request import Request
from manylora.errors import ConfigInvalid, ManyloraError, RequestRejected, UsageUnrecorded
from manylora.ids import KeyId, RequestId, TenantId, UsageId, mint_usage_id
from manylora.server.access.control_client import ControlClient
from manylora.server.engine_client.journal import Counted, lives_in, read_journal, remove_journal
from manylora.server.engine_client.streams import SequenceStream
from manylora.server.metering.spool import (
    Dropped,
    Finished,
    Opened,
    Spool,
    hold_folders,
    read_segment,
    segments_in,
)
from manylora.usage import UsageRecord

log = logging.getLogger(__name__)

SHIPMENT = 500
LONGEST_BACKOFF_S = 10.0
DRAIN_S = 5.0
WORST_FIRST = (
    *("engine_failure", "edge_lost", "shutdown", "adapter_failure", "queue_timeout", "rejected", "incomplete"),
    *("disconnect", "abort", "length", "stop_string", "stop_token", "end_of_sequence"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """What an inference route knows of its request's course; None where a moment never came."""

    digest: str | None = None
    tier: str | None = None
    queue_ms: float | None = None
    load_ms: float | None = None
    first_token_ms: float | None = None
    total_ms: float | None = None


NO_TIMINGS = Timings()


@dataclass(frozen=True, slots=True, kw_only=True)
class Payer:
    """Whose request it is: what the edge attributes usage to."""

    tenant: TenantId
    key: KeyId | None
    request_id: str


class MeteredRequest(Protocol):
    """The owner of a request whose usage is recorded."""

    def timings(self) -> Timings:
        """Return the request's timings; called when its last sequence has ended."""

    def note_charge(self, charge: Charge) -> None:
        """Take the charge; called once, also where nothing is charged."""


@dataclass(slots=True)
class OpenUsage:
    """A request under way. `settled`: done when its record is on the disk."""

    opened: Opened
    owner: MeteredRequest
    waiting: set[RequestId]
    uses: dict[RequestId, SequenceUse] = field(default_factory=dict)
    settled: asyncio.Future[None] | None = None


class Meter:
    """One edge's metering. All methods belong to its event loop."""

    def __init__(
        self, root: Path, *, clock: Clock, ship_s: float, durable_wait_s: float = 10.0, keeps_journals: bool = False
    ) -> None:
        """Hold a folder below `root` and read what edges before us left.

        Raises `ConfigInvalid`, `DataTooNew`; nothing but the folder is changed before `recovered`.
        """
        self._held = hold_folders(root)
        self.folder = self._held[0].path
        self.edge = secrets.token_hex(8)
        self.life = ""  # of the engine that now runs; the link says it
        self._clock = clock
        self._ship_s = ship_s
        self._durable_wait_s = durable_wait_s
        self._keeps_journals = keeps_journals
        left = [(folder.path, edge, path) for folder in self._held for edge, path in segments_in(folder.path)]
        self._lost_edges = {edge for _, edge, _ in left}
        try:
            self._lost = _lost_in(left)
        except BaseException:
            self._release()
            raise
        try:
            self._spool = Spool(self.folder, self.edge, keeps_segments=keeps_journals)
        except OSError as error:
            self._release()
            raise ConfigInvalid(f"metering.dir {root} cannot be used: {error.strerror}") from error
        self._open: dict[RequestId, OpenUsage] = {}
        self._unsettled: dict[asyncio.Future[None], str] = {}  # records on their way to the disk, by engine's life
        self._shipping: asyncio.Task[None] | None = None
        self._left = [path for _, _, path in left]
        self._is_recovered = False

    @property
    def num_open(self) -> int:
        """Requests without a record yet."""
        return len({usage.opened.id for usage in self._open.values()})

    @property
    def failure(self) -> UsageUnrecorded | None:
        """Why no request is taken now; None: they are."""
        return self._spool.failure

    async def recovered(self) -> None:
        """Close what was left open and wait until that is on the disk; only then may old segments and journals go."""
        await asyncio.gather(*self._close_lost())
        for path in reversed(self._left):
            self._spool.adopt(path)
        self._is_recovered = True
        if not self._keeps_journals:
            for folder in self._held:
                for life in lives_in(folder.path):
                    if life != self.life:
                        remove_journal(folder.path, life)

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
    ) -> OpenUsage:
        """Write down that a request begins, before any of it reaches the engine.

        Args:    requests   each sequence's with the number of its prompt
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
            life=self.life,
            requests=tuple((request.id, prompt, len(request.tokens)) for request, prompt in requests),
        )
        self._spool.open(opened)
        usage = OpenUsage(opened, owner, {request.id for request, _ in requests})
        for request, _ in requests:
            self._open[request.id] = usage
        return usage

    def withdraw(self, usage: OpenUsage, ids: Sequence[RequestId]) -> None:
        """Forget sequences that never reached the engine; a request without any other has no record."""
        for request_id in ids:
            usage.waiting.discard(request_id)
            self._open.pop(request_id, None)
        if usage.waiting:
            return
        if usage.uses:
            self._finish(usage)
            return
        self._spool.drop(usage.opened.id)
        usage.owner.note_charge(charge_of([], is_streamed=usage.opened.is_streamed))

    def note(self, generation: SequenceStream, end: SequenceEnd) -> None:
        """Take the end of one sequence, whoever still reads it."""
        usage = self._open.pop(generation.request.id, None)
        if usage is None:
            return
        if end.failure is not None and end.failure.error == UsageUnrecorded.__name__:
            self._spool.note_failure(UsageUnrecorded(end.failure.message))
        prompt = next(number for each, number, _ in usage.opened.requests if each == generation.request.id)
        usage.uses[generation.request.id] = SequenceUse(
            prompt=prompt,
            prompt_tokens=len(generation.request.tokens),
            cached_tokens=end.counts.cached_tokens,
            committed=end.counts.completion_tokens,
            delivered=generation.num_tokens,
            reason=end.reason.value,
            computed_tokens=end.counts.computed_tokens,
            is_callers=end.reason is FinishReason.REJECTED
            and end.failure is not None
            and issubclass(end.failure.kind, RequestRejected),
        )
        usage.waiting.discard(generation.request.id)
        if not usage.waiting:
            self._finish(usage)

    async def settle(self, usage: OpenUsage) -> None:
        """Wait until a request whose sequences have all ended is on the disk."""
        if usage.settled is None:
            return
        try:
            async with asyncio.timeout(self._durable_wait_s):
                await asyncio.shield(usage.settled)
        except TimeoutError:
            log.error("usage.not_durable id=%s after_s=%g", usage.opened.id, self._durable_wait_s)

    async def stop(self, client: ControlClient) -> None:
        """Write what has ended, ship it for a few seconds at most, and give back what was leased; then close.

        What the disk did not take is shipped from memory.
        """
        await self._stop_shipping()
        unwritten = await self._spool.close()
        with contextlib.suppress(TimeoutError, ManyloraError):
            async with asyncio.timeout(DRAIN_S):
                for begin in range(0, len(unwritten), SHIPMENT):
                    await client.ship(unwritten[begin : begin + SHIPMENT])
                while await self.ship(client):
                    pass
                await client.give_back(self.edge)
        self._release()

    async def close(self) -> None:
        """Write what has ended; it is shipped after the next start."""
        await self._stop_shipping()
        if unwritten := await self._spool.close():
            log.error("usage.left_unwritten records=%d", len(unwritten))
        self._release()

    async def _stop_shipping(self) -> None:
        if self._shipping is not None:
            self._shipping.cancel()
            await asyncio.gather(self._shipping, return_exceptions=True)

    def _release(self) -> None:
        for folder in self._held:
            folder.release()

    def begin_life(self, life: str) -> None:
        """The engine that now begins writes the journal of this name."""
        self.life = life

    async def ship(self, client: ControlClient) -> int:
        """Hand one shipment over; returns how many records it had. Raises what the control plane answers."""
        records, marks = self._spool.unshipped(SHIPMENT)
        if records:
            await client.ship(records)
        self._spool.shipped(marks)
        if not records and self._is_recovered:
            for edge in sorted(self._lost_edges):
                await client.give_back(edge)
                self._lost_edges.discard(edge)
        return len(records)

    async def _ship_on(self, client: ControlClient) -> None:
        wait_s, swept = self._ship_s, ""
        while True:
            try:
                while await self.ship(client):
                    pass
                wait_s = self._ship_s
                if self.life != swept and self._remove_old_journals():
                    swept = self.life
            except ManyloraError as error:
                wait_s = min(LONGEST_BACKOFF_S, 2 * wait_s)
                log.warning("usage.not_shipped error=%s next_try_s=%.1f", error.message, wait_s)
            except Exception:  # a full table of files, say: shipping goes on when that is over, or bills stand still
                wait_s = min(LONGEST_BACKOFF_S, 2 * wait_s)
                log.exception("usage.not_shipped next_try_s=%.1f", wait_s)
            await asyncio.sleep(wait_s)

    def _finish(self, usage: OpenUsage) -> None:
        opened = usage.opened
        uses = [usage.uses[request_id] for request_id, _, _ in opened.requests if request_id in usage.uses]
        charge = charge_of(uses, is_streamed=opened.is_streamed)
        record = _record(opened, self.edge, uses, charge, usage.owner.timings())
        usage.settled = settled = self._spool.finish(record)
        self._unsettled[settled] = opened.life
        settled.add_done_callback(self._note_settled)
        usage.owner.note_charge(charge)

    def _note_settled(self, settled: "asyncio.Future[None]") -> None:
        if not settled.cancelled() and settled.exception() is None:
            del self._unsettled[settled]  # one that failed stays, and with it the journal of its engine

    def _remove_old_journals(self) -> bool:
        """Remove journals of engines that are gone, once every request that was in them has its record.

        Returns whether all could be removed.
        """
        if self._keeps_journals:
            return True
        if not self._is_recovered:
            return False
        needed = {self.life, *self._unsettled.values(), *(usage.opened.life for usage in self._open.values())}
        for life in lives_in(self.folder):
            if life not in needed:
                remove_journal(self.folder, life)
        return needed <= {self.life}

    def _close_lost(self) -> list[asyncio.Future[None]]:
        """Close what edges before us opened and did not finish; returns what is done when that is on the disk."""
        closed = []
        for edge, entry, counted in self._lost:
            uses = [
                SequenceUse(
                    prompt=prompt,
                    prompt_tokens=prompt_tokens,
                    cached_tokens=found.cached_tokens,
                    committed=found.committed,
                    delivered=min(found.delivered, found.committed),
                    reason=found.cut or "edge_lost",
                    computed_tokens=found.computed_tokens,
                )
                for request_id, prompt, prompt_tokens in entry.requests
                for found in [counted.get(request_id) or Counted(prompt_tokens)]
            ]
            charge = charge_of(uses, is_streamed=entry.is_streamed)
            closed.append(self._spool.finish(_record(entry, edge, uses, charge, NO_TIMINGS)))
        if closed:
            log.warning("usage.recovered lost_requests=%d", len(closed))
        self._lost = []
        return closed


_Lost = tuple[str, Opened, dict[RequestId, Counted]]
"""An edge that is gone, its note of a request that it did not finish, and the counts in its engine's journal."""


def _lost_in(left: Sequence[tuple[Path, str, Path]]) -> list[_Lost]:
    """Requests without an end in the (folder, edge, segment) of edges that are gone. Raises `DataTooNew`."""
    opened: dict[UsageId, tuple[Path, str, Opened]] = {}
    ended: set[UsageId] = set()
    for folder, edge, path in left:
        for entry in read_segment(path):
            match entry:
                case Opened():
                    opened[entry.id] = (folder, edge, entry)
                case Dropped(usage_id):
                    ended.add(usage_id)
                case Finished(record):
                    ended.add(record.id)
    for usage_id in ended:  # only now: another edge may have closed it, whose files are sorted before
        opened.pop(usage_id, None)
    lives = {(folder, entry.life) for folder, _, entry in opened.values()}
    journals = {(folder, life): read_journal(folder, life) for folder, life in lives}
    return [(edge, entry, journals[folder, entry.life]) for folder, edge, entry in opened.values()]


def _record(opened: Opened, edge: str, uses: Sequence[SequenceUse], charge: Charge, timings: Timings) -> UsageRecord:
    reasons = {use.reason for use in uses}
    return UsageRecord(
        id=opened.id,
        tenant=opened.tenant,
        key=opened.key,
        request_id=opened.request_id,
        edge=edge,
        base=opened.base,
        adapter=opened.adapter,
        adapter_source=opened.adapter_source,
        adapter_owner=opened.adapter_owner,
        adapter_digest=timings.digest,
        opened_ms=opened.opened_ms,
        prompt_tokens=charge.prompt_tokens,
        cached_tokens=charge.cached_tokens,
        completion_tokens=charge.completion_tokens,
        charged_prompt_tokens=charge.charged_prompt_tokens,
        charged_completion_tokens=charge.charged_completion_tokens,
        charged_cached_tokens=charge.charged_cached_tokens,
        num_sequences=len(opened.requests),
        finish_reason=next((reason for reason in WORST_FIRST if reason in reasons), "incomplete"),
        tier=timings.tier,
        queue_ms=timings.queue_ms,
        load_ms=timings.load_ms,
        first_token_ms=timings.first_token_ms,
        total_ms=timings.total_ms,
    )
