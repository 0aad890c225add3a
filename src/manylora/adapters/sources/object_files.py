"""Files of S3, Google Cloud Storage and Azure. obstore is imported at the first use.

Its HTTP client follows redirects and has no switch for that. These stores send no redirect that a tenant could set:
they redirect to themselves only, at the endpoint that the operator names.
"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from manylora.adapters.sources.download import (
    CONNECT_TIMEOUT_S,
    READ_TIMEOUT_S,
    FileReplaced,
    RemoteFile,
    StoreDenies,
)

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore

_CHUNK_BYTES = 1 << 17


class ObjectFiles:
    """A `FileStore` over one place such as `s3://bucket/prefix`."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._opened: ObjectStore | None = None

    async def look_up(self, path: str) -> RemoteFile | None:
        import obstore
        from obstore.exceptions import NotFoundError

        with _translated():
            try:
                found = await obstore.head_async(self._store, path)
            except (NotFoundError, FileNotFoundError):
                return None
        modified: datetime = found["last_modified"]
        return RemoteFile(path, found["size"], found["e_tag"], modified.isoformat(), version=found.get("version"))

    async def list_first(self) -> None:
        """List the first file of the place. Raises as `look_up`, and `FileReplaced` if there is no such bucket."""
        import obstore

        with _translated():
            async for _ in obstore.list(self._store, chunk_size=1):
                return

    async def read(self, file: RemoteFile, start: int, stop: int) -> AsyncGenerator[memoryview]:
        import obstore

        options: Any = {}  # of the library's own type, in which a field must be absent to have its default
        if file.etag is not None:
            options["if_match"] = file.etag
        elif file.modified is not None:
            options["if_unmodified_since"] = datetime.fromisoformat(file.modified)
        if (start, stop) != (0, file.num_bytes):
            options["range"] = (start, stop)
        with _translated():
            found = await obstore.get_async(self._store, file.path, options=options)
            version = found.meta.get("version")
            if found.meta["size"] != file.num_bytes or (file.version and version and version != file.version):
                raise FileReplaced
            async for chunk in found.stream(min_chunk_size=_CHUNK_BYTES):
                yield memoryview(chunk)

    @property
    def _store(self) -> "ObjectStore":
        from obstore.store import from_url

        if self._opened is None:
            # The library's own retries start a part anew and report nothing; ours resume where it broke.
            once: Any = {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}
            self._opened = from_url(self._place, client_options=_client_options(), retry_config=once)
        return self._opened


def _client_options() -> "ClientConfig":
    """Return the options of a store's client: plain HTTP is allowed, since the operator names the address."""
    return {
        "allow_http": True,
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
        "read_timeout": timedelta(seconds=READ_TIMEOUT_S),
        "timeout": timedelta(hours=1),
        "user_agent": "manylora",
    }


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the library's errors into those of `FileStore`."""
    from obstore.exceptions import (
        BaseError,
        NotFoundError,
        PermissionDeniedError,
        PreconditionError,
        UnauthenticatedError,
    )

    try:
        yield
    except (PermissionDeniedError, UnauthenticatedError, PermissionError) as error:
        raise StoreDenies from error
    except (NotFoundError, PreconditionError, FileNotFoundError) as error:
        raise FileReplaced from error
    except BaseError as error:
        raise ConnectionError(str(error)) from error
