"""Periodic work of the control plane while it runs.

It fails interrupted copies, removes abandoned uploads and old audit rows, and stores the last uses of keys.
"""

import asyncio
import logging

from manylora.control.control import Control
from manylora.control.registry.intake import Intake
from manylora.control.registry.uploads import Uploads
from manylora.control.tenants.audit import remove_old_rows
from manylora.errors import ManyloraError

log = logging.getLogger(__name__)

ROUND_S = 60.0


class Janitor:
    """Runs a round every `ROUND_S` seconds. Several control planes of one database may each have one."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._intake = Intake(control)
        self._uploads = Uploads(self._intake)
        self._rounds: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._rounds = asyncio.create_task(self._go_round())

    async def stop(self) -> None:
        """End the rounds and store the last uses of keys. Call it before the database is closed."""
        if self._rounds is not None:
            self._rounds.cancel()
            await asyncio.gather(self._rounds, return_exceptions=True)
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

    async def _go_round(self) -> None:
        while True:
            try:
                await self.round()
            except (ManyloraError, OSError) as error:
                log.warning("control.round_failed error=%s", error)
            except Exception:  # no code awaits this task, so one fault must not end it
                log.exception("control.round_failed")
            await asyncio.sleep(ROUND_S)
