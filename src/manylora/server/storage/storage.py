"""The folder of one server in which it keeps what its tenants give it."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from manylora.clock import Clock
from manylora.config.groups.storage import StorageConfig
from manylora.errors import ConfigInvalid
from manylora.ids import TenantId
from manylora.server.storage.files import TenantFiles
from manylora.server.storage.responses import TenantResponses
from manylora.system.failures import cause_of
from manylora.system.held_folders import HeldFolder, hold_first_free, released_on_error


@dataclass(frozen=True, slots=True)
class Storage:
    """The files and responses of one server's tenants. `close` lets another server hold its folder."""

    folder: Path
    files: TenantFiles
    responses: TenantResponses
    _held: HeldFolder

    @property
    def tenants(self) -> set[TenantId]:
        """The tenants with a file or a response."""
        return {*self.files.tenants, *self.responses.tenants}

    async def delete_expired(self, in_use: Collection[tuple[TenantId, str]]) -> None:
        """Delete what has been kept for its time, but for the files in use."""
        await self.files.delete_expired(in_use)
        await self.responses.delete_expired()

    async def delete_all_of(self, tenant: TenantId) -> None:
        """Delete every file and response of a tenant."""
        await self.files.delete_all_of(tenant)
        await self.responses.delete_all_of(tenant)

    def close(self) -> None:
        self._held.release()


def open_storage(root: Path, clock: Clock, settings: StorageConfig) -> Storage:
    """Hold the first free folder below `root` and read it. Raises `ConfigInvalid` if it cannot be used."""
    try:
        held = hold_first_free(root)
        with released_on_error(held):
            files = TenantFiles(held.path, clock, settings)
            return Storage(held.path, files, TenantResponses(held.path, clock, settings), held)
    except OSError as error:
        raise ConfigInvalid(f"storage.dir {root} cannot be used: {cause_of(error)}") from error
