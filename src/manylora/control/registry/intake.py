"""Intake of adapters into the registry: check in a child process, limits of the tenant, publication of the files."""

import asyncio
import errno
import logging
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from sqlalchemy import select, update

from manylora.adapter_ref import AdapterRef, SourceName, parse_adapter_ref
from manylora.adapters.ingest.checking import CheckedFiles, CheckJob, check_apart
from manylora.adapters.sources.upload_folders import INCOMING, Registry
from manylora.config.settings import enabled_sources
from manylora.control.bases import ServedBase, is_same_base, served_bases
from manylora.control.control import Control
from manylora.control.registry.aliases import check_alias, put_alias
from manylora.control.registry.check_queue import CheckQueue
from manylora.control.registry.repositories import Repository, find_repository, own_for_change
from manylora.control.registry.storage_limits import require_storage
from manylora.control.registry.versions import VersionState, add_version, next_number, set_version
from manylora.control.storage.tables import versions
from manylora.control.tenants.audit import Actor, public_source, record
from manylora.errors import (
    AdapterError,
    AdapterIncompatible,
    AdapterStorageUnavailable,
    AdapterUnsupported,
    ManyloraError,
    ResourceNotFound,
)
from manylora.http.callers import Caller

log = logging.getLogger(__name__)

CHECK_TIMEOUT_S = 120.0
COPY_TIMEOUT_S = 900.0
PARALLEL_CHECKS = 2
PARALLEL_COPIES = 2
"""Number of concurrent checks; copies have a queue of their own, so that a slow source delays no upload.
Each check may use twice the memory of the largest adapter."""
CHECK_WAIT_S = 60.0
COPY_WAIT_S = COPY_TIMEOUT_S
INTERRUPTED_S = COPY_WAIT_S + COPY_TIMEOUT_S + 300.0
"""Longer than any copy takes; an older one was interrupted."""
COPIED_SOURCES = frozenset({SourceName.HUB, SourceName.S3, SourceName.GS, SourceName.AZ, SourceName.HTTPS})
INTERRUPTED = "the control plane ended while it was copied; register it again"


class Intake:
    """Adds uploaded and copied adapters to the registry of one control plane."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.files = Registry(control.registry_dir)
        self._checks = CheckQueue(PARALLEL_CHECKS, wait_s=CHECK_WAIT_S)
        self._copying = CheckQueue(PARALLEL_COPIES, wait_s=COPY_WAIT_S)
        self._copies: set[asyncio.Task[None]] = set()  # references, so that no task is collected before its end

    # ── uploads ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def take(
        self, folder: Path, actor: Actor, repository: Repository, created_by: str, alias: str | None = None
    ) -> tuple[Repository, int]:
        """Check the files in a folder that the caller owns, and make them the repository's next version.

        The version and its `alias` are created in one transaction.
        Raises an `AdapterError` for invalid files, `StorageLimitExceeded`, `ResourceNotFound` if the repository was
        deleted, `AdapterStorageUnavailable` if the disk fails, as `CheckQueue` where too many wait, as `check_alias`.
        """
        with self._checks.asked(repository.owner):
            async with self._checks.turn(repository.owner):
                checked = await self._checked(self._job(folder, repository.name), CHECK_TIMEOUT_S)
        published: int | None = None
        try:
            async with self.control.database.write() as connection:
                current = await own_for_change(connection, repository.owner, repository.name)
                if current.uuid != repository.uuid:
                    raise ResourceNotFound(f"repository `{repository.name}` was deleted meanwhile")
                await require_storage(
                    connection, current.owner, created_by, more=1, more_bytes=checked.num_bytes, rank=checked.rank
                )
                last = await asyncio.to_thread(self.files.last_number, current.owner, current.name)
                number = await next_number(connection, current.number, last)
                await add_version(
                    connection,
                    current.number,
                    number,
                    state=VersionState.READY,
                    created_by=created_by,
                    now_ms=self.control.now_ms(),
                    checked=checked,
                )
                if alias is not None:
                    check_alias(current, alias)
                    await put_alias(connection, current, alias, number)
                told = {"rank": checked.rank, "bytes": checked.num_bytes, "sha256": checked.sha256}
                name = f"{current.name}/{number}"
                await record(connection, actor, "upload", "version", name, tenant=current.owner, after=told)
                await self._publish(folder, current, number)
                published = number
        except Exception:  # not after a cancellation: the commit may still succeed, and then needs the files
            if published is not None:  # the commit failed: no engine may find files that the tables lack
                shutil.rmtree(self.files.files(repository.owner, repository.name, published)[0].parent)
            raise
        async with self.control.database.read() as connection:
            return await find_repository(connection, repository.owner, repository.name), number

    def _job(self, folder: Path, name: str) -> CheckJob:
        """Return the check of an adapter, without the base that it is checked against."""
        settings = self.control.config.adapters
        return CheckJob(
            folder=str(folder),
            name=name,
            shape=None,
            max_rank=settings.max_rank,
            max_bytes=settings.max_bytes,
            is_strict=settings.strict,
            harmless_fields=settings.harmless_fields,
        )

    async def _checked(self, job: CheckJob, timeout_s: float) -> CheckedFiles:
        """Check files against the served base that their config names, else against the first one that they fit.

        Raises the failure at the first base if they fit none.
        """
        bases = await asyncio.to_thread(served_bases, self.control.config)
        failure: AdapterError | None = None
        for base in bases:
            try:
                checked = await check_apart(_on_base(job, base), timeout_s)
            except (AdapterIncompatible, AdapterUnsupported) as error:
                job, failure = replace(job, source=""), failure or error  # a copy is in the folder by now
                continue
            named = next((each for each in bases if checked.base and is_same_base(each.name, checked.base)), base)
            if named is not base:  # the files fit a base that they were not trained on
                checked = await check_apart(_on_base(replace(job, source=""), named), timeout_s)
            return checked if checked.base else replace(checked, base=base.name)
        assert failure is not None, "there is a base"
        raise failure

    async def _publish(self, folder: Path, repository: Repository, number: int) -> None:
        with storage_failures():
            await asyncio.to_thread(self.files.publish, folder, repository.owner, repository.name, number)

    # ── copies from other sources ────────────────────────────────────────────────────────────────────────────

    def source_of(self, adapter_id: str, source: str | None, token: str) -> AdapterRef:
        """Return the reference of an adapter to copy. Raise `AdapterReferenceInvalid`."""
        enabled = enabled_sources(self.control.config.adapters) & COPIED_SOURCES
        return parse_adapter_ref(adapter_id, source, enabled, token=token, default=SourceName.HUB)

    async def copy(self, caller: Caller, actor: Actor, reference: str, ref: AdapterRef) -> tuple[Repository, int]:
        """Begin to copy an adapter into the registry; return the repository and the version's number.

        The version is `uploading` until it is ready or has failed.
        Raises `ResourceNotFound`, `StorageLimitExceeded`, as `CheckQueue` where too many wait.
        """
        place = ExitStack()
        place.enter_context(self._copying.asked(caller.tenant))
        try:
            current, number = await self._begin_copy(caller, actor, reference, ref)
        except BaseException:
            place.close()
            raise
        task = asyncio.create_task(self._copy(current, number, ref, place))
        self._copies.add(task)
        task.add_done_callback(self._copies.discard)
        async with self.control.database.read() as connection:
            return await find_repository(connection, caller.tenant, current.name), number

    async def _begin_copy(
        self, caller: Caller, actor: Actor, reference: str, ref: AdapterRef
    ) -> tuple[Repository, int]:
        async with self.control.database.write() as connection:
            current = await own_for_change(connection, caller.tenant, reference)
            await require_storage(connection, caller.tenant, caller.key or caller.tenant, more=1, more_bytes=0, rank=0)
            last = await asyncio.to_thread(self.files.last_number, current.owner, current.name)
            number = await next_number(connection, current.number, last)
            await add_version(
                connection,
                current.number,
                number,
                state=VersionState.UPLOADING,
                created_by=caller.key or caller.tenant,
                now_ms=self.control.now_ms(),
                source_url=f"{ref.source}://{ref.id}",
            )
            name, source = f"{current.name}/{number}", public_source(ref.source, ref.id)
            await record(connection, actor, "copy", "version", name, tenant=current.owner, after=source)
        return current, number

    async def _copy(self, repository: Repository, number: int, ref: AdapterRef, place: ExitStack) -> None:
        """Copy an adapter. `place`: its place in the queue, released at the end."""
        with place:
            try:
                async with self._copying.turn(repository.owner):
                    await self._fetch(repository, number, ref)
            except ManyloraError as error:
                await self._fail_copy(repository, number, error.message)
            except Exception as error:  # no code awaits this task, so it must handle every error
                log.exception("registry.copy_failed repository=%s version=%d", repository.uuid, number)
                await self._fail_copy(repository, number, f"unexpected {type(error).__name__}")

    async def _fetch(self, repository: Repository, number: int, ref: AdapterRef) -> None:
        folder = self.control.registry_dir / f"{INCOMING}{uuid.uuid4().hex}"
        try:
            with storage_failures():
                folder.mkdir(parents=True, mode=0o700)
            settings = self.control.config.adapters
            job = replace(
                self._job(folder, ref.id),
                source=ref.source.value,
                id=ref.id,
                token=ref.token,
                stores=settings.stores,
                hub_endpoint=settings.hub_endpoint,
                redirect_hosts=settings.redirect_hosts,
            )
            await self._end_copy(repository, number, folder, await self._checked(job, COPY_TIMEOUT_S))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def _end_copy(self, repository: Repository, number: int, folder: Path, checked: CheckedFiles) -> None:
        async with self.control.database.write() as connection:
            current = await own_for_change(connection, repository.owner, repository.name)
            version = current.find(str(number))
            if version.state is not VersionState.UPLOADING:
                return  # `end_interrupted` has marked it as failed
            await require_storage(
                connection, current.owner, version.created_by, more=0, more_bytes=checked.num_bytes, rank=checked.rank
            )
            await set_version(connection, current.number, number, state=VersionState.READY, checked=checked)
            await self._publish(folder, current, number)

    async def _fail_copy(self, repository: Repository, number: int, why: str) -> None:
        async with self.control.database.write() as connection:
            same = (versions.c.repository == repository.number) & (versions.c.version == number)
            mine = same & (versions.c.state == VersionState.UPLOADING)
            await connection.execute(update(versions).where(mine).values(state=VersionState.FAILED, error=why))

    async def end_interrupted(self) -> None:
        """Mark copies as failed that are too old to be still running in any control plane."""
        oldest_ms = self.control.now_ms() - int(1_000 * INTERRUPTED_S)
        stale = (versions.c.state == VersionState.UPLOADING) & (versions.c.created_ms < oldest_ms)
        async with self.control.database.read() as connection:
            if (await connection.execute(select(versions.c.version).where(stale).limit(1))).first() is None:
                return
        async with self.control.database.write() as connection:
            failed = update(versions).where(stale).values(state=VersionState.FAILED, error=INTERRUPTED)
            await connection.execute(failed)


@contextmanager
def storage_failures() -> Iterator[None]:
    """Raise `AdapterStorageUnavailable` in place of errors of the disk."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "is full" if is_full else f"cannot be written ({error.strerror})"
        raise AdapterStorageUnavailable(f"the disk of the server's registry {what}") from error


def _on_base(job: CheckJob, base: ServedBase) -> CheckJob:
    return replace(job, shape=base.shape, base_dir=base.directory)
