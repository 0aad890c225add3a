"""The tending of one dedicated deployment in a round: what its replicas are now, which start, and which leave.

Of several control planes each acts on the replicas of its own placer alone, and all decide from the same rows.
"""

import asyncio
import hashlib
import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.billing.seconds import bill_now
from manylora.control.control import Control
from manylora.control.deployments.options import options_of
from manylora.control.deployments.placements import (
    LiveReplica,
    insert_replica,
    note_change,
    store_replica,
    store_start,
)
from manylora.control.deployments.placer import Placer, StartOrder
from manylora.control.deployments.replicas import (
    Acts,
    DedicatedReplica,
    ReplicaState,
    Sight,
    Wish,
    decide,
    drained,
    failures_after,
    is_settled,
    number_loaded,
    pause_ms,
    seen,
    why_killed,
)
from manylora.control.deployments.shared_loads import DeploymentLoad
from manylora.control.deployments.status import DeploymentState, Status, status_of
from manylora.control.process.looks import Found
from manylora.control.storage.tables import deployments
from manylora.control.tenants.audit import on_the_machine, record
from manylora.errors import ManyloraError
from manylora.system.byte_sizes import byte_text
from manylora.tenancy import TenantState

log = logging.getLogger(__name__)

SEEN_MS = 5_000
"""Time between two notes that a replica was seen: the most that a crash of the machine leaves unbilled."""
TAKEN_MS = 60_000
"""Time without a sight after which a control plane takes the replicas of another one's placer for ended."""
USED_MS = 10_000
"""Time between two notes of the last request while a deployment is busy."""

Rows = Mapping[str, Any]  # columns of several types


@dataclass(slots=True)
class _Memory:
    """The memory of a control plane's process for one deployment between two rounds.

    told  replicas that have had the word to leave: a second word would cut their requests
    """

    needed_ms: int
    well_ms: dict[str, int] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """The facts that a round has read of one deployment.

    sights      of the replicas of the own placer
    stop        why its tenant or key may spend no more; None: it may
    free_bytes  memory of the placer that no replica has
    """

    row: Rows
    live: Sequence[LiveReplica]
    sights: Mapping[str, Found]
    load: DeploymentLoad
    stop: str | None
    free_bytes: int


async def record_change(
    control: Control, connection: AsyncConnection, row: Rows, old: DedicatedReplica, new: DedicatedReplica
) -> None:
    """Write the log line and the audit row of a change of a replica's state. row: of its deployment."""
    if old.state is new.state:
        return
    verb = "fail" if new.has_failed else {"ready": "start", "draining": "drain", "ended": "end"}[new.state]
    log.info("replica.%s tenant=%s deployment=%s slot=%d", new.state, row["tenant"], row["name"], new.slot)
    told = {"slot": new.slot, "state": new.state, "reason": new.reason}
    actor, before = on_the_machine(control), {"state": old.state}
    await record(connection, actor, verb, "replica", row["name"], tenant=row["tenant"], before=before, after=told)


class Tending:
    """Tends the deployments of a control plane, one at a time."""

    def __init__(self, control: Control, placer: Placer) -> None:
        self._control = control
        self._placer = placer
        self._kept: dict[int, _Memory] = {}

    async def tend(self, glance: Glance, now_ms: int) -> int:
        """Bring a deployment closer to its wish. Return the memory of the replicas that start.

        Raises `InvalidParameter` for a row that cannot be placed, `ControlUnavailable` if the database fails.
        """
        row = glance.row
        kept = self._kept.setdefault(row["number"], _Memory(needed_ms=now_ms))
        found = [self._seen(each, glance.sights, kept, now_ms) for each in glance.live]
        own = {each.replica.id for each in glance.live if each.placer == self._placer.id}
        before = [each.replica for each in glance.live]
        failures, retry_ms = _failures(row, before, found, now_ms)
        wish = self._wish(glance, kept, retry_ms, found, now_ms)
        start_ms = int(1000 * self._control.config.placement.start_timeout_s)
        acts = decide(wish, found, now_ms, start_ms)
        starts = acts.starts[: _fitting(glance, len(acts.starts))]
        acts = Acts(
            starts=starts,
            drains=tuple(each for each in acts.drains if each in own),
            kills=tuple(each for each in acts.kills if each in own),
        )
        after = [self._after(each, acts, wish, now_ms, start_ms) for each in found]
        begun = [_begun(slot, wish.form, now_ms) for slot in acts.starts]
        status = status_of(
            wish,
            [*after, *begun],
            now_ms,
            failures=failures,
            last_reason=next((each.reason for each in after if each.has_failed), row["detail"]),
            why_unwanted=_why_unwanted(row, stop=glance.stop),
        )
        counts = {"failures": failures, "retry_ms": retry_ms, "used_ms": _used_ms(row, glance.load, wish)}
        started = await self._store(glance, before, after, begun, _with_memory(status, glance), counts, now_ms)
        await self._act(row, acts, started, _untold(after, own, glance.sights, kept.told | set(acts.drains)), kept)
        return len(started) * int(row["replica_bytes"])

    def _seen(self, placed: LiveReplica, sights: Mapping[str, Found], kept: _Memory, now_ms: int) -> DedicatedReplica:
        """Return a replica as it is now. One of another placer is gone once that placer is silent for `TAKEN_MS`."""
        replica = replace(placed.replica, well_ms=kept.well_ms.get(placed.replica.id, now_ms))
        if placed.placer != self._placer.id:
            if now_ms - replica.seen_ms <= TAKEN_MS:
                return replica
            return seen(replica, Sight.GONE, "its control plane does not answer", now_ms)
        found = seen(replica, *sights.get(replica.id, (Sight.SILENT, "")), now_ms)
        kept.well_ms[replica.id] = found.well_ms
        if not found.is_live:
            kept.well_ms.pop(replica.id)
            kept.told.discard(replica.id)
        return found

    def _wish(
        self, glance: Glance, kept: _Memory, retry_ms: int, found: Sequence[DedicatedReplica], now_ms: int
    ) -> Wish:
        row = glance.row
        wish = Wish(
            least=row["min_replicas"],
            most=row["max_replicas"],
            cooldown_ms=1000 * row["cooldown_s"],
            per_replica=self._control.config.placement.requests_per_replica,
            load=glance.load.number,
            used_ms=max(row["used_ms"], glance.load.last_ms),
            needed_ms=kept.needed_ms,
            retry_ms=retry_ms,
            form=form_of(row),
            is_wanted=_why_unwanted(row, stop=glance.stop) is None,
        )
        ready = sum(each.state is ReplicaState.READY for each in found)
        if number_loaded(wish) >= max(1, ready):
            kept.needed_ms = now_ms
        return replace(wish, needed_ms=kept.needed_ms)

    def _after(self, replica: DedicatedReplica, acts: Acts, wish: Wish, now_ms: int, start_ms: int) -> DedicatedReplica:
        """Return a replica after the acts on it: it leaves, or has the reason of its kill."""
        if replica.id in acts.drains:
            return drained(replica, now_ms, _why_drained(replica, wish))
        if replica.id in acts.kills:
            return replace(replica, reason=why_killed(replica, now_ms, start_ms) or replica.reason)
        return replica

    async def _store(
        self,
        glance: Glance,
        before: Sequence[DedicatedReplica],
        after: Sequence[DedicatedReplica],
        begun: Sequence[DedicatedReplica],
        status: Status,
        counts: Mapping[str, int],
        now_ms: int,
    ) -> list[DedicatedReplica]:
        """Store what has changed, and return the replicas to start: those whose slots no other control plane took."""
        row = glance.row
        moved = [(old, new) for old, new in zip(before, after, strict=True) if _is_news(old, new)]
        told = _changed(row, {"state": status.state, "detail": status.detail})
        counted = _changed(row, counts)
        if not (moved or begun or told or counted):
            return []
        async with self._control.database.write() as connection:
            for old, new in moved:
                await store_replica(connection, new)
                await record_change(self._control, connection, row, old, new)
            database, placer = self._control.database, self._placer.id
            started = [each for each in begun if await insert_replica(database, connection, each, row, placer)]
            if told or started or any(old.state is not new.state for old, new in moved):
                await note_change(connection, row["number"], **told, **counted)
            elif counted:  # no edge reads them
                changed = update(deployments).where(deployments.c.number == row["number"])
                await connection.execute(changed.values(**counted))
        if any(new.left_ms is not None and old.left_ms is None for old, new in moved):
            await bill_now(self._control)
        return started

    async def _act(
        self, row: Rows, acts: Acts, begun: Sequence[DedicatedReplica], untold: Sequence[str], kept: _Memory
    ) -> None:
        for each in acts.kills:
            await self._placer.kill(each)
        for each in (*acts.drains, *untold):
            kept.told.add(each)
            await self._placer.drain(each)
        for replica in begun:
            told = await self._start(row, replica)
            async with self._control.database.write() as connection:
                await store_start(connection, replica.id, **told)

    async def _start(self, row: Rows, replica: DedicatedReplica) -> dict[str, str]:
        """Start a replica, and return its URL, or the reason why it did not start.

        A cancellation waits for the start, so that the end of the control plane finds the process.
        """
        order = StartOrder(
            id=replica.id,
            place=f"{row['uuid']}-{replica.slot}",
            tenant=row["tenant"],
            name=row["name"],
            options=options_of(row["base"], json.loads(row["config"])),
        )
        starting = asyncio.create_task(self._placer.start(order))
        try:
            return {"url": await asyncio.shield(starting)}
        except asyncio.CancelledError:
            await asyncio.wait([starting])
            raise
        except (OSError, ManyloraError) as error:  # the next round finds no process, and pauses
            return {"reason": f"it could not be started: {error}"}


def form_of(row: Rows) -> str:
    """Return the digest of the settings that a deployment's replicas follow; a change of it replaces them."""
    told = (row["uuid"], options_of(row["base"], json.loads(row["config"])), row["hourly_nanousd"])
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def _begun(slot: int, form: str, now_ms: int) -> DedicatedReplica:
    return DedicatedReplica(
        id=str(uuid.uuid4()),
        slot=slot,
        form=form,
        state=ReplicaState.STARTING,
        begun_ms=now_ms,
        since_ms=now_ms,
        seen_ms=now_ms,
        well_ms=now_ms,
    )


def _failures(
    row: Rows, before: Sequence[DedicatedReplica], after: Sequence[DedicatedReplica], now_ms: int
) -> tuple[int, int]:
    """Return the failed starts of a deployment in a row, and the moment of its next start."""
    failures, retry_ms = row["failures"], row["retry_ms"]
    failed_ms = retry_ms - pause_ms(failures)
    if failures and any(is_settled(each, failed_ms, now_ms) for each in after):
        failures = 0
    for old, new in zip(before, after, strict=True):
        if old.is_live and not new.is_live:
            failures = failures_after(new, failures)
            retry_ms = now_ms + pause_ms(failures) if new.has_failed else retry_ms
    return failures, retry_ms


def _fitting(glance: Glance, number: int) -> int:
    """Return the number of replicas that may start now: those of others have their memory until they have ended."""
    each = glance.row["replica_bytes"]
    return min(number, max(0, glance.free_bytes) // each) if each else number


def _with_memory(status: Status, glance: Glance) -> Status:
    """Return a status that says that a replica waits for memory, where it does."""
    each = glance.row["replica_bytes"]
    if status.state is not DeploymentState.PENDING or not each or glance.free_bytes >= each:
        return status
    return replace(status, detail=f"a replica starts once {byte_text(each)} are free: others have not ended yet")


def _used_ms(row: Rows, load: DeploymentLoad, wish: Wish) -> int:
    """Return the moment of the last request to store: each while it is idle, and some while it is busy."""
    stored_ms = int(row["used_ms"])
    is_due = not load.number or wish.used_ms - stored_ms >= USED_MS
    return max(stored_ms, wish.used_ms) if is_due else stored_ms


def _untold(after: Sequence[DedicatedReplica], own: set[str], sights: Mapping[str, Found], told: set[str]) -> list[str]:
    """Return replicas that should leave and take requests still: the kill of a control plane came between."""
    leaving = [each.id for each in after if each.state is ReplicaState.DRAINING and each.id in own]
    return [each for each in leaving if each not in told and sights.get(each, (Sight.GONE,))[0] is Sight.WELL]


def _changed(row: Rows, values: Mapping[str, Any]) -> dict[str, Any]:  # columns of several types
    return {name: value for name, value in values.items() if row[name] != value}


def _why_unwanted(row: Rows, *, stop: str | None) -> str | None:
    """Return the reason why a deployment should have no replica; None: it may have some."""
    if row["deleted_ms"] is not None:
        return "it is deleted"
    if row["tenant_state"] != TenantState.ACTIVE:
        return f"its tenant is {row['tenant_state']}"
    return stop


def _why_drained(replica: DedicatedReplica, wish: Wish) -> str:
    if not wish.is_wanted:
        return "it is not wanted any more"
    return "its deployment has changed" if replica.form != wish.form else "the load needs fewer replicas"


def _is_news(old: DedicatedReplica, new: DedicatedReplica) -> bool:
    """Return whether a replica's row changes: its state or reason, or the moment of its last sight by some seconds."""
    return old.state is not new.state or old.reason != new.reason or new.seen_ms - old.seen_ms >= SEEN_MS
