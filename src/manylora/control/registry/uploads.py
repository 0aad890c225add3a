"""Uploads: signed addresses that take an adapter's files without a key, in as many parts as it needs.

    {registry}/.uploads/{tenant}/{upload id}/adapter_config.json, adapter_model.safetensors, tokenizer.json, …

An upload's id ends with the moment it expires, so that what was abandoned is known by its name. Completing takes the
folder away in one rename: it happens once, and no writer is left in it.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.adapters.refusals import CONVERSION_HINT, Refusals
from manylora.adapters.sources.source import (
    CONFIG_FILE,
    MAX_CONFIG_BYTES,
    PARTS,
    PICKLED_FILE,
    TEXT_FILES,
    WEIGHTS_FILE,
)
from manylora.adapters.sources.upload_folders import is_repository_name
from manylora.adapters.text.base_text import MAX_FILE_BYTES
from manylora.control.bases import base_names
from manylora.control.registry.aliases import check_alias
from manylora.control.registry.intake import Intake, storage_failures
from manylora.control.registry.repositories import Repository, check_room, find_repository
from manylora.control.storage.tables import keys
from manylora.control.tenants.audit import Actor, record
from manylora.errors import (
    AdapterError,
    AdapterUnsafeFormat,
    ControlUnavailable,
    InsufficientPermissions,
    InvalidApiKey,
    InvalidParameter,
    ManyloraError,
    NameTaken,
    ResourceNotFound,
    StorageLimitExceeded,
)
from manylora.http.callers import Caller
from manylora.ids import KeyId, TenantId

UPLOAD_TTL_MS = 3_600_000
MAX_OPEN = 16
"""Uploads of one tenant at one time that were begun and not completed."""
RECHECK_S = 5.0
FOLDER = ".uploads"
FACTS_FILE = "upload.json"
CLAIMED = ".claimed"
KEPT_FILES = (*PARTS, *TEXT_FILES)
FILES = (CONFIG_FILE, PICKLED_FILE, WEIGHTS_FILE, *TEXT_FILES)
WRITE_BYTES = 1 << 20
_ID = re.compile(r"[0-9a-f]{32}-([0-9]{13,15})")
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_UNKNOWN = "no such upload, or it has expired or was completed"


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadFacts:
    """Purpose of an upload. key: that began it, None where none was asked for; alias: of the version it becomes."""

    tenant: TenantId
    repository: str
    repository_uuid: str
    key: KeyId | None
    alias: str | None = None

    @property
    def created_by(self) -> str:
        return self.key or self.tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Which bytes of a file a request brings: from `start`; up to `stop`, None: as many as come."""

    start: int = 0
    stop: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bounds:
    """What one file may become. room_bytes: the tenant's, for all that is no version yet; None: it has no limit."""

    facts: UploadFacts
    server_bytes: int
    room_bytes: int | None
    other_bytes: Callable[[], int]
    read_s: float

    @property
    def max_bytes(self) -> int:
        if self.room_bytes is None:
            return self.server_bytes
        return max(0, min(self.server_bytes, self.room_bytes - self.other_bytes()))

    def refuse_large(self, num_bytes: int) -> None:
        """Raises `AdapterTooLarge`, `StorageLimitExceeded`."""
        if num_bytes > self.server_bytes:
            raise Refusals(self.facts.repository, "pbase").too_large(num_bytes, self.server_bytes)
        if num_bytes > self.max_bytes:
            raise StorageLimitExceeded(
                f"tenant `{self.facts.tenant}`, or the key, may store {self.room_bytes} bytes more (adapter_bytes); "
                f"uploads under way have {self.other_bytes()}, and this needs {num_bytes}"
            )


_FINAL = (AdapterError, InvalidParameter, ResourceNotFound, StorageLimitExceeded)
"""Errors that no further try of the same token changes."""


class Uploads:
    """The uploads under way of one control plane."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._control = intake.control
        self.root = self._control.registry_dir / FOLDER

    async def begin(
        self, caller: Caller, actor: Actor, reference: str, alias: str | None = None
    ) -> tuple[str, UploadFacts]:
        """Open an upload and return its id. Raises `ResourceNotFound`, `StorageLimitExceeded`, as `check_alias`."""
        open_bytes = self._open_bytes(caller.tenant)
        async with self._control.database.read() as connection:
            repository = await find_repository(connection, caller.tenant, reference)
            if repository.owner != caller.tenant:
                raise InsufficientPermissions(f"repository `{repository.name}` belongs to another tenant")
            if alias is not None:
                check_alias(repository, alias, base_names(self._control.config))
            await check_room(connection, caller.tenant, caller.key or "", more=1, more_bytes=open_bytes + 1, rank=0)
        facts = UploadFacts(
            tenant=caller.tenant,
            repository=repository.name,
            repository_uuid=repository.uuid,
            key=caller.key,
            alias=alias,
        )
        with storage_failures():
            upload = await asyncio.to_thread(self._open, facts)
        try:
            async with self._control.database.write() as connection:
                name = repository.name
                await record(connection, actor, "begin", "upload", name, tenant=facts.tenant, after=upload)
        except BaseException:  # no upload is open whose beginning is not on record
            await asyncio.to_thread(shutil.rmtree, self._folder(facts.tenant, upload), ignore_errors=True)
            raise
        return upload, facts

    def _open(self, facts: UploadFacts) -> str:
        self.sweep()
        place = self.root / facts.tenant
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        if sum(1 for _ in place.iterdir()) >= MAX_OPEN:
            raise StorageLimitExceeded(f"{MAX_OPEN} uploads are open already; complete one, or wait until it expires")
        upload = f"{secrets.token_hex(16)}-{self._control.now_ms() + UPLOAD_TTL_MS}"
        (place / upload).mkdir(mode=0o700)
        (place / upload / FACTS_FILE).write_text(json.dumps(asdict(facts)), encoding="utf-8")
        return upload

    # ── signatures ───────────────────────────────────────────────────────────────────────────────────────────────

    def sign(self, upload: str, facts: UploadFacts, what: str) -> str:
        """64 hex digits without which `what`, one of the files or `complete`, cannot be done to this upload.

        The id has the expiry in it.
        """
        parts = ("upload", facts.tenant, facts.repository_uuid, upload, what)
        return hmac.new(bytes.fromhex(self._control.pepper), "\n".join(parts).encode(), hashlib.sha256).hexdigest()

    def token(self, upload: str, facts: UploadFacts) -> str:
        return f"{upload}.{self.sign(upload, facts, 'complete')}"

    def allowed(self, tenant: str, upload: str, file: str, signature: str) -> UploadFacts:
        """The upload that a signed address means. Raises `InsufficientPermissions` for every one that is not valid."""
        refused = InsufficientPermissions("the upload's address is not valid, or has expired")
        if not is_repository_name(tenant) or self._expires_ms(upload) <= self._control.now_ms() or file not in FILES:
            raise refused
        facts = self._facts(tenant, upload)
        if facts is None or not _is_signature(self.sign(upload, facts, file), signature):
            raise refused
        return facts

    # ── bytes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def received_bytes(self, facts: UploadFacts, upload: str, file: str) -> int:
        """How many bytes of a file are here: where to go on."""
        return _size(self._folder(facts.tenant, upload) / file)

    async def max_bytes(self, facts: UploadFacts, upload: str, file: str) -> int:
        """How many bytes a file may have, by the server's limits and the tenant's room. Raises as `write`."""
        return (await self._bounds(facts, upload, file)).max_bytes

    async def _bounds(self, facts: UploadFacts, upload: str, file: str) -> "_Bounds":
        """What a file may still become. Raises as `write` where its tenant or its key may store nothing any more."""
        async with self._control.database.read() as connection:
            await self._require_key(connection, facts)
            room = await check_room(connection, facts.tenant, facts.created_by, more=0, more_bytes=0, rank=0)
        return _Bounds(
            facts=facts,
            server_bytes=self._server_bytes(file),
            room_bytes=room,
            other_bytes=partial(self._open_bytes, facts.tenant, besides=self._folder(facts.tenant, upload) / file),
            read_s=self._control.clock.monotonic_s(),
        )

    def _server_bytes(self, file: str) -> int:
        """The server's own limit on one file."""
        if file == CONFIG_FILE:
            return MAX_CONFIG_BYTES
        most = self._control.config.adapters.max_bytes
        return min(most, MAX_FILE_BYTES[file]) if file in MAX_FILE_BYTES else most

    async def _require_key(self, connection: AsyncConnection, facts: UploadFacts) -> None:
        """Raises `InvalidApiKey` if the key that began an upload has been revoked or has expired since."""
        if facts.key is None:
            return
        asked = select(keys.c.revoked_ms, keys.c.expires_ms).where(keys.c.id == facts.key)
        row = (await connection.execute(asked)).one_or_none()
        is_past = row is not None and row.expires_ms is not None and row.expires_ms <= self._control.now_ms()
        if row is None or row.revoked_ms is not None or is_past:
            raise InvalidApiKey("the key that began this upload is not valid any more")

    def _open_bytes(self, tenant: TenantId, *, besides: Path | None = None) -> int:
        """The bytes of a tenant's uploads that are no versions yet, one file aside."""
        place = self.root / tenant
        folders = list(place.iterdir()) if place.is_dir() else []
        return sum(_size(folder / name) for folder in folders for name in KEPT_FILES if folder / name != besides)

    async def write(
        self,
        facts: UploadFacts,
        upload: str,
        file: str,
        part: Part,
        chunks: AsyncIterator[bytes],
        told_bytes: int | None = None,
    ) -> int:
        """Write a part of a file as it arrives, and return how many bytes the file has now.

        What came before a connection broke stays. The tenant's limit holds for its versions and all its open uploads
        together; it, the tenant's state and the key's are looked at when a part begins and every `RECHECK_S` while
        it comes.

        Args:    told_bytes  how many the part is said to have, so that too many are refused before they come
        Raises:  `AdapterUnsafeFormat` for pickled weights, `AdapterTooLarge` and `StorageLimitExceeded` as soon as the
                 limit is passed, `InvalidParameter` for a part that does not begin where the file ends, `NameTaken`
                 while another request writes the file, `AdapterStorageUnavailable` if the disk fails,
                 `TenantSuspended` and `InvalidApiKey` where nothing may be stored any more
        """
        if file == PICKLED_FILE:
            raise AdapterUnsafeFormat(f"pickled weights are not taken, for opening them runs code: {CONVERSION_HINT}")
        bounds = await self._bounds(facts, upload, file)
        bounds.refuse_large(part.stop or part.start + (told_bytes or 0))

        async def refuse_large(num_bytes: int) -> None:
            nonlocal bounds
            if self._control.clock.monotonic_s() - bounds.read_s > RECHECK_S:
                # A database that is away for a moment costs nobody what has come so far; the end is checked anyway.
                with contextlib.suppress(ControlUnavailable):
                    bounds = await self._bounds(facts, upload, file)
            bounds.refuse_large(num_bytes)

        path = self._folder(facts.tenant, upload) / file
        left_s = (self._expires_ms(upload) - self._control.now_ms()) / 1000
        try:
            async with asyncio.timeout(left_s):
                with storage_failures(), _only_writer(path) as descriptor:
                    return await _write_part(descriptor, part, refuse_large, chunks)
        except TimeoutError as error:
            raise InsufficientPermissions("the upload's address expired while bytes came") from error

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def complete(self, caller: Caller, actor: Actor, token: str) -> tuple[Repository, int]:
        """Check what came and make it a version. The token is good for one try; only a failing disk gives it back.

        Raises `ResourceNotFound` for a token that is not valid, expired, used or another tenant's; as `Intake.take`.
        """
        upload, _, signature = token.partition(".")
        facts = self._facts(caller.tenant, upload) if self._expires_ms(upload) > self._control.now_ms() else None
        if facts is None or not _is_signature(self.sign(upload, facts, "complete"), signature):
            raise ResourceNotFound(_UNKNOWN)
        folder = self._claim(facts, upload)
        is_over = True
        try:
            async with self._control.database.read() as connection:
                repository = await find_repository(connection, caller.tenant, facts.repository)
            if repository.uuid != facts.repository_uuid:
                raise ResourceNotFound(f"repository `{facts.repository}` was deleted meanwhile")
            (folder / FACTS_FILE).unlink()
            return await self._intake.take(folder, actor, repository, facts.created_by, facts.alias)
        except BaseException as error:
            # What is wrong with the files stays wrong; a disk, a database or a cancelled request may be better later.
            is_over = isinstance(error, _FINAL) and not (getattr(error, "is_retryable", False))
            if not is_over and folder.exists():
                (folder / FACTS_FILE).write_text(json.dumps(asdict(facts)), encoding="utf-8")
                folder.rename(folder.with_name(upload))
            raise
        finally:
            if is_over:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _claim(self, facts: UploadFacts, upload: str) -> Path:
        """Take the folder away from every other request. Raises `ResourceNotFound`, `NameTaken`."""
        folder = self._folder(facts.tenant, upload)
        claimed = folder.with_name(upload + CLAIMED)
        try:
            folder.rename(claimed)
        except OSError as error:
            raise ResourceNotFound(_UNKNOWN) from error
        try:
            for name in KEPT_FILES:
                if (claimed / name).exists():
                    with _only_writer(claimed / name):
                        pass  # nobody writes; who opens it from now on finds that it has gone from its place
        except NameTaken:
            claimed.rename(folder)
            raise
        return claimed

    def sweep(self) -> None:
        """Delete the uploads that have expired. Blocks."""
        for place in self.root.iterdir() if self.root.is_dir() else ():
            for folder in list(place.iterdir()):
                kept_ms = UPLOAD_TTL_MS if folder.name.endswith(CLAIMED) else 0  # a check may be under way
                if self._expires_ms(folder.name.removesuffix(CLAIMED)) + kept_ms <= self._control.now_ms():
                    shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, tenant: str, upload: str) -> Path:
        return self.root / tenant / upload

    def _facts(self, tenant: str, upload: str) -> UploadFacts | None:
        if not is_repository_name(tenant):
            return None
        try:
            text = (self._folder(tenant, upload) / FACTS_FILE).read_text(encoding="utf-8")
            return UploadFacts(**json.loads(text))
        except (OSError, ValueError, TypeError):  # gone, torn, or of another release
            return None

    @staticmethod
    def _expires_ms(upload: str) -> int:
        match = _ID.fullmatch(upload)
        return int(match[1]) if match else 0


def read_range(header: str | None) -> Part:
    """`Content-Range: bytes 0-99/250`, the last byte included. Raises `InvalidParameter`."""
    if header is None:
        return Part()
    match = _RANGE.fullmatch(header.strip())
    if match is None or int(match[1]) > int(match[2]) or (match[3] != "*" and int(match[2]) >= int(match[3])):
        raise InvalidParameter("`Content-Range` must be as `bytes 0-99/250`", parameter="content-range")
    return Part(start=int(match[1]), stop=int(match[2]) + 1)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _is_signature(expected: str, given: str) -> bool:
    return hmac.compare_digest(expected.encode(), given.encode("utf-8", "surrogatepass"))


@contextmanager
def _only_writer(path: Path) -> Iterator[int]:
    """A file opened for writing while nobody else writes it, still at its place.

    Raises `NameTaken` if somebody does, `ResourceNotFound` if its upload was completed meanwhile.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError as error:
        raise ResourceNotFound(_UNKNOWN) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NameTaken(f"another request is writing `{path.name}`") from error
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(descriptor)):
            raise ResourceNotFound(_UNKNOWN)
        yield descriptor
    finally:
        os.close(descriptor)


async def _write_part(
    descriptor: int, part: Part, refuse_large: Callable[[int], Awaitable[None]], chunks: AsyncIterator[bytes]
) -> int:
    have = os.fstat(descriptor).st_size
    if part.start > have:
        raise InvalidParameter(f"the file has {have} bytes, so the next part begins there, not at {part.start}")
    os.ftruncate(descriptor, part.start)
    os.lseek(descriptor, part.start, os.SEEK_SET)
    done = part.start
    async for chunk in _blocks(chunks):
        done += len(chunk)
        try:
            await refuse_large(done)
        except ManyloraError:
            os.ftruncate(descriptor, part.start)
            raise
        if part.stop is not None and done > part.stop:
            os.ftruncate(descriptor, part.start)
            raise InvalidParameter(f"more bytes came than the Content-Range says, {part.start} to {part.stop - 1}")
        await asyncio.to_thread(_write_all, descriptor, chunk)
    return done


async def _blocks(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in larger pieces, the last whatever ends them: also a broken connection."""
    block = bytearray()
    try:
        async for chunk in chunks:
            block += chunk
            if len(block) >= WRITE_BYTES:
                yield bytes(block)
                block.clear()
    except ConnectionError:
        pass
    if block:
        yield bytes(block)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
