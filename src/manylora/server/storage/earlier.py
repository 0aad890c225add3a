"""The files, responses and batches that earlier versions kept in a server's folder: the control plane takes them over.

<folder>/<tenant>/files/<id>.data, <id>.json     the bytes and the facts of a file; results that grow have no facts
<folder>/<tenant>/responses/<id>.json            a response
<folder>/<tenant>/batches/<id>.json              the facts of a batch
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import msgspec

from manylora.errors import ControlUnavailable, ManyloraError
from manylora.ids import TenantId
from manylora.server.storage.control_store import ControlStore
from manylora.server.storage.files import PART_BYTES
from manylora.server.storage.storage import Storage
from manylora.stored.batches import StoredBatch
from manylora.stored.files import Publication, StoredFile
from manylora.system.disk import remove
from manylora.system.held_folders import hold_folder

log = logging.getLogger(__name__)

_FAILURES = (ManyloraError, OSError, msgspec.DecodeError)


async def take_over(storage: Storage) -> None:
    """Send what lies in the folders of no living server to the control plane, and delete it there.

    What the control plane does not take stays, with a line in the log; the next start tries again.
    """
    for folder in _paths(storage.folder.parent, "[0-9]*"):
        held = None if folder == storage.folder else hold_folder(folder)
        if held is None and folder != storage.folder:
            continue
        try:
            for tenant in _paths(folder, "*/"):
                await _take_tenant(storage.store, TenantId(unquote(tenant.name)), tenant)
        except ControlUnavailable as error:
            log.warning("storage.not_taken_over folder=%s error=%s", folder, error.message)
        finally:
            if held is not None:
                held.release()


async def _take_tenant(store: ControlStore, tenant: TenantId, folder: Path) -> None:
    for data in _paths(folder, "files/*.data"):
        with _told(data):
            await _take_file(store, tenant, data)
    for path in _paths(folder, "batches/*.json"):
        with _told(path):
            batch = msgspec.json.decode(path.read_bytes(), type=StoredBatch)
            await store.create_batch(batch, is_earlier=True)
            remove(path)
    for path in _paths(folder, "responses/*.json"):
        with _told(path):
            await store.keep_response(tenant, path.stem, path.read_bytes())
            remove(path)
    for place in (*_paths(folder, "*/"), folder):
        with contextlib.suppress(OSError):  # it is not empty
            place.rmdir()


async def _take_file(store: ControlStore, tenant: TenantId, data: Path) -> None:
    facts = data.with_suffix(".json")
    file = msgspec.json.decode(facts.read_bytes(), type=StoredFile) if facts.exists() else None
    begun = await store.begin_file(tenant, data.stem)
    size = _whole_lines(data) if file is None else file.size
    for start in range(0, size, PART_BYTES):
        part = await asyncio.to_thread(_read, data, start, min(PART_BYTES, size - start))
        await store.append(tenant, begun.id, start, part)
    if file is not None:
        order = Publication(
            name=file.name, purpose=file.purpose, created_ms=file.created_ms, expires_ms=file.expires_ms
        )
        await store.publish(tenant, begun.id, order)
    remove(facts, data)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Log a failure, but for a control plane that does not answer."""
    try:
        yield
    except ControlUnavailable:
        raise
    except _FAILURES as error:
        log.error("storage.not_taken_over file=%s error=%s", path, error)


def _paths(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern))


def _whole_lines(path: Path) -> int:
    """Return the number of bytes up to the last end of a line."""
    with path.open("rb") as stream:
        return sum(len(line) for line in stream if line.endswith(b"\n"))


def _read(path: Path, start: int, size: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(start)
        return stream.read(size)
