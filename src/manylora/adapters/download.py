"""Files of an object store into memory: in parts side by side, each taken up again where it was cut.

obstore is imported when the first file is asked for: the engine's packages must import without it.
"""

import asyncio
import hashlib
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from manylora.adapters.refusals import Refusals
from manylora.errors import AdapterError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

PART_BYTES = 4 << 20
PARALLEL_PARTS = 4
MAX_TRIES = 5
"""In a row without a byte gained."""
FIRST_WAIT_S = 0.1
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 10
"""Without a byte; how long a whole file may take is the load's own limit."""
_CHUNK_BYTES = 1 << 17

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of known size in a store, in one version.

    etag      the store's mark of the version, or None where it gives none; then `modified` (ISO 8601) tells versions
    sha256    of the content, in hexadecimal, where the source knows it
    """

    path: str
    num_bytes: int
    etag: str | None = None
    modified: str | None = None
    sha256: str | None = None


def client_options(token: str = "") -> "ClientConfig":
    """How we speak to a store: plain HTTP is allowed, for the operator names the address."""
    options: ClientConfig = {
        "allow_http": True,
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
        "read_timeout": timedelta(seconds=READ_TIMEOUT_S),
        "timeout": timedelta(hours=1),
        "user_agent": "manylora",
    }
    if token:
        options["default_headers"] = {"authorization": f"Bearer {token}"}
    return options


def no_retries() -> "RetryConfig":
    """The library's own retries start a part anew and tell nobody; ours go on where it was cut."""
    return {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}


async def look_up(store: "ObjectStore", path: str, refuse: Refusals) -> RemoteFile | None:
    """The current version of a file; None if there is no such file. Raises as `RemoteSource.locate`."""
    import obstore
    from obstore.exceptions import NotFoundError

    async def ask() -> RemoteFile | None:
        try:
            found = await obstore.head_async(store, path)
        except (NotFoundError, FileNotFoundError):
            return None
        modified: datetime = found["last_modified"]
        return RemoteFile(path, found["size"], found["e_tag"], modified.isoformat())

    return await _tried(ask, refuse)


async def download(store: "ObjectStore", file: RemoteFile, refuse: Refusals) -> memoryview:
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
    store: "ObjectStore", file: RemoteFile, data: memoryview, start: int, stop: int, refuse: Refusals
) -> None:
    import obstore

    done = start

    async def go_on() -> None:
        nonlocal done
        options: Any = {}  # of the library's own type, whose fields may only be there when they are meant
        if file.etag is not None:
            options["if_match"] = file.etag
        elif file.modified is not None:
            options["if_unmodified_since"] = datetime.fromisoformat(file.modified)
        if (done, stop) != (0, file.num_bytes):
            options["range"] = (done, stop)
        found = await obstore.get_async(store, file.path, options=options)
        if found.meta["size"] != file.num_bytes:
            raise refuse.unavailable("it was replaced while it was read")
        async for chunk in found.stream(min_chunk_size=_CHUNK_BYTES):
            view = memoryview(chunk)
            if view.nbytes > stop - done:
                raise refuse.unavailable("it sends more bytes than it has")
            data[done : done + view.nbytes] = view
            done += view.nbytes
        if done < stop:
            raise ConnectionError("the connection was closed early")

    await _tried(go_on, refuse, progress=lambda: done)


async def _tried(attempt: Callable[[], Awaitable[T]], refuse: Refusals, progress: Callable[[], int] = lambda: 0) -> T:
    """Try until it succeeds, is refused, or fails `MAX_TRIES` times in a row without progress."""
    from obstore.exceptions import BaseError

    failures, reached = 0, progress()
    while True:
        try:
            return await attempt()
        except (BaseError, OSError) as error:
            if (final := _final(error, refuse)) is not None:
                raise final from error
            failures = 1 if progress() > reached else failures + 1
            reached = progress()
            log.info("adapter.source_failed adapter=%s failures=%d: %s", refuse.adapter_id, failures, error)
            if failures >= MAX_TRIES:
                raise refuse.unavailable(f"it failed {MAX_TRIES} times in a row") from error
        await asyncio.sleep(FIRST_WAIT_S * 2 ** (failures - 1) * random.uniform(0.5, 1.5))


def _final(error: Exception, refuse: Refusals) -> AdapterError | None:
    """The error for what no further try would change. The store's own words may name its address: they are not told."""
    from obstore.exceptions import NotFoundError, PermissionDeniedError, PreconditionError, UnauthenticatedError

    if isinstance(error, PermissionDeniedError | UnauthenticatedError | PermissionError):
        return refuse.access_denied()
    if isinstance(error, NotFoundError | PreconditionError | FileNotFoundError):
        return refuse.unavailable("it was replaced while it was read")
    return None
