"""The folder of one server in which it keeps what its tenants give it."""

from dataclasses import dataclass
from pathlib import Path

from manylora.clock import Clock
from manylora.config.groups.storage import StorageConfig
from manylora.errors import ConfigInvalid
from manylora.server.storage.files import TenantFiles
from manylora.system.failures import cause_of
from manylora.system.held_folders import HeldFolder, hold_first_free, released_on_error


@dataclass(frozen=True, slots=True)
class Storage:
    """The files of one server's tenants. `close` lets another server hold its folder."""

    folder: Path
    files: TenantFiles
    _held: HeldFolder

    def close(self) -> None:
        self._held.release()


def open_storage(root: Path, clock: Clock, settings: StorageConfig) -> Storage:
    """Hold the first free folder below `root` and read it. Raises `ConfigInvalid` if it cannot be used."""
    try:
        held = hold_first_free(root)
        with released_on_error(held):
            return Storage(held.path, TenantFiles(held.path, clock, settings), held)
    except OSError as error:
        raise ConfigInvalid(f"storage.dir {root} cannot be used: {cause_of(error)}") from error
