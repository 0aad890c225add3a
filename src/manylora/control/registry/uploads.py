"""Uploads of adapters: signed addresses that accept files without a key, each file in any number of parts.

    {registry}/.uploads/{tenant}/{upload id}/adapter_config.json, adapter_model.safetensors, tokenizer.json, …

An upload's id ends with the moment of its expiry, so that the name of a folder shows whether it is abandoned.
Completing an upload renames its folder first: only one request can do that, and no writer keeps a file in it.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.adapters.refusals import Refusals
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
from manylora.control.registry.repositories import Repository, find_repository
from manylora.control.registry.storage_limits import require_storage
from manylora.control.registry.upload_files import (
    UNKNOWN_UPLOAD,
    ByteRange,
    drop_part,
    only_writer,
    size_of,
    write_part,
)
from manylora.control.storage.tables import keys
from manylora.control.tenants.audit import Actor, record
from manylora.errors import (
    AdapterError,
    ControlUnavailable,
    InsufficientPermissions,
    InvalidApiKey,
    InvalidParameter,
    NameTaken,
    ResourceNotFound,
    StorageLimitExceeded,
)
from manylora.http.callers import Caller
from manylora.ids import KeyId, TenantId

UPLOAD_TTL_MS = 3_600_000
MAX_OPEN = 16
"""Maximum number of uploads that a tenant has open at one time."""
RECHECK_S = 5.0
FOLDER = ".uploads"
FACTS_FILE = "upload.json"
CLAIMED = ".claimed"
KEPT_FILES = (*PARTS, *TEXT_FILES)
FILES = (CONFIG_FILE, PICKLED_FILE, WEIGHTS_FILE, *TEXT_FILES)
_ID = re.compile(r"[0-9a-f]{32}-([0-9]{13,15})")


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadFacts:
    """Purpose of an upload.

    key    id of the key that began it; None on a server that needs no keys
    alias  alias of the version that it becomes
    """

    tenant: TenantId
    repository: str
    repository_uuid: str
    key: KeyId | None
    alias: str | None = None

    @property
    def created_by(self) -> str:
        """Return the creator of the version: the key, else the tenant."""
        return self.key or self.tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bounds:
    """Limits on the size of one file, read at `read_s`.

    room_bytes   bytes that the tenant may store besides its versions; None: no limit
    other_bytes  returns the bytes of the tenant's other files that are not part of a version yet
    """

    facts: UploadFacts
    server_bytes: int
    room_bytes: int | None
    other_bytes: Callable[[], int]
    read_s: float

    @property
    def max_bytes(self) -> int:
        """Return the largest size of the file in bytes."""
        if self.room_bytes is None:
            return self.server_bytes
        return max(0, min(self.server_bytes, self.room_bytes - self.other_bytes()))

    def refuse_large(self, num_bytes: int) -> None:
        """Raise `AdapterTooLarge` or `StorageLimitExceeded` for a size in bytes over the limits."""
        if num_bytes > self.server_bytes:
            raise Refusals(self.facts.repository, "pbase").too_large(num_bytes, self.server_bytes)
        if num_bytes > self.max_bytes:
            raise StorageLimitExceeded(
                f"tenant `{self.facts.tenant}`, or the key, may store {self.room_bytes} bytes more (adapter_bytes); "
                f"uploads under way have {self.other_bytes()}, and this needs {num_bytes}"
            )


_FINAL = (AdapterError, InvalidParameter, ResourceNotFound, StorageLimitExceeded)
"""Errors that end an upload: another request with the same token would fail again."""


class Uploads:
    """The open uploads of one control plane."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._control = intake.control
        self.root = self._control.registry_dir / FOLDER

    async def begin(
        self, caller: Caller, actor: Actor, reference: str, alias: str | None = None
    ) -> tuple[str, UploadFacts]:
        """Open an upload; return its id and facts.

        Raises `ResourceNotFound`, `InsufficientPermissions`, `StorageLimitExceeded`, and as `check_alias`.
        """
        open_bytes = self._open_bytes(caller.tenant)
        async with self._control.database.read() as connection:
            repository = await find_repository(connection, caller.tenant, reference)
            if repository.owner != caller.tenant:
                raise InsufficientPermissions(f"repository `{repository.name}` belongs to another tenant")
            if alias is not None:
                check_alias(repository, alias, base_names(self._control.config))
            await require_storage(
                connection, caller.tenant, caller.key or "", more=1, more_bytes=open_bytes + 1, rank=0
            )
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
        except BaseException:  # an upload without a row in the audit table must not stay open
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
        """Return the signature, 64 hex digits, that permits `what`: writing one of the files, or `complete`.

        It covers the expiry, which is part of the upload's id.
        """
        parts = ("upload", facts.tenant, facts.repository_uuid, upload, what)
        return hmac.new(bytes.fromhex(self._control.pepper), "\n".join(parts).encode(), hashlib.sha256).hexdigest()

    def token(self, upload: str, facts: UploadFacts) -> str:
        """Return the token that completes an upload."""
        return f"{upload}.{self.sign(upload, facts, 'complete')}"

    def allowed(self, tenant: str, upload: str, file: str, signature: str) -> UploadFacts:
        """Return the upload of a signed address. Raise `InsufficientPermissions` for an invalid or expired one."""
        refused = InsufficientPermissions("the upload's address is not valid, or has expired")
        if not is_repository_name(tenant) or self._expires_ms(upload) <= self._control.now_ms() or file not in FILES:
            raise refused
        facts = self._facts(tenant, upload)
        if facts is None or not _is_signature(self.sign(upload, facts, file), signature):
            raise refused
        return facts

    # ── files ────────────────────────────────────────────────────────────────────────────────────────────────────

    def received_bytes(self, facts: UploadFacts, upload: str, file: str) -> int:
        """Return the size of a file so far: the offset of its next part."""
        return size_of(self._folder(facts.tenant, upload) / file)

    async def max_bytes(self, facts: UploadFacts, upload: str, file: str) -> int:
        """Return the largest size of a file, by the limits of the server and of the tenant. Raise as `write`."""
        return (await self._bounds(facts, upload, file)).max_bytes

    async def _bounds(self, facts: UploadFacts, upload: str, file: str) -> "_Bounds":
        """Return the limits of a file. Raise as `write` where its tenant or its key may no longer store anything."""
        async with self._control.database.read() as connection:
            await self._require_key(connection, facts)
            room = await require_storage(connection, facts.tenant, facts.created_by, more=0, more_bytes=0, rank=0)
        return _Bounds(
            facts=facts,
            server_bytes=self._server_bytes(file),
            room_bytes=room,
            other_bytes=partial(self._open_bytes, facts.tenant, besides=self._folder(facts.tenant, upload) / file),
            read_s=self._control.clock.monotonic_s(),
        )

    def _server_bytes(self, file: str) -> int:
        """Return the server's own limit on one file in bytes."""
        if file == CONFIG_FILE:
            return MAX_CONFIG_BYTES
        most = self._control.config.adapters.max_bytes
        return min(most, MAX_FILE_BYTES[file]) if file in MAX_FILE_BYTES else most

    async def _require_key(self, connection: AsyncConnection, facts: UploadFacts) -> None:
        """Raise `InvalidApiKey` if the key that began an upload has been revoked or has expired since."""
        if facts.key is None:
            return
        asked = select(keys.c.revoked_ms, keys.c.expires_ms).where(keys.c.id == facts.key)
        row = (await connection.execute(asked)).one_or_none()
        is_past = row is not None and row.expires_ms is not None and row.expires_ms <= self._control.now_ms()
        if row is None or row.revoked_ms is not None or is_past:
            raise InvalidApiKey("the key that began this upload is not valid any more")

    def _open_bytes(self, tenant: TenantId, *, besides: Path | None = None) -> int:
        """Return the bytes of a tenant's open uploads without the file `besides`."""
        place = self.root / tenant
        folders = list(place.iterdir()) if place.is_dir() else []
        return sum(size_of(folder / name) for folder in folders for name in KEPT_FILES if folder / name != besides)

    async def write(
        self,
        facts: UploadFacts,
        upload: str,
        file: str,
        part: ByteRange,
        chunks: AsyncIterator[bytes],
        declared_bytes: int | None = None,
    ) -> int:
        """Write a part of a file as it arrives; return the size of the file in bytes.

        Bytes that arrive before a connection breaks are kept. Those of pickled weights are dropped, and an empty file
        notes that they came: Predibase's SDK shows the message of no refusal but that of `complete`.

        The tenant's limit covers its versions and all its open uploads; this method checks it, the tenant's state and
        the key's at the begin of a part and every `RECHECK_S`.

        Args:    declared_bytes  declared size of the part; a size over the limit is refused before its bytes arrive
        Raises:  `AdapterTooLarge` and `StorageLimitExceeded` as soon as the limit is passed, `InvalidParameter` for a
                 part that begins behind the end of the file, `NameTaken` while another request writes the file,
                 `AdapterStorageUnavailable` if the disk fails, `TenantSuspended` and `InvalidApiKey` where the tenant
                 or the key may no longer store anything
        """
        bounds = await self._bounds(facts, upload, file)
        bounds.refuse_large(part.stop or part.start + (declared_bytes or 0))

        async def refuse_large(num_bytes: int) -> None:
            nonlocal bounds
            if self._control.clock.monotonic_s() - bounds.read_s > RECHECK_S:
                # A short failure of the database must not end the upload; `complete` checks the limits again.
                with contextlib.suppress(ControlUnavailable):
                    bounds = await self._bounds(facts, upload, file)
            bounds.refuse_large(num_bytes)

        path = self._folder(facts.tenant, upload) / file
        left_s = (self._expires_ms(upload) - self._control.now_ms()) / 1000
        try:
            async with asyncio.timeout(left_s):
                with storage_failures(), only_writer(path) as descriptor:
                    if file == PICKLED_FILE:
                        return await drop_part(part, refuse_large, chunks)
                    return await write_part(descriptor, part, refuse_large, chunks)
        except TimeoutError as error:
            raise InsufficientPermissions("the upload's address expired while bytes came") from error

    # ── completing ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def complete(self, caller: Caller, actor: Actor, token: str) -> tuple[Repository, int]:
        """Check the files of an upload and make them a version; return its repository and number.

        A token works once, unless the failure lies with the disk, the database or a cancelled request.
        Raises `ResourceNotFound` for a token that is invalid, expired, used, or of another tenant; as `Intake.take`.
        """
        upload, _, signature = token.partition(".")
        facts = self._facts(caller.tenant, upload) if self._expires_ms(upload) > self._control.now_ms() else None
        if facts is None or not _is_signature(self.sign(upload, facts, "complete"), signature):
            raise ResourceNotFound(UNKNOWN_UPLOAD)
        folder = self._claim(facts, upload)
        is_over = True
        try:
            async with self._control.database.read() as connection:
                repository = await find_repository(connection, caller.tenant, facts.repository)
            if repository.uuid != facts.repository_uuid:
                raise ResourceNotFound(f"repository `{facts.repository}` was deleted meanwhile")
            (folder / FACTS_FILE).unlink()
            _refuse_pickled_alone(folder, facts)
            return await self._intake.take(folder, actor, repository, facts.created_by, facts.alias)
        except BaseException as error:
            # Errors of the files are final; after a failure of disk or database the client may try again.
            is_over = isinstance(error, _FINAL) and not (getattr(error, "is_retryable", False))
            if not is_over and folder.exists():
                (folder / FACTS_FILE).write_text(json.dumps(asdict(facts)), encoding="utf-8")
                folder.rename(folder.with_name(upload))
            raise
        finally:
            if is_over:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _claim(self, facts: UploadFacts, upload: str) -> Path:
        """Rename the folder, so that no other request finds it.

        Raises `ResourceNotFound` if another request was first, `NameTaken` while another request writes a file.
        """
        folder = self._folder(facts.tenant, upload)
        claimed = folder.with_name(upload + CLAIMED)
        try:
            folder.rename(claimed)
        except OSError as error:
            raise ResourceNotFound(UNKNOWN_UPLOAD) from error
        try:
            for name in KEPT_FILES:
                if (claimed / name).exists():
                    with only_writer(claimed / name):
                        pass  # the lock is free; a writer that opens the file from now on finds it moved
        except NameTaken:
            claimed.rename(folder)
            raise
        return claimed

    def sweep(self) -> None:
        """Delete expired uploads. Blocks."""
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


def _refuse_pickled_alone(folder: Path, facts: UploadFacts) -> None:
    """Remove the note of pickled weights. Raises `AdapterUnsafeFormat` where no others came."""
    note = folder / PICKLED_FILE
    if note.exists() and not (folder / WEIGHTS_FILE).exists():
        raise Refusals(facts.repository, "pbase").unsafe_format()
    note.unlink(missing_ok=True)


def _is_signature(expected: str, given: str) -> bool:
    return hmac.compare_digest(expected.encode(), given.encode("utf-8", "surrogatepass"))
