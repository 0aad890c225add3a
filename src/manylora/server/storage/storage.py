"""Files and responses of tenants, which the control plane keeps, and a folder of the server for its work on them."""

from dataclasses import dataclass
from pathlib import Path

from manylora.clock import Clock
from manylora.config.groups.storage import StorageConfig
from manylora.errors import ConfigInvalid
from manylora.server.access.control_client import HttpControlClient
from manylora.server.storage.control_store import ControlStore
from manylora.server.storage.files import TenantFiles
from manylora.server.storage.responses import TenantResponses
from manylora.system.disk import remove
from manylora.system.failures import cause_of
from manylora.system.held_folders import LOCK_FILE, HeldFolder, hold_first_free


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
