"""Files and responses of tenants, which the control plane keeps, and a folder of the server for its work on them."""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from manylora.clock import Clock
from manylora.config.groups.storage import StorageConfig
from manylora.errors import ConfigInvalid, ControlUnavailable, StorageUnavailable
from manylora.server.access.control_client import HttpControlClient
from manylora.server.storage.control_store import ControlStore
from manylora.server.storage.files import TenantFiles
from manylora.server.storage.responses import TenantResponses
from manylora.stored.files import KeptQuestion
from manylora.system.disk import remove
from manylora.system.failures import cause_of
from manylora.system.held_folders import LOCK_FILE, HeldFolder, hold_first_free

log = logging.getLogger(__name__)

AWAY_WAIT_S = 1.0
"""Seconds between two attempts of a question while the control plane or its disk is away."""


@dataclass(frozen=True, slots=True)
class Storage:
    """The files and responses of tenants. `folder` has copies of the inputs of batches under way.

    `close` lets another server hold the folder.
    """

    folder: Path
    store: ControlStore
    files: TenantFiles
    responses: TenantResponses
    _held: HeldFolder

    async def kept_lines(self, questions: Iterable[KeptQuestion]) -> set[str]:
        """Return the ids of HTTP requests of lines that have a result.

        The questions are repeated until the control plane answers: without an answer such lines would cost nothing.
        """
        return {request for question in questions for request in await self._kept(question)}

    async def _kept(self, question: KeptQuestion) -> set[str]:
        while True:
            try:
                return await self.store.kept_lines(question)
            except (ControlUnavailable, StorageUnavailable) as error:
                log.warning("storage.kept_lines_unknown tenant=%s error=%s", question.tenant, error.message)
            await asyncio.sleep(AWAY_WAIT_S)

    def close(self) -> None:
        self._held.release()


def open_storage(root: Path, client: HttpControlClient, clock: Clock, settings: StorageConfig) -> Storage:
    """Hold the first free folder below `root`, and empty it. Raises `ConfigInvalid` if it cannot be used."""
    try:
        held = hold_first_free(root)
    except OSError as error:
        raise ConfigInvalid(f"storage.dir {root} cannot be used: {cause_of(error)}") from error
    remove(*(path for path in held.path.iterdir() if path.is_file() and path.name != LOCK_FILE))
    store = ControlStore(client)
    return Storage(held.path, store, TenantFiles(store), TenantResponses(store, clock, settings), held)
