"""Checksums of a pulled base: written by the pull, compared at each start without the weights, and once with them.

    manylora-checksums.json   in the base's folder: size and SHA-256 of every other file
    .verified-<name>          beside the folders: the identities of the files that were read whole and agreed

The identity of a file is (device, inode, size, time of change of content, time of change of the inode): every write
to a file changes it, also one that restores the size and the first time. Imports without torch.
"""

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE_NAME = "manylora-checksums.json"
_FORMAT = 1
_CHUNK_BYTES = 1 << 22
_WEIGHTS = ".safetensors"
_QUICK_BYTES = 1 << 26
"""Limit in bytes below which a read shows no progress bar, because it is short."""

log = logging.getLogger(__name__)

Report = Callable[[str, int, int], None]
"""Called with (stage, bytes done, bytes in all)."""


@dataclass(frozen=True, slots=True)
class FileSum:
    """One file of a base: its number of bytes and their SHA-256 in hex."""

    num_bytes: int
    sha256: str


def write_checksums(directory: Path, report: Report, *, is_proved: bool = True) -> None:
    """Read every file of a base and write its checksum. `is_proved` False: nothing compared them with their origin."""
    files = sorted(path for path in directory.iterdir() if path.is_file() and path.name != FILE_NAME)
    reading = _Reading(files, report)
    sums = {file.name: {"bytes": file.stat().st_size, "sha256": reading.sha256(file)} for file in files}
    _write(directory / FILE_NAME, {"format": _FORMAT, "is_proved": is_proved, "files": sums})


def read_checksums(directory: Path) -> dict[str, FileSum] | None:
    """Return the checksums of a base's files; None if there is no readable file of them."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        found = json.loads((directory / FILE_NAME).read_text(encoding="utf-8"))
        sums = {name: FileSum(int(each["bytes"]), str(each["sha256"])) for name, each in found["files"].items()}
        if found["format"] == _FORMAT and all(Path(name).name == name for name in sums):
            return sums
    return None


def find_damage(directory: Path, record: Path, report: Report, *, is_thorough: bool) -> dict[str, str]:
    """Return the faults of the files of a base that has checksums, by their names; empty if all agree.

    Each call compares sizes, headers and all content but the weights. It reads the weights if `is_thorough`, or if
    `record` has other files. It changes nothing in `directory`.
    """
    sums = read_checksums(directory)
    assert sums is not None, "only a base with checksums is compared with them"
    wrong = {name: found for name, each in sums.items() if (found := _wrong_size(directory / name, each)) is not None}
    known = _verified(record)
    unread = [
        directory / name
        for name, each in sums.items()
        if name not in wrong and (is_thorough or not name.endswith(_WEIGHTS) or not _is_known(directory / name, known))
    ]
    reading = _Reading(unread, report)
    for file in unread:
        try:
            if reading.sha256(file) != sums[file.name].sha256:
                wrong[file.name] = "its content is not what was fetched (SHA-256)"
        except OSError as error:
            wrong[file.name] = f"it cannot be read: {error.strerror}"
    if not wrong:
        _note_verified(record, [directory / name for name in sums])
    return wrong


class _Reading:
    """Files read one after the other, with one progress bar for all, but none for few bytes."""

    def __init__(self, files: list[Path], report: Report) -> None:
        self._total = sum(map(_size, files))
        self._done = 0
        self._report = report

    def sha256(self, file: Path) -> str:
        digest = hashlib.sha256()
        for chunk in _chunks(file):
            digest.update(chunk)
            self._done += len(chunk)
            if self._total > _QUICK_BYTES:
                self._report("verify", self._done, self._total)
        return digest.hexdigest()


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _wrong_size(file: Path, expected: FileSum) -> str | None:
    try:
        num_bytes = file.stat().st_size
    except OSError as error:
        return error.strerror or "it cannot be found"
    return None if num_bytes == expected.num_bytes else f"it has {num_bytes} bytes of {expected.num_bytes}"


def _identity(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _verified(record: Path) -> dict[str, Any]:
    """Return the identities by name; an unreadable record has none."""
    with suppress(OSError, ValueError):
        found = json.loads(record.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _is_known(file: Path, known: dict[str, Any]) -> bool:
    return bool(known.get(str(file)) == _identity(file))


def _note_verified(record: Path, files: list[Path]) -> None:
    identities = {str(file): _identity(file) for file in files}
    if identities == _verified(record):
        return
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        _write(record, identities)
    except OSError as error:
        log.warning("%s cannot be written (%s), so each start reads the whole base", record, error.strerror)


def _write(file: Path, content: dict[str, Any]) -> None:
    """Write a file whole or not at all. Raises `OSError`."""
    own = file.with_name(f"{file.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        own.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        own.replace(file)
    finally:
        own.unlink(missing_ok=True)
