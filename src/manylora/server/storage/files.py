"""Tenants' files, which the control plane keeps: uploads part by part, reads range by range."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

from manylora.errors import BodyTooLarge, ManyloraError, ResourceNotFound
from manylora.ids import TenantId
from manylora.server.storage.control_store import ControlStore
from manylora.stored.files import BegunFile, Publication, StoredFile
from manylora.system.disk import as_unavailable
from manylora.system.printable import printable

PART_BYTES = 1 << 20


class TenantFiles:
    """The files of all tenants."""

    def __init__(self, store: ControlStore) -> None:
        self._store = store

    async def of(self, tenant: TenantId) -> list[StoredFile]:
        """Return the visible files of a tenant, the oldest first."""
        return await self._store.files(tenant)

    async def get(self, tenant: TenantId, file_id: str, *, field: str = "file_id") -> StoredFile:
        """Return a file of a tenant. Raises `ResourceNotFound`, also for a file of another tenant."""
        try:
            return await self._store.file(tenant, file_id)
        except ResourceNotFound as error:
            raise _no_file(file_id, field) from error

    async def receive(self, tenant: TenantId) -> "IncomingFile":
        """Begin an upload. Raises `StorageLimitExceeded`, `StorageUnavailable`."""
        return IncomingFile(self._store, tenant, await self._store.begin_file(tenant))

    async def delete(self, tenant: TenantId, file_id: str) -> None:
        """Delete a file. Raises `ResourceNotFound`, and `InvalidParameter` for the input of a batch under way."""
        try:
            await self._store.delete_file(tenant, file_id)
        except ResourceNotFound as error:
            raise _no_file(file_id, "file_id") from error

    async def chunks(self, tenant: TenantId, file_id: str) -> AsyncIterator[bytes]:
        """Yield the bytes of a file, also of one that grows, up to its end. Raises `ResourceNotFound`."""
        start = 0
        while chunk := await self._store.read(tenant, file_id, start, start + PART_BYTES):
            start += len(chunk)
            yield chunk

    async def fetch(self, tenant: TenantId, file_id: str, path: Path) -> None:
        """Copy a file to this server's disk. Raises `ResourceNotFound`, `StorageUnavailable`."""
        with as_unavailable(path), path.open("wb") as stream:
            async for chunk in self.chunks(tenant, file_id):
                stream.write(chunk)


class IncomingFile:
    """An upload under way. Use it with `async with`; one that is not kept leaves nothing."""

    def __init__(self, store: ControlStore, tenant: TenantId, begun: BegunFile) -> None:
        self.id = begun.id
        self.max_bytes = begun.max_bytes
        self._store = store
        self._tenant = tenant
        self._waiting = bytearray()
        self._sent = 0
        self._is_kept = False

    async def __aenter__(self) -> Self:
        return self

    async def write(self, chunk: bytes) -> None:
        """Take the next bytes. Raises `BodyTooLarge`, `StorageLimitExceeded`, `StorageUnavailable`."""
        if self._sent + len(self._waiting) + len(chunk) > self.max_bytes:
            raise BodyTooLarge(
                f"a file may have at most {self.max_bytes} bytes (storage.max_file_bytes)", parameter="file"
            )
        self._waiting += chunk
        while len(self._waiting) >= PART_BYTES:
            await self._send(PART_BYTES)

    async def keep(self, *, name: str, purpose: str, lifetime_s: float | None = None) -> StoredFile:
        """Make the file visible. Raises as `write`."""
        if self._waiting:
            await self._send(len(self._waiting))
        order = Publication(name=name, purpose=purpose, lifetime_s=lifetime_s)
        file = await self._store.publish(self._tenant, self.id, order)
        assert file is not None, "the upload has begun"
        self._is_kept = True
        return file

    async def _send(self, size: int) -> None:
        grown = await self._store.append(self._tenant, self.id, self._sent, bytes(self._waiting[:size]))
        self._sent = grown.size
        del self._waiting[:size]

    async def __aexit__(self, *failure: object) -> None:
        if not self._is_kept:
            try:
                await self._store.delete_file(self._tenant, self.id, is_upload=True)
            except ManyloraError:
                return  # the control plane deletes it within the hour


def _no_file(file_id: str, field: str) -> ResourceNotFound:
    return ResourceNotFound(f"No such File object: {printable(file_id[:80])}", parameter=field)
