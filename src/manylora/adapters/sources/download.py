"""Files of a remote store into memory: in parts side by side, each taken up again where it was cut."""

import asyncio
import hashlib
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from manylora.adapters.refusals import Refusals
from manylora.errors import AdapterError

PART_BYTES = 4 << 20
PARALLEL_PARTS = 4
MAX_TRIES = 5
"""In a row without a byte gained."""
FIRST_WAIT_S = 0.1
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 10
"""Without a byte; how long a whole file may take is the load's own limit."""

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of known size in a store, in one version.

    etag      the store's mark of the version, or None where it gives none; then `modified` (ISO 8601) tells versions
    sha256    of the content, in hexadecimal, where the source knows it
    version   the store's own id of the version, or a checksum that it gives; None where it gives neither
    """

    path: str
    num_bytes: int
    etag: str | None = None
    modified: str | None = None
    sha256: str | None = None
    version: str | None = None


class StoreDenies(Exception):
    """The store refuses the credential, or the lack of one."""


class FileReplaced(Exception):
    """The version that was asked for is not there any more."""


class StoreRefused(Exception):
    """No further try would change it; the text says why, in words for the caller."""


class FileStore(Protocol):
    """A place with files. Both methods raise the three errors above, or `OSError` if another try may succeed."""

    async def look_up(self, path: str) -> RemoteFile | None:
        """The current version of a file; None if there is no such file."""

    def read(self, file: RemoteFile, start: int, stop: int) -> AsyncGenerator[memoryview]:
        """Bytes `[start, stop)` of one version of a file, in order; more or fewer may come, which the caller checks."""


async def look_up(store: FileStore, path: str, refuse: Refusals) -> RemoteFile | None:
    """The current version of a file; None if there is no such file. Raises as `RemoteSource.locate`."""
    return await tried(lambda: store.look_up(path), refuse)


async def download(store: FileStore, file: RemoteFile, refuse: Refusals) -> memoryview:
    """The bytes of one version of a file.

    Raises as `RemoteSource.fetch`: `AdapterSourceUnavailable` also when the file was replaced or changed its size
    meanwhile, `AdapterCorrupt` when the content is not what its checksum says.
    """
    data = np.empty(file.num_bytes, dtype=np.uint8).data
    places = asyncio.Semaphore(PARALLEL_PARTS)

    async def fetch(start: int) -> None:
        async with places:
            await _fetch_part(store, file, data, start, min(start + PART_BYTES, file.num_bytes), refuse)

    await together(*(fetch(start) for start in range(0, file.num_bytes, PART_BYTES)))
    if file.sha256 is not None:
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        if digest != file.sha256:
            raise refuse.corrupt(f"{file.path} arrived with another checksum than its source gives")
    return data


async def together(*work: Coroutine[Any, Any, T]) -> list[T]:
    """The results of all; the first failure cancels the others and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


async def _fetch_part(
    store: FileStore, file: RemoteFile, data: memoryview, start: int, stop: int, refuse: Refusals
) -> None:
    done = start

    async def go_on() -> None:
        nonlocal done
        async with aclosing(store.read(file, done, stop)) as chunks:
            async for chunk in chunks:
                if chunk.nbytes > stop - done:
                    raise StoreRefused("it sends more bytes than it has")
                data[done : done + chunk.nbytes] = chunk
                done += chunk.nbytes
        if done < stop:
            raise ConnectionError("the connection was closed early")

    await tried(go_on, refuse, progress=lambda: done)


async def tried(attempt: Callable[[], Awaitable[T]], refuse: Refusals, progress: Callable[[], int] = lambda: 0) -> T:
    """Try until it succeeds, is refused, or fails `MAX_TRIES` times in a row without progress."""
    failures, reached = 0, progress()
    while True:
        try:
            return await attempt()
        except (StoreDenies, FileReplaced, StoreRefused) as error:
            raise _final(error, refuse) from error
        except OSError as error:
            failures = 1 if progress() > reached else failures + 1
            reached = progress()
            log.info("adapter.source_failed adapter=%s failures=%d: %s", refuse.adapter_id, failures, error)
            if failures >= MAX_TRIES:
                raise refuse.unavailable(f"it failed {MAX_TRIES} times in a row") from error
        await asyncio.sleep(FIRST_WAIT_S * 2 ** (failures - 1) * random.uniform(0.5, 1.5))


def _final(error: Exception, refuse: Refusals) -> AdapterError:
    """The error for what no further try would change. The store's own words may name its address: they are not told."""
    if isinstance(error, StoreDenies):
        return refuse.access_denied()
    if isinstance(error, FileReplaced):
        return refuse.unavailable("it was replaced while it was read")
    return refuse.unavailable(str(error))
