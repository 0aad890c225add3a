"""Tenants' files: the input of batches, and their results, which grow line by line and are published at the end.

<folder>/<tenant>/files/<id>.data       the bytes
<folder>/<tenant>/files/<id>.json       the facts (`StoredFile`); a file without them is not visible
"""

import asyncio
import logging
import os
import secrets
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import quote

import msgspec

from manylora.clock import Clock
from manylora.config.groups.storage import StorageConfig
from manylora.errors import BodyTooLarge, ResourceNotFound, StorageLimitExceeded
from manylora.ids import TenantId
from manylora.server.storage.disk import UNFINISHED, append_durably, as_unavailable, publish, remove, write_durably
from manylora.system.printable import printable

log = logging.getLogger(__name__)

_FACTS, _DATA = ".json", ".data"


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of one file.

    created_ms  milliseconds since 1970; files of a tenant are listed by it
    expires_ms  the moment of its deletion
    purpose     OpenAI's name of the file's use, such as `batch` or `batch_output`
    """

    id: str
    size: int
    created_ms: int
    expires_ms: int
    name: str
    purpose: str


class TenantFiles:
    """The files of all tenants. It belongs to one event loop; the disk is written in threads."""

    def __init__(self, folder: Path, clock: Clock, settings: StorageConfig) -> None:
        """Read the facts of all files. Raises `OSError`."""
        self._folder = folder
        self._clock = clock
        self._settings = settings
        self._files: dict[TenantId, dict[str, StoredFile]] = {}
        self._growing: dict[tuple[TenantId, str], int] = {}  # bytes of files without facts
        self._used: Counter[TenantId] = Counter()
        self._writes: dict[tuple[TenantId, str], asyncio.Lock] = {}
        for place in sorted(folder.glob("*/files")):
            self._read(TenantId(place.parent.name), place)

    def _read(self, tenant: TenantId, place: Path) -> None:
        for unfinished in place.glob(f"*{UNFINISHED}"):
            remove(unfinished)
        for data in place.glob(f"*{_DATA}"):
            facts = data.with_suffix(_FACTS)
            try:
                found = msgspec.json.decode(facts.read_bytes(), type=StoredFile)
            except FileNotFoundError:
                self._growing[tenant, data.stem] = data.stat().st_size
                self._used[tenant] += data.stat().st_size
            except msgspec.DecodeError as error:
                log.error("storage.unreadable file=%s error=%s", facts, error)
            else:
                self._files.setdefault(tenant, {})[found.id] = found
                self._used[tenant] += found.size

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    def of(self, tenant: TenantId) -> list[StoredFile]:
        """Return the visible files of a tenant, the oldest first."""
        return sorted(self._files.get(tenant, {}).values(), key=lambda file: (file.created_ms, file.id))

    def get(self, tenant: TenantId, file_id: str, *, field: str = "file_id") -> StoredFile:
        """Return a file of a tenant. Raises `ResourceNotFound`, also for a file of another tenant."""
        found = self._files.get(tenant, {}).get(file_id)
        if found is None:
            raise ResourceNotFound(f"No such File object: {printable(file_id[:80])}", parameter=field)
        return found

    def path(self, tenant: TenantId, file_id: str) -> Path:
        """Return the path of a file's bytes."""
        return self._place(tenant) / (file_id + _DATA)

    def has_room(self, tenant: TenantId) -> bool:
        """Return whether a tenant may store any further byte."""
        return self._used[tenant] < self._settings.tenant_bytes

    # ── uploads ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def receive(self, tenant: TenantId) -> "IncomingFile":
        """Begin an upload. Raises `StorageLimitExceeded`, `StorageUnavailable`."""
        most = self._settings.tenant_files
        if len(self._files.get(tenant, {})) >= most:
            raise StorageLimitExceeded(f"the tenant has {most} files, the limit (storage.tenant_files); delete some")
        place = self._place(tenant)
        with as_unavailable(place):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
        return IncomingFile(self, tenant, mint_file_id())

    def take(self, tenant: TenantId, num_bytes: int) -> None:
        """Count bytes of an upload under way. Raises `StorageLimitExceeded`."""
        most = self._settings.tenant_bytes
        if self._used[tenant] + num_bytes > most:
            raise StorageLimitExceeded(
                f"the files of the tenant may have {most} bytes together (storage.tenant_bytes); delete some"
            )
        self._used[tenant] += num_bytes

    def give_back(self, tenant: TenantId, num_bytes: int) -> None:
        """Release bytes of an upload that failed."""
        self._used[tenant] -= num_bytes

    @property
    def max_file_bytes(self) -> int:
        return self._settings.max_file_bytes

    @property
    def retention_s(self) -> float:
        return self._settings.retention_s

    def facts(self, file_id: str, size: int, *, name: str, purpose: str, lifetime_s: float | None = None) -> StoredFile:
        """Return the facts of a file that is stored now. `lifetime_s` None: `storage.retention_s`."""
        now_ms = int(1000 * self._clock.wall_s())
        kept_s = self._settings.retention_s if lifetime_s is None else min(lifetime_s, self._settings.retention_s)
        return StoredFile(
            id=file_id, size=size, created_ms=now_ms, expires_ms=now_ms + int(1000 * kept_s), name=name, purpose=purpose
        )

    async def keep(self, tenant: TenantId, file: StoredFile) -> None:
        """Make a file visible whose bytes are on the disk. Raises `StorageUnavailable`."""
        path = self.path(tenant, file.id).with_suffix(_FACTS)
        with as_unavailable(path):
            await asyncio.to_thread(write_durably, path, msgspec.json.encode(file))
        self._files.setdefault(tenant, {})[file.id] = file

    # ── files that grow ──────────────────────────────────────────────────────────────────────────────────────────

    def grown(self, tenant: TenantId, file_id: str) -> int:
        """Return the number of bytes of a growing file; 0 if nothing has been written."""
        return self._growing.get((tenant, file_id), 0)

    async def append(self, tenant: TenantId, file_id: str, data: bytes) -> None:
        """Append to a growing file; the data are on the disk at the return. Raises `StorageUnavailable`."""
        key, path = (tenant, file_id), self.path(tenant, file_id)
        async with self._writes.setdefault(key, asyncio.Lock()):
            size = self.grown(tenant, file_id)
            with as_unavailable(path):
                if not size:
                    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                await asyncio.to_thread(append_durably, path, data, size)
            self._growing[key] = size + len(data)
            self._used[tenant] += len(data)

    def cut(self, tenant: TenantId, file_id: str, size: int) -> None:
        """Note that a growing file has `size` bytes, since the rest is no whole line. The next write cuts it off."""
        if (tenant, file_id) in self._growing:
            self._used[tenant] += size - self._growing[tenant, file_id]
            self._growing[tenant, file_id] = size

    async def publish(
        self, tenant: TenantId, file_id: str, *, name: str, purpose: str, lifetime_s: float | None = None
    ) -> StoredFile | None:
        """Make a growing file visible; None if it is empty. A second call returns the same file.

        Raises `StorageUnavailable`.
        """
        if (done := self._files.get(tenant, {}).get(file_id)) is not None:
            return done
        self._writes.pop((tenant, file_id), None)
        size, path = self.grown(tenant, file_id), self.path(tenant, file_id)
        if not size:
            self._growing.pop((tenant, file_id), None)
            await asyncio.to_thread(remove, path)
            return None
        with as_unavailable(path):
            await asyncio.to_thread(os.truncate, path, size)
        file = self.facts(file_id, size, name=name, purpose=purpose, lifetime_s=lifetime_s)
        await self.keep(tenant, file)
        self._growing.pop((tenant, file_id), None)
        return file

    # ── deletion ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def delete(self, tenant: TenantId, file_id: str) -> None:
        """Delete a file. Raises `ResourceNotFound`."""
        file = self.get(tenant, file_id)
        path = self.path(tenant, file_id)
        await asyncio.to_thread(remove, path.with_suffix(_FACTS), path)  # the facts first: a kill leaves no broken file
        if self._files.get(tenant, {}).pop(file_id, None) is not None:
            self._used[tenant] -= file.size

    async def discard(self, tenant: TenantId, file_id: str) -> None:
        """Delete a growing file; one that is not there changes nothing."""
        size = self._growing.pop((tenant, file_id), None)
        if size is not None:
            await asyncio.to_thread(remove, self.path(tenant, file_id))
            self._used[tenant] -= size

    async def discard_unclaimed(self, claimed: Collection[tuple[TenantId, str]]) -> None:
        """Delete growing files that no batch claims: a kill in the middle of a deletion or an upload leaves them."""
        for tenant, file_id in self._growing.keys() - set(claimed):
            await self.discard(tenant, file_id)

    async def delete_expired(self, in_use: Collection[tuple[TenantId, str]]) -> None:
        """Delete the files whose time is over, but for those in use."""
        now_ms = 1000 * self._clock.wall_s()
        over = [
            (tenant, file.id)
            for tenant, files in self._files.items()
            for file in files.values()
            if file.expires_ms <= now_ms and (tenant, file.id) not in in_use
        ]
        for tenant, file_id in over:
            await self.delete(tenant, file_id)

    async def delete_all_of(self, tenant: TenantId) -> None:
        """Delete every file of a tenant."""
        for file in self.of(tenant):
            await self.delete(tenant, file.id)
        for owner, file_id in list(self._growing):
            if owner == tenant:
                await self.discard(owner, file_id)

    @property
    def tenants(self) -> list[TenantId]:
        """The tenants with a file."""
        return list({*self._files, *(tenant for tenant, _ in self._growing)})

    def _place(self, tenant: TenantId) -> Path:
        return self._folder / quote(tenant, safe="") / "files"


class IncomingFile:
    """An upload under way. Use it with `async with`; one that is not kept leaves nothing."""

    def __init__(self, files: TenantFiles, tenant: TenantId, file_id: str) -> None:
        self.id = file_id
        self._files = files
        self._tenant = tenant
        self._path = files.path(tenant, file_id)
        self._part = self._path.with_name(self._path.name + UNFINISHED)
        self._stream: BinaryIO | None = None
        self._size = 0
        self._is_kept = False

    async def __aenter__(self) -> Self:
        with as_unavailable(self._part):
            self._stream = self._part.open("wb", buffering=0)
        return self

    async def write(self, chunk: bytes) -> None:
        """Write the next bytes. Raises `BodyTooLarge`, `StorageLimitExceeded`, `StorageUnavailable`."""
        assert self._stream is not None, "the upload has begun"
        most = self._files.max_file_bytes
        if self._size + len(chunk) > most:
            raise BodyTooLarge(f"a file may have at most {most} bytes (storage.max_file_bytes)", parameter="file")
        self._files.take(self._tenant, len(chunk))
        self._size += len(chunk)
        with as_unavailable(self._part):
            await asyncio.to_thread(_write_all, self._stream, chunk)

    async def keep(self, *, name: str, purpose: str, lifetime_s: float | None = None) -> StoredFile:
        """Make the file durable and visible. Raises `StorageUnavailable`."""
        assert self._stream is not None, "the upload has begun"
        with as_unavailable(self._part):
            await asyncio.to_thread(os.fsync, self._stream.fileno())
            await asyncio.to_thread(publish, self._part, self._path)
        file = self._files.facts(self.id, self._size, name=name, purpose=purpose, lifetime_s=lifetime_s)
        await self._files.keep(self._tenant, file)
        self._is_kept = True
        return file

    async def __aexit__(self, *failure: object) -> None:
        if self._stream is not None:
            self._stream.close()
        if not self._is_kept:
            self._files.give_back(self._tenant, self._size)
            await asyncio.to_thread(remove, self._part, self._path)


def _write_all(stream: BinaryIO, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[stream.write(view) :]


def mint_file_id() -> str:
    return f"file-{secrets.token_hex(16)}"
