"""Periodic work of the control plane while it runs.

It fails interrupted copies, removes abandoned uploads, old audit rows and old messages of webhooks, stores the last
uses of keys, books the ends of grants, and decides promotions whose questions have been answered. More often it
delivers messages of webhooks, and deletes the files, responses and batches whose time is over. Once an hour it removes
blobs that no row names, sessions that ended long ago, and replicas that ended and were billed long ago.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from manylora.control.control import Control
from manylora.control.deployments.old_replicas import remove_old_replicas
from manylora.control.deployments.shared_loads import forget_loads
from manylora.control.evaluations.promotions import decide_all
from manylora.control.registry.intake import Intake
from manylora.control.registry.uploads import Uploads
from manylora.control.stored.objects import TenantStore
from manylora.control.stored.retention import delete_old, delete_unnamed
from manylora.control.tenants.audit import on_the_machine, remove_old_rows
from manylora.control.tenants.credit import sweep_wallets
from manylora.control.tenants.logins import remove_old_sessions
from manylora.control.webhooks.delivery import Deliveries
from manylora.control.webhooks.outbox import remove_old_messages
from manylora.errors import ManyloraError

log = logging.getLogger(__name__)

ROUND_S = 60.0
DELIVERY_ROUND_S = 2.0
"""Seconds between two looks for messages of webhooks that are due."""
LONG_ROUND_S = 3600.0
"""Seconds between two walks over all blobs and all keys: their number grows with what tenants keep."""


class Janitor:
    """Runs a round every `ROUND_S` seconds, and deletes what tenants keep every `batches.check_s`.

    Every `LONG_ROUND_S` it runs a long round.

    Several control planes of one database may each have one.
    """

    def __init__(self, control: Control) -> None:
        self._control = control
        self._intake = Intake(control)
        self._uploads = Uploads(self._intake)
        self._store = TenantStore.of(control)
        self._deliveries = Deliveries(control)
        self._rounds: tuple[asyncio.Task[None], ...] = ()

    def start(self) -> None:
        check_s = self._control.config.batches.check_s
        self._rounds = (
            asyncio.create_task(self._repeat(self.round, ROUND_S)),
            asyncio.create_task(self._repeat(lambda: delete_old(self._store), check_s)),
            asyncio.create_task(self._repeat(self._deliveries.begin, DELIVERY_ROUND_S)),
            asyncio.create_task(self._repeat(self.long_round, LONG_ROUND_S)),
        )

    async def stop(self) -> None:
        """End the rounds and store the last uses of keys. Call it before the database is closed."""
        for task in self._rounds:
            task.cancel()
        await asyncio.gather(*self._rounds, return_exceptions=True)
        await self._deliveries.stop()
        try:
            await self._control.uses.keep(self._control.database)
        except ManyloraError as error:
            log.warning("control.uses_lost error=%s", error.message)

    async def round(self) -> None:
        """Do the periodic work once. Raise `ControlUnavailable` if the database fails, `OSError` if the disk does."""
        await self._control.uses.keep(self._control.database)
        await remove_old_rows(self._control)
        self._control.loads.forget(self._control.now_ms())  # also where no placer does it
        await sweep_wallets(self._control)
        async with self._control.database.write() as connection:
            await remove_old_messages(connection, self._control.now_ms())
            await forget_loads(connection, self._control.now_ms())
        await self._intake.end_interrupted()
        await asyncio.to_thread(self._uploads.sweep)
        await decide_all(self._store, on_the_machine(self._control))

    async def long_round(self) -> None:
        """Remove old sessions, old rows of replicas, and blobs that no row names. Raise as `round`."""
        await remove_old_sessions(self._control)
        await remove_old_replicas(self._control)
        await delete_unnamed(self._store)

    async def _repeat(self, work: Callable[[], Awaitable[object]], pause_s: float) -> None:
        while True:
            try:
                await work()
            except (ManyloraError, OSError) as error:
                log.warning("control.round_failed error=%s", error)
            except Exception:  # no code awaits this task, so one fault must not end it
                log.exception("control.round_failed")
            await asyncio.sleep(pause_s)
