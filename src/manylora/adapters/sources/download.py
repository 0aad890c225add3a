"""Downloads of files from a remote store into memory, in parallel parts; each resumes where its connection broke."""

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
"""Failed tries in a row, without a byte gained, after which a download fails."""
FIRST_WAIT_S = 0.1
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 10
"""Seconds without a byte after which a read fails. The load's own limit bounds the time of a whole file."""

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One version of a file of known size in a store.

    etag      the store's mark of the version; None: the store gives none, and `modified` (ISO 8601) marks the version
    sha256    hash of the content, in hexadecimal; None if the source does not know it
    version   the store's own id of the version, or its checksum; None if the store gives neither
    """

    path: str
    num_bytes: int
    etag: str | None = None
    modified: str | None = None
    sha256: str | None = None
    version: str | None = None


class StoreDenies(Exception):
    """An error: the store refuses the credential, or asks for one that is missing."""


class FileReplaced(Exception):
    """An error: the version asked for is gone from the store."""


class StoreRefused(Exception):
    """An error that another try would not change; its text is the reason, for the caller."""


class FileStore(Protocol):
    """The Protocol of a place with files.

    Both methods raise the errors above, or `OSError` if another try may succeed.
    """

    async def look_up(self, path: str) -> RemoteFile | None:
        """Return the current version of a file; None if there is no such file."""

    def read(self, file: RemoteFile, start: int, stop: int) -> AsyncGenerator[memoryview]:
        """Yield bytes `[start, stop)` of one version of a file, in order.

        The caller checks that the number is right.
        """


async def look_up(store: FileStore, path: str, refuse: Refusals) -> RemoteFile | None:
    """Return the current version of a file; None if there is no such file. Raises as `RemoteSource.locate`."""
    return await tried(lambda: store.look_up(path), refuse)


async def download(store: FileStore, file: RemoteFile, refuse: Refusals) -> memoryview:
    """Return the bytes of one version of a file.

    Raises as `RemoteSource.fetch`: `AdapterSourceUnavailable` also if the file was replaced or changed its size
    meanwhile, `AdapterCorrupt` if the content does not match its checksum.
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
    """Return the results of all coroutines. The first failure cancels the others and is raised itself."""
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
    """Call `attempt` until it succeeds, is refused, or fails `MAX_TRIES` times in a row without progress."""
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
    """Return the error of a failure that another try would not change.

    The store's own message may contain its address, so the error leaves it out.
    """
    if isinstance(error, StoreDenies):
        return refuse.access_denied()
    if isinstance(error, FileReplaced):
        return refuse.unavailable("it was replaced while it was read")
    return refuse.unavailable(str(error))
