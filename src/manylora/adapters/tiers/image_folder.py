"""The folder of a disk tier: files that appear whole or not at all, and the errors of the disk below."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from manylora.adapters.packing.image import (
    CONDEMNED_SUFFIX,
    IMAGE_SUFFIX,
    NAME_SUFFIX,
    REPORT_SUFFIX,
    TEMPORARY_SUFFIX,
    TEXT_SUFFIX,
    ImageDamaged,
    ImageFacts,
    image_name,
    read_facts,
)
from manylora.adapters.report import MAX_REPORT_BYTES
from manylora.errors import AdapterStorageUnavailable, ConfigInvalid

MAX_FOLDERS = 16
MAX_NAME_BYTES = 256
"""Bytes that are read of a `.name` file; the name of an image is far shorter."""
_ZEROS = memoryview(bytes(1 << 20))
_KEPT_FREE_SHARE = 20
_MOST_KEPT_FREE_BYTES = 1 << 30

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NameFile:
    """The image that a version became, and the digest and size of its text; empty and 0 without a text."""

    image: str
    text_digest: str = ""
    text_bytes: int = 0


class ImageFolder:
    """A numbered folder below `root` that this process alone changes: it holds the folder's lock until `close`.

    <job>.tmp     where the ingest process writes a load's image; it is made here, and never by that process, so that
                  a load that was given up has nowhere to put what it still writes
    <digest>….img an image; never changed once it has this name, so another process on the machine may link to it
    <n>.gone      what is being overwritten with zeros, after which it is deleted
    <key>.name    the name of the image that a version of a named adapter became, and the digest of its text if any
    <key>.report  that version's ingest report; older releases have written none
    <key>.text    what that version says of text (`models/text/adapter_text.py`); <job>.text.tmp before that
    Raises: `ConfigInvalid` if no folder can be had; methods raise `AdapterStorageUnavailable` as they say.
    """

    def __init__(self, root: Path) -> None:
        self.path, self._lock = _claim(root)
        self._undeleted: set[str] = set()

    def close(self) -> None:
        """Release the lock, so that another process can take the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # ── what is there ────────────────────────────────────────────────────────────────────────────────────────────

    def images(self) -> Iterator[tuple[str, ImageFacts]]:
        """Yield the whole images, the oldest first; delete damaged ones and the leftovers of interrupted writes.

        Images in another version of the format are deleted too: their adapters are packed again at the next request.
        """
        for leftover in self._files(TEMPORARY_SUFFIX):
            self.delete(leftover.name)
        for condemned in self._files(CONDEMNED_SUFFIX):
            erase_file(condemned)
        for _, path in sorted((path.stat().st_mtime_ns, path) for path in self._files(IMAGE_SUFFIX)):
            try:
                yield path.name, _named_facts(path)
            except (ImageDamaged, OSError) as error:
                log.info("adapter.image_dropped folder=%s name=%s why=%s", self.path, path.name, error)
                self.delete(path.name)

    def names(self) -> Iterator[tuple[str, NameFile]]:
        """Yield the name key and content of every `.name` file; delete texts without one."""
        keys = {path.name.removesuffix(NAME_SUFFIX) for path in self._files(NAME_SUFFIX)}
        for path in self._files(TEXT_SUFFIX):
            if path.name.removesuffix(TEXT_SUFFIX) not in keys:
                self.delete(path.name)
        for key in keys:
            try:
                named = _read_name(self.path / f"{key}{NAME_SUFFIX}")
            except OSError:
                named = NameFile("")
            yield key, named

    def reports(self) -> dict[str, int]:
        """Return the bytes of every `.report` file, by its name key."""
        return {path.name.removesuffix(REPORT_SUFFIX): path.stat().st_size for path in self._files(REPORT_SUFFIX)}

    def read_report(self, name_key: str, folder: Path | None = None) -> bytes:
        """Return a version's report here or in another process's folder; empty if none is readable."""
        with suppress(OSError), ((folder or self.path) / f"{name_key}{REPORT_SUFFIX}").open("rb", buffering=0) as file:
            return file.read(MAX_REPORT_BYTES)
        return b""

    def _files(self, suffix: str) -> list[Path]:
        return [path for path in self.path.glob(f"*{suffix}") if path.is_file()]

    def spare_bytes(self) -> int | None:
        """Return the bytes of free space that images may take: all but a twentieth of its size, 1 GiB at most.

        None: the file system does not report it. Negative: less is free than has to stay free.
        Raises `AdapterStorageUnavailable`.
        """
        try:
            disk = os.statvfs(self.path)
        except OSError as error:
            raise storage_unavailable(self.path, error.strerror) from error
        if disk.f_blocks == 0:
            return None
        kept_free = min(_MOST_KEPT_FREE_BYTES, disk.f_blocks * disk.f_frsize // _KEPT_FREE_SHARE)
        return disk.f_bavail * disk.f_frsize - kept_free

    # ── changes ──────────────────────────────────────────────────────────────────────────────────────────────────

    def check(self) -> None:
        """Raise `AdapterStorageUnavailable` if the folder is not writable."""
        for name in list(self._undeleted):
            self.delete(name)
        if self._undeleted:
            raise storage_unavailable(self.path, "a file cannot be deleted")
        if not os.access(self.path, os.W_OK | os.X_OK):  # false for root, too, if the file system is read-only
            raise storage_unavailable(self.path, "it is gone or not writable")

    def open_job(self, job: int, *, has_text: bool = False) -> None:
        """Make the files that a load's image and text are written to. Raises `AdapterStorageUnavailable`."""
        try:
            (self.path / job_file(job)).touch()
            if has_text:
                (self.path / job_text_file(job)).touch()
        except OSError as error:
            raise storage_unavailable(self.path, error.strerror) from error

    def drop_job(self, job: int) -> None:
        """Delete the files of a load, if there are any."""
        self.delete(job_file(job))
        self.delete(job_text_file(job))

    def keep_job(self, job: int, name: str) -> bool:
        """Give a load's image this name; False if the file is gone."""
        try:
            (self.path / job_file(job)).replace(self.path / name)
        except OSError as error:
            log.warning("adapter.image_lost folder=%s name=%s error=%s", self.path, name, error.strerror)
            self.drop_job(job)
            return False
        return True

    def text_path(self, name_key: str) -> Path:
        return self.path / f"{name_key}{TEXT_SUFFIX}"

    def keep_text(self, job: int, name_key: str) -> bool:
        """Make a load's text the text of a version; False if the file is gone."""
        try:
            (self.path / job_text_file(job)).replace(self.text_path(name_key))
        except OSError as error:
            log.warning("adapter.text_lost folder=%s error=%s", self.path, error.strerror)
            return False
        return True

    def drop_job_text(self, job: int) -> None:
        self.delete(job_text_file(job))

    def write_name(self, name_key: str, name: str) -> None:
        """Write the image and text of a version down. Without this file the version is packed again after a restart."""
        self._write_small(name_key, NAME_SUFFIX, name.encode("ascii"))

    def write_report(self, name_key: str, report: bytes) -> None:
        """Write a version's report. Without this file the version has none until it is packed again."""
        self._write_small(name_key, REPORT_SUFFIX, report)

    def _write_small(self, name_key: str, suffix: str, data: bytes) -> None:
        temporary = self.path / f"{name_key}{TEMPORARY_SUFFIX}"
        try:
            temporary.write_bytes(data)
            temporary.replace(self.path / f"{name_key}{suffix}")
        except OSError as error:
            log.warning("adapter.name_not_kept folder=%s error=%s", self.path, error.strerror)
            self.delete(temporary.name)

    def delete_name(self, name_key: str) -> None:
        self.delete(f"{name_key}{NAME_SUFFIX}")
        self.delete(f"{name_key}{TEXT_SUFFIX}")

    def delete_report(self, name_key: str) -> None:
        self.delete(f"{name_key}{REPORT_SUFFIX}")

    def delete(self, name: str) -> None:
        """Delete a file. If that fails, it is tried again before the next write."""
        try:
            (self.path / name).unlink(missing_ok=True)
            self._undeleted.discard(name)
        except OSError as error:
            if name not in self._undeleted:
                log.warning("adapter.not_deleted folder=%s name=%s error=%s", self.path, name, error.strerror)
            self._undeleted.add(name)

    def condemn(self, name: str, number: int) -> Path | None:
        """Rename a file for its erasure to a name of its own and return its path; None if it is gone or that fails."""
        condemned = self.path / f"{number}{CONDEMNED_SUFFIX}"
        try:
            (self.path / name).replace(condemned)
        except OSError as error:
            log.warning("adapter.not_erased folder=%s name=%s error=%s", self.path, name, error.strerror)
            self.delete(name)
            return None
        return condemned

    # ── what other processes have ────────────────────────────────────────────────────────────────────────────────

    def find_beside(self, name_key: str) -> tuple[Path, ImageFacts, NameFile] | None:
        """Return an image of this version in the folder of another process of the same user, running or not."""
        for folder in self._folders_beside():
            with suppress(OSError):  # mostly that there is none
                named = _read_name(folder / f"{name_key}{NAME_SUFFIX}")
                path = folder / named.image
                if path.parent == folder and path.stat().st_uid == os.geteuid():
                    facts = _facts_of(path)
                    if facts is not None:
                        return path, facts, named
        return None

    def link_text(self, folder: Path, name_key: str) -> bool:
        """Link a version's text from another folder; False if it is gone or on another file system."""
        self.delete(f"{name_key}{TEXT_SUFFIX}")
        return self.link(folder / f"{name_key}{TEXT_SUFFIX}")

    def _folders_beside(self) -> list[Path]:
        try:
            numbers = os.listdir(self.path.parent)  # noqa: PTH208 - on the engine's thread; a Path for each costs more
        except OSError:
            return []
        return [self.path.parent / number for number in numbers if number.isdecimal() and number != self.path.name]

    def link(self, image: Path) -> bool:
        """Link an image from another folder; False if it is gone or on another file system."""
        try:
            os.link(image, self.path / image.name)
        except FileExistsError:
            return True
        except OSError as error:
            log.info("adapter.not_linked image=%s error=%s", image, error.strerror)
            return False
        return True


def erase_file(path: Path) -> None:
    """Overwrite a file with zeros, down to the disk, and delete it.

    Another process that has linked to it finds its copy damaged, and packs its own again.
    """
    try:
        with path.open("r+b", buffering=0) as file:
            left = os.fstat(file.fileno()).st_size
            while left > 0:
                left -= file.write(_ZEROS[:left])
            os.fsync(file.fileno())
        path.unlink()
    except OSError as error:
        log.warning("adapter.not_erased name=%s error=%s", path, error.strerror)


def job_file(job: int) -> str:
    return f"{job}{TEMPORARY_SUFFIX}"


def job_text_file(job: int) -> str:
    return f"{job}{TEXT_SUFFIX}{TEMPORARY_SUFFIX}"


def storage_unavailable(folder: Path, why: str | None) -> AdapterStorageUnavailable:
    """Return the error of a load whose image cannot be stored.

    Callers see it, so it names the folder by the setting and not by its path.
    """
    shown = f"{folder.parent.name}/{folder.name}"
    return AdapterStorageUnavailable(
        f"No adapter can be loaded now: folder {shown} of model.cache_dir cannot take it: {why or 'unknown error'}"
    )


def _facts_of(path: Path) -> ImageFacts | None:
    """Return the facts of a whole image under its right name; None for any other file."""
    try:
        return _named_facts(path)
    except (ImageDamaged, OSError):
        return None


def _named_facts(path: Path) -> ImageFacts:
    """Return the facts of an image. Raises `ImageDamaged`, also for a file under a wrong name, and `OSError`."""
    facts = read_facts(path)
    if path.name != image_name(facts.digest, facts.dtype):
        raise ImageDamaged("its name is not the one that follows from its header")
    return facts


def _read_name(path: Path) -> NameFile:
    """Return the content of a `.name` file; without an image if the text that it names is missing."""
    with path.open("rb", buffering=0) as file:
        image, _, digest = file.read(MAX_NAME_BYTES).decode("ascii", errors="replace").partition(" ")
    if not digest:
        return NameFile(image)
    return NameFile(image, digest, path.with_name(path.name.removesuffix(NAME_SUFFIX) + TEXT_SUFFIX).stat().st_size)


def _claim(root: Path) -> tuple[Path, int]:
    """Return the first numbered folder below `root` that no other process holds, and the lock on it."""
    refused: OSError | None = None
    for number in range(MAX_FOLDERS):
        folder = root / str(number)
        try:
            lock = _lock(folder)
        except BlockingIOError:
            continue
        except OSError as error:
            refused = error  # it may be another user's, and the next one ours
            continue
        return folder, lock
    if refused is None:
        raise ConfigInvalid(
            f"all {MAX_FOLDERS} adapter folders below {root} are in use by other processes; "
            "give this one another model.cache_dir"
        )
    raise ConfigInvalid(
        f"packed adapters cannot be kept in {root}: {refused.strerror}; "
        "model.cache_dir must name a folder that this process may write to"
    ) from refused


def _lock(folder: Path) -> int:
    """Lock a folder and check that it is writable. Raises `OSError`; `BlockingIOError` if another process has it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Not opened for writing, which would keep an operator from turning the file system read-only.
    lock = os.open(folder / "lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        probe = folder / f"probe{TEMPORARY_SUFFIX}"
        probe.touch()
        probe.unlink()
    except OSError:
        os.close(lock)
        raise
    return lock
