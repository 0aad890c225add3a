"""Periodic work of the control plane while it runs.

It fails interrupted copies, removes abandoned uploads and old audit rows, and stores the last uses of keys. More
often it deletes the files, responses and batches whose time is over.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from manylora.control.control import Control
from manylora.control.registry.intake import Intake
from manylora.control.registry.uploads import Uploads
from manylora.control.stored.objects import TenantStore
from manylora.control.stored.retention import delete_old, delete_unnamed
from manylora.control.tenants.audit import remove_old_rows
from manylora.errors import ManyloraError

log = logging.getLogger(__name__)

ROUND_S = 60.0
UNNAMED_ROUND_S = 3600.0
"""Seconds between two walks over all blobs: their number grows with what tenants keep."""


class Janitor:
    """Runs a round every `ROUND_S` seconds, and deletes what tenants keep every `batches.check_s`.

    Every `UNNAMED_ROUND_S` it deletes blobs that no row names.

    Several control planes of one database may each have one.
    """

    def __init__(self, control: Control) -> None:
        self._control = control
        self._intake = Intake(control)
        self._uploads = Uploads(self._intake)
        self._store = TenantStore.of(control)
        self._rounds: tuple[asyncio.Task[None], ...] = ()

    def start(self) -> None:
        check_s = self._control.config.batches.check_s
        self._rounds = (
            asyncio.create_task(self._repeat(self.round, ROUND_S)),
            asyncio.create_task(self._repeat(lambda: delete_old(self._store), check_s)),
            asyncio.create_task(self._repeat(lambda: delete_unnamed(self._store), UNNAMED_ROUND_S)),
        )

    async def stop(self) -> None:
        """End the rounds and store the last uses of keys. Call it before the database is closed."""
        for task in self._rounds:
            task.cancel()
        await asyncio.gather(*self._rounds, return_exceptions=True)
        try:
            await self._control.uses.keep(self._control.database)
        except ManyloraError as error:
            log.warning("control.uses_lost error=%s", error.message)

    async def round(self) -> None:
        """Do the periodic work once. Raise `ControlUnavailable` if the database fails, `OSError` if the disk does."""
        await self._control.uses.keep(self._control.database)
        await remove_old_rows(self._control)
        await self._intake.end_interrupted()
        await asyncio.to_thread(self._uploads.sweep)

    async def _repeat(self, work: Callable[[], Awaitable[None]], pause_s: float) -> None:
        while True:
            try:
                await work()
            except (ManyloraError, OSError) as error:
                log.warning("control.round_failed error=%s", error)
            except Exception:  # no code awaits this task, so one fault must not end it
                log.exception("control.round_failed")
            await asyncio.sleep(pause_s)
