"""Download of a version: its files as one zip, for the owner alone."""

import zipfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from manylora.control.registry.intake import Intake
from manylora.control.registry.repositories import find_repository
from manylora.control.registry.versions import FINISHED
from manylora.errors import InsufficientPermissions, InvalidParameter
from manylora.ids import TenantId

ZIP_BLOCK_BYTES = 1 << 20


class ZippedFiles:
    """Open files of a version. Iteration yields them as the bytes of a zip, uncompressed: weights do not shrink."""

    def __init__(self, files: Sequence[tuple[str, BinaryIO]]) -> None:
        self._files = files

    def __iter__(self) -> Iterator[bytes]:
        target = _CollectedBytes()
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, file in self._files:
                with archive.open(name, "w", force_zip64=True) as entry:
                    while block := file.read(ZIP_BLOCK_BYTES):
                        entry.write(block)
                        yield target.take()
        yield target.take()

    def close(self) -> None:
        """Close the files."""
        for _, file in self._files:
            file.close()


async def open_files(intake: Intake, tenant: TenantId, repo: str, tag: str, owner: str | None = None) -> ZippedFiles:
    """Open the files of a version, so that a later deletion does not cut the download short.

    A tenant that may use a repository of another may not download it.
    Raises `ResourceNotFound`, `InsufficientPermissions`, and `InvalidParameter` for a version without files.
    """
    async with intake.control.database.read() as connection:
        repository = await find_repository(connection, tenant, repo, owner)
    if repository.owner != tenant:
        raise InsufficientPermissions("only its owner may download an adapter")
    version = repository.find(tag)
    if version.state not in FINISHED:
        raise InvalidParameter(f"version {version.version} is {version.state}, so it has no files", parameter="tag")
    files = intake.files.files(repository.owner, repository.name, version.version)
    return ZippedFiles([(file.name, file.open("rb")) for file in files])


class _CollectedBytes:
    """Unseekable target of a zip file; `take` returns and forgets the bytes written so far."""

    def __init__(self) -> None:
        self._data = bytearray()

    def write(self, data: bytes, /) -> int:
        self._data += data
        return len(data)

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def take(self) -> bytes:
        data, self._data = bytes(self._data), bytearray()
        return data
