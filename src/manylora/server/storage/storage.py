"""Storage: what tenants give, kept by the control plane, and a folder of the server for its work on it."""

import asyncio
import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from manylora.clock import Clock
from manylora.config.groups.storage import StorageConfig
from manylora.errors import ConfigInvalid, ControlUnavailable, StorageUnavailable
from manylora.server.access.control_client import HttpControlClient
from manylora.server.storage.control_store import ControlStore
from manylora.server.storage.conversations import TenantConversations
from manylora.server.storage.files import TenantFiles
from manylora.server.storage.pushes import ControlPushes
from manylora.server.storage.responses import TenantResponses
from manylora.stored.files import KeptQuestion
from manylora.system.disk import remove, write_durably
from manylora.system.failures import cause_of
from manylora.system.held_folders import LOCK_FILE, HeldFolder, hold_first_free

log = logging.getLogger(__name__)

PLANE_FILE = "control-plane"
"""The file in `storage.dir` with the mark of the control plane whose servers use it."""
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
    conversations: TenantConversations
    pushes: ControlPushes
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


def open_storage(
    root: Path, client: HttpControlClient, clock: Clock, settings: StorageConfig, *, plane: str
) -> Storage:
    """Hold the first free folder below `root`, and empty it.

    Args:    plane  the mark of the control plane, as `plane_mark` returns it
    Raises:  `ConfigInvalid` if the folder cannot be used, or belongs to servers of another control plane
    """
    try:
        held = hold_first_free(root)
        try:
            _require_own(root, plane)
        except BaseException:
            held.release()
            raise
    except OSError as error:
        raise ConfigInvalid(f"storage.dir {root} cannot be used: {cause_of(error)}") from error
    remove(*(path for path in held.path.iterdir() if path.is_file() and path.name != LOCK_FILE))
    store = ControlStore(client)
    return Storage(
        folder=held.path,
        store=store,
        files=TenantFiles(store),
        responses=TenantResponses(store, clock, settings),
        conversations=TenantConversations(store),
        pushes=ControlPushes(client),
        _held=held,
    )


def plane_mark(pepper: str) -> str:
    """Return a public name of a control plane, made of its secret: 16 hexadecimal digits."""
    return hashlib.blake2b(pepper.encode(), digest_size=8, person=b"storage.dir").hexdigest()


def _require_own(root: Path, plane: str) -> None:
    """Mark a folder as one of this control plane's. Raises `OSError`.

    What a folder without a mark has goes to the control plane of the first server that opens it. Raises `ConfigInvalid`
    for a folder of another control plane with tenants' objects of an earlier version, which only that one may take
    over. Without them the folder has nothing of a control plane, and any server may work in it.
    """
    mark = root / PLANE_FILE
    found = mark.read_text() if mark.exists() else ""
    has_objects = any(path.is_dir() for path in root.glob("[0-9]*/*"))
    if found not in ("", plane) and has_objects:
        raise ConfigInvalid(
            f"storage.dir {root} belongs to servers of the control plane {found[:16]!r} (its file {PLANE_FILE}), and "
            f"this server's is {plane!r}: give the servers of each control plane a folder of their own. If it has "
            f"replaced the other, delete that file"
        )
    if found != plane:
        write_durably(mark, plane.encode())
