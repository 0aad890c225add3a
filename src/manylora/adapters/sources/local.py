"""Adapters in folders below configured roots.

An adapter is served, and listed, if both its files are regular files, the real paths of its folder and its files lie
below the real path of its root, and no part of its name leads back to a folder above it. A link inside a root
counts as its target; a link that leads out of the root counts as missing.

A version's stamp has the values that identify each file: device, inode, size, modification time and change time. A copy
with its old times (`cp -p`, `rsync --times`) has a new change time. Where the file system does not set change times
itself (`change_times.py`), the stamp has this process's session too: after a restart the content is read again, and an
equal digest keeps the packed image.
"""

import errno
import os
import re
import secrets
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from manylora.adapter_ref import MAX_ID_CHARACTERS, AdapterRef, SourceName, parse_adapter_ref
from manylora.adapters.refusals import Refusals
from manylora.adapters.sources.change_times import SECOND_NS, ChangeTimes
from manylora.adapters.sources.source import (
    CONFIG_FILE,
    MAX_CONFIG_BYTES,
    MAX_LISTED,
    PARTS,
    PICKLED_FILE,
    TEXT_FILES,
    WEIGHTS_FILE,
    FetchedFiles,
    Located,
    is_plain,
    missing_part,
)
from manylora.adapters.text.base_text import MAX_FILE_BYTES
from manylora.clock import SystemClock
from manylora.errors import AdapterCorrupt, AdapterReferenceInvalid

MAX_REMEMBERED = 4_096
SESSION_MARK = "|"
TICK_S, COARSE_TICK_S = 0.02, 1.0
"""Longest spans in seconds in which two changes of a file may get one change time.

The first is a tick of the kernel's clock, the second that of an old file system's format.
"""
_NAMES_NOTHING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
"""Errors of the system for a name that no file can have: links in a loop, a part of over 255 characters."""
_NAMEABLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+\-]*")
"""The form of a folder's name that a request can name. Folders with other names are not searched."""


class LocalSource:
    """Adapters in folders below configured roots. An adapter's id is its path relative to a root.

    `place` may replace that rule: it returns the path below a root for a reference.
    """

    def __init__(
        self,
        roots: tuple[Path, ...],
        place: Callable[[AdapterRef], str] = lambda ref: ref.id,
        *,
        change_times: ChangeTimes | None = None,
    ) -> None:
        self._place = place
        self._roots = tuple(Path(os.path.realpath(root)) for root in roots)
        self._inside: OrderedDict[AdapterRef, str] = OrderedDict()  # the stamp for which the links were last followed
        self._change_times = change_times or ChangeTimes()
        self._session = secrets.token_hex(8)

    def locate(self, ref: AdapterRef) -> Located:
        located, _, folder = self._located(ref)
        for name, (_, _, device, _, changed_ns) in _facts_of(located.stamp).items():
            if not self._change_times.is_reliable(device, changed_ns, f"{folder}/{name}"):
                return replace(located, stamp=f"{located.stamp}{SESSION_MARK}{self._session}")
        return located

    def fetch(self, ref: AdapterRef, stamp: str, max_bytes: int) -> FetchedFiles:
        refuse = Refusals(ref.id, ref.source)
        stamp = stamp.partition(SESSION_MARK)[0]  # the process that located the adapter added the session
        located, root, folder = self._located(ref)
        if located.stamp == stamp:
            _wait_for_the_next_tick(stamp)
            with _opened(root, folder, refuse) as files:
                read = FetchedFiles(
                    _read(files.pop(CONFIG_FILE), MAX_CONFIG_BYTES, refuse).tobytes(),
                    _read(files.pop(WEIGHTS_FILE), max_bytes, refuse),
                    {name: _read(file, MAX_FILE_BYTES[name], refuse).tobytes() for name, file in files.items()},
                )
            if self._located(ref)[0].stamp == stamp:
                return read
        raise refuse.unavailable("it was replaced while it was read")

    def config(self, ref: AdapterRef) -> bytes:
        _, root, folder = self._located(ref)
        refuse = Refusals(ref.id, ref.source)
        with _opened(root, folder, refuse) as files:
            return _read(files[CONFIG_FILE], MAX_CONFIG_BYTES, refuse).tobytes()

    def list(self) -> list[str]:
        found: dict[str, None] = {}
        for root in self._roots:
            for name in _names_below(str(root)):
                if len(found) >= MAX_LISTED:
                    return sorted(found)
                found[name] = None
        return sorted(found)

    def _located(self, ref: AdapterRef) -> tuple[Located, Path, Path]:
        refuse = Refusals(ref.id, ref.source)
        if not is_plain(ref.id):
            raise refuse.not_found()
        try:
            place = self._place(ref)
        except OSError as error:
            raise refuse.unavailable(error.strerror or "its folder cannot be read") from error
        failure: Exception | None = None
        for root in self._roots:
            folder = root / place
            try:
                located = _stamped(str(folder), refuse)
                if self._inside.get(ref) != located.stamp and not _is_inside(str(root), place):
                    continue
            except FileNotFoundError:
                failure = failure or (_missing(folder, refuse) if os.path.isdir(folder) else None)  # noqa: PTH112 - no error for any name
                continue
            except AdapterCorrupt as error:
                failure = failure or error
                continue
            self._inside[ref] = located.stamp
            if len(self._inside) > MAX_REMEMBERED:
                self._inside.popitem(last=False)
            return located, root, folder
        raise failure or refuse.not_found()


def _stamped(folder: str, refuse: Refusals) -> Located:
    """Return the version in a folder. Raises `FileNotFoundError` if a file is missing."""
    facts: list[os.stat_result] = []
    for name in PARTS:
        if (fact := _fact(folder, name, refuse)) is None:
            raise FileNotFoundError
        facts.append(fact)
    stamps = [_stamp(fact) for fact in facts]
    texts = {name: fact for name in TEXT_FILES if (fact := _fact(folder, name, refuse)) is not None}
    stamps += [f"{name}:{_stamp(fact)}" for name, fact in texts.items()]
    return Located(" ".join(stamps), facts[1].st_size, sum(fact.st_size for fact in texts.values()))


def _fact(folder: str, name: str, refuse: Refusals) -> os.stat_result | None:
    """Return the system's facts of a regular file; None if there is no file of that name."""
    try:
        fact = os.stat(f"{folder}/{name}")  # noqa: PTH116 - each wish comes here; a Path costs more than stat
    except OSError as error:
        if error.errno in _NAMES_NOTHING:
            return None
        raise refuse.unavailable(error.strerror or "a file cannot be reached") from error
    if not stat.S_ISREG(fact.st_mode):
        raise refuse.corrupt(f"{name} is not a file")
    return fact


def _stamp(fact: os.stat_result) -> str:
    return f"{fact.st_mtime_ns}.{fact.st_size}.{fact.st_dev}.{fact.st_ino}.{fact.st_ctime_ns}"


def _facts_of(stamp: str) -> dict[str, list[int]]:
    """Return the numbers of each file in a stamp: its times, size, device and inode, as `_stamp` writes them."""
    first, second, *texts = stamp.split(" ")
    named = zip(PARTS, (first, second), strict=True)
    facts = {**dict(named), **dict(text.split(":", 1) for text in texts)}
    return {name: [int(fact) for fact in text.split(".")] for name, text in facts.items()}


def _wait_for_the_next_tick(stamp: str) -> None:
    """Block until a change of a file would get another change time than the newest of this stamp: at most a second."""
    newest_ns = max(changed_ns for *_, changed_ns in _facts_of(stamp).values())
    tick_s = TICK_S if newest_ns % SECOND_NS else COARSE_TICK_S
    clock = SystemClock()
    age_s = clock.wall_s() - newest_ns / SECOND_NS
    if 0 <= age_s < tick_s:
        clock.sleep_s(tick_s - age_s)


def _missing(folder: Path, refuse: Refusals) -> Exception:
    has = {name: (folder / name).exists() for name in (*PARTS, PICKLED_FILE)}
    return missing_part(has[CONFIG_FILE], has[WEIGHTS_FILE], has[PICKLED_FILE], refuse)


def _is_inside(root: str, place: str) -> bool:
    """Return whether a folder and its files lie below a root, with no part of the name leading back above it."""
    chain, path = [root], root
    for part in place.split("/"):
        path = f"{path}/{part}"
        real = os.path.realpath(path)
        if not _is_below(root, real) or real in chain:
            return False
        chain.append(real)
    return all(_is_below(root, os.path.realpath(f"{path}/{name}")) for name in (*PARTS, *TEXT_FILES))


def _is_below(root: str, real: str) -> bool:
    return real.startswith(root.rstrip("/") + "/")


def _names_below(root: str) -> Iterator[str]:
    """Yield the names below a real root for which `_is_inside` holds, folders in the order of their names."""
    ahead: list[tuple[str, str, tuple[str, ...]]] = [("", root, (root,))]  # name, real path, real paths down to it
    while ahead:
        name, real, chain = ahead.pop()
        inside: list[tuple[str, str, tuple[str, ...]]] = []
        parts = 0
        try:
            entries = sorted(os.scandir(real), key=lambda entry: entry.name)
        except OSError:
            continue  # gone, or not readable by this process
        for entry in entries:
            if entry.name in PARTS:
                parts += _is_file_below(root, entry)
            elif _NAMEABLE.fullmatch(entry.name) and _is_folder(entry):
                below = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                if _is_below(root, below) and below not in chain:
                    inside.append((f"{name}/{entry.name}" if name else entry.name, below, (*chain, below)))
        ahead += [step for step in reversed(inside) if len(step[0]) <= MAX_ID_CHARACTERS]
        if parts == len(PARTS) and _is_nameable(name):
            yield name


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file_below(root: str, entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_file() and (not entry.is_symlink() or _is_below(root, os.path.realpath(entry.path)))
    except OSError:
        return False


def _is_nameable(name: str) -> bool:
    try:
        parse_adapter_ref(name, SourceName.LOCAL, frozenset({SourceName.LOCAL}))
    except AdapterReferenceInvalid:
        return False
    return True


@contextmanager
def _opened(root: Path, folder: Path, refuse: Refusals) -> Iterator[dict[str, int]]:
    """Open both parts and the existing text files of an adapter. The context has the descriptors by name."""
    opened: dict[str, int] = {}
    try:
        for name in (*PARTS, *TEXT_FILES):
            try:
                opened[name] = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except FileNotFoundError:
                if name in PARTS:
                    raise
                continue
            # The check applies to the open file, not to the file that had the name a moment ago.
            if not _is_open_inside(opened[name], folder / name, root):
                raise refuse.not_found()
            if not stat.S_ISREG(os.fstat(opened[name]).st_mode):
                raise refuse.corrupt(f"{name} is not a file")
        yield dict(opened)
    except OSError as error:
        raise refuse.unavailable(error.strerror or "the file cannot be read") from error
    finally:
        for descriptor in opened.values():
            os.close(descriptor)


def _is_open_inside(descriptor: int, path: Path, root: Path) -> bool:
    """Return whether an open file lies below the root: by its own path, or without `/proc` by the resolved name."""
    try:
        return Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(root)
    except OSError:
        real = Path(os.path.realpath(path))
        return real.is_relative_to(root) and os.path.samestat(real.stat(), os.fstat(descriptor))


def _read(descriptor: int, max_bytes: int, refuse: Refusals) -> memoryview:
    num_bytes = os.fstat(descriptor).st_size
    if num_bytes > max_bytes:
        raise refuse.too_large(num_bytes, max_bytes)
    data = np.empty(num_bytes, dtype=np.uint8).data
    done = 0
    while done < num_bytes:
        read = os.preadv(descriptor, [data[done:]], done)
        if read == 0:
            raise refuse.unavailable("the file became shorter while it was read")
        done += read
    return data
