"""The work of placing: it looks after the replicas of dedicated deployments, starts and ends them, and bills them.

Each round reads the rows, looks at each process, decides (`deployments/replicas.py`), stores, and acts. A row is stored
before its process starts, so that a kill of the control plane at any moment leaves no process without a row: the first
round of the next control plane finds the processes of its rows again and kills all others of its placer.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.billing.seconds import bill_now
from manylora.control.control import Control
from manylora.control.deployments.memory import plan_all
from manylora.control.deployments.placements import LiveReplica, live_replicas, note_change, store_replica
from manylora.control.deployments.placer import Placer
from manylora.control.deployments.replicas import DedicatedReplica, ReplicaState, Sight, drained, seen
from manylora.control.deployments.shared_loads import DeploymentLoad, forget_loads, read_loads
from manylora.control.deployments.status import DeploymentState
from manylora.control.deployments.stops import SpendingStops
from manylora.control.process.looks import Looks
from manylora.control.process.tending import Glance, Rows, Tending, record_change
from manylora.control.storage.tables import deployments, placements, tenants
from manylora.errors import ControlUnavailable, InvalidParameter, ManyloraError

log = logging.getLogger(__name__)

ROUND_S = 0.5
STOP_S = 30.0
"""Seconds that the replicas have to finish their requests when the control plane ends."""
KILL_S = 10.0
"""Seconds after which the control plane ends without those that a kill has not ended."""
END_LOOK_S = 0.1


class Placing:
    """Runs a round every `ROUND_S` seconds, and at once after the first request to a deployment that sleeps."""

    def __init__(self, control: Control, placer: Placer) -> None:
        self._control = control
        self._placer = placer
        self._looks = Looks(placer)
        self._tending = Tending(control, placer)
        self._stops = SpendingStops(control)
        self._billed_ms = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Let every replica finish its requests, end it, and bill it. Call it before the database is closed."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        try:
            await self._end_all()
        except (ManyloraError, OSError) as error:
            log.warning("placing.stop_failed error=%s", error)
        await self._looks.stop()

    async def round(self) -> None:
        """Do all work once. Raise `ControlUnavailable` if the database fails."""
        now_ms = self._control.now_ms()
        async with self._control.database.read() as connection:
            rows = await _rows(connection)
            live = await live_replicas(connection)
            loads = await read_loads(connection, now_ms)
        stops = await self._stops.reasons(rows, now_ms)
        own = self._own(live)
        sights = await self._looks.at({each.replica.id: each.url for each in own})
        held = sum(row["replica_bytes"] * sum(each.deployment == row["number"] for each in own) for row in rows)
        free_bytes = self._placer.total_bytes() - held
        for row in rows:
            glance = Glance(
                row=row,
                live=live.get(row["number"], []),
                sights=sights,
                load=loads.get((row["tenant"], row["name"]), DeploymentLoad()),
                stop=stops.get(row["number"]),
                free_bytes=free_bytes,
            )
            try:
                free_bytes -= await self._tending.tend(glance, self._control.now_ms())
            except InvalidParameter as error:  # a row of an earlier version: the others are tended and billed
                await self._leave(row, error)
            except ControlUnavailable:  # the database is away, for all of them
                raise
            except Exception:  # others are tended and billed, whatever one of them meets
                log.exception("placing.row_failed deployment=%s/%s", row["tenant"], row["name"])
        now_ms = self._control.now_ms()
        if now_ms - self._billed_ms >= 1000 * self._control.config.placement.bill_s:
            await self._sweep()
            await self.bill(now_ms)
            await plan_all(self._control.database, self._placer, only_unknown=True)

    async def bill(self, now_ms: int) -> None:
        """Bill the seconds that have passed, and forget the loads of silent edges."""
        await bill_now(self._control)
        async with self._control.database.write() as connection:
            await forget_loads(connection, now_ms)
        self._billed_ms = now_ms

    def _own(self, live: Mapping[int, Sequence[LiveReplica]]) -> list[LiveReplica]:
        """Return the replicas of this placer."""
        return [each for found in live.values() for each in found if each.placer == self._placer.id]

    async def _leave(self, row: Rows, error: InvalidParameter) -> None:
        """Show why a deployment cannot be placed. Its next change by its tenant tries again."""
        values = {"state": DeploymentState.ERRORED.value, "detail": error.message}
        if any(row[name] != value for name, value in values.items()):
            log.warning("placing.row_left deployment=%s/%s error=%s", row["tenant"], row["name"], error.message)
            async with self._control.database.write() as connection:
                await note_change(connection, row["number"], **values)

    async def _end_all(self) -> None:
        """End the replicas of this placer, first those that obey."""
        async with self._control.database.read() as connection:
            own = self._own(await live_replicas(connection))
            rows = {row["number"]: row for row in await _rows(connection)}
        now_ms = self._control.now_ms()
        for each in own:
            if each.replica.state is not ReplicaState.DRAINING:  # a second word would cut its requests
                await self._placer.drain(each.replica.id)
        ended = await self._ended(own, now_ms)
        after = {replica.id: replica for replica in ended}
        async with self._control.database.write() as connection:
            for each in own:  # in the order of every writer of several rows
                await store_replica(connection, after[each.replica.id])
                await record_change(
                    self._control, connection, rows[each.deployment], each.replica, after[each.replica.id]
                )
            for number in sorted({each.deployment for each in own}):
                await note_change(connection, number, state="pending", detail="the control plane has ended")
        await bill_now(self._control)

    async def _ended(self, own: Sequence[LiveReplica], now_ms: int) -> list[DedicatedReplica]:
        """Return replicas after their ends. One that even a kill does not end drains on, and the next start finds it.

        Args:  now_ms  moment at which they were told to leave
        """
        clock = self._control.clock
        left = {each.replica.id: drained(each.replica, now_ms, "the control plane ends") for each in own}
        urls = {each.replica.id: each.url for each in own}
        ended: list[DedicatedReplica] = []
        begun_s = clock.monotonic_s()
        while left and clock.monotonic_s() - begun_s < STOP_S + KILL_S:
            for name, (sight, _) in (await self._looks.at({name: urls[name] for name in left})).items():
                if sight is Sight.GONE:
                    ended.append(seen(left.pop(name), sight, "", self._control.now_ms()))
                elif clock.monotonic_s() - begun_s >= STOP_S:
                    await self._placer.kill(name)
            await asyncio.sleep(END_LOOK_S if left else 0)
        for name in left:
            log.error("placing.not_ended replica=%s", name)
        return [*ended, *left.values()]

    async def _run(self) -> None:
        is_swept = False
        while True:
            try:
                if not is_swept:
                    await self._sweep()
                    await plan_all(self._control.database, self._placer)
                    is_swept = True
                await self.round()
                self._control.loads.forget(self._control.now_ms())
            except (ManyloraError, OSError) as error:
                log.warning("placing.round_failed error=%s", error)
            except Exception:  # no code awaits this task, so one fault must not end it
                log.exception("placing.round_failed")
            self._control.loads.changed.clear()
            try:
                await asyncio.wait_for(self._control.loads.changed.wait(), ROUND_S)
            except TimeoutError:
                continue

    async def _sweep(self) -> None:
        """Kill the processes of this placer without a row: another control plane may have taken them for ended."""
        async with self._control.database.read() as connection:
            asked = select(placements.c.id).where(
                placements.c.ended_ms.is_(None), placements.c.placer == self._placer.id
            )
            known = set((await connection.execute(asked)).scalars())
        if killed := await self._placer.sweep(known):
            log.warning("placing.strays_killed number=%d", killed)


async def _rows(connection: AsyncConnection) -> list[Rows]:
    """Return the dedicated deployments that are not deleted, or that have replicas."""
    live = select(placements.c.deployment).where(placements.c.ended_ms.is_(None))
    owned = deployments.join(tenants, deployments.c.tenant == tenants.c.id)
    asked = select(deployments, tenants.c.state.label("tenant_state")).select_from(owned)
    asked = asked.where(or_(deployments.c.deleted_ms.is_(None), deployments.c.number.in_(live)))
    return [dict(row) for row in (await connection.execute(asked.order_by(deployments.c.number))).mappings()]
