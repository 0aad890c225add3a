"""Adapters in folders below configured roots."""

import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from manylora.adapter_ref import AdapterRef, SourceName, parse_adapter_ref
from manylora.adapters.refusals import Refusals
from manylora.adapters.sources import (
    CONFIG_FILE,
    MAX_CONFIG_BYTES,
    MAX_LISTED,
    PARTS,
    PICKLED_FILE,
    WEIGHTS_FILE,
    FetchedFiles,
    Located,
    is_plain,
    missing_part,
)
from manylora.errors import AdapterReferenceInvalid

MAX_REMEMBERED = 4_096


class LocalSource:
    """Adapters in folders below configured roots; an adapter's id is its path relative to a root.

    `place` may say otherwise: the path below a root, from what a request names.
    """

    def __init__(self, roots: tuple[Path, ...], place: Callable[[AdapterRef], str] = lambda ref: ref.id) -> None:
        self._place = place
        self._roots = tuple(Path(os.path.realpath(root)) for root in roots)
        self._inside: OrderedDict[AdapterRef, str] = OrderedDict()  # the stamp whose links were last followed

    def locate(self, ref: AdapterRef) -> Located:
        return self._located(ref)[0]

    def fetch(self, ref: AdapterRef, stamp: str, max_bytes: int) -> FetchedFiles:
        refuse = Refusals(ref.id, ref.source)
        located, root, folder = self._located(ref)
        if located.stamp == stamp:
            with _opened(root, folder, refuse) as (config, weights):
                read = FetchedFiles(
                    _read(config, MAX_CONFIG_BYTES, refuse).tobytes(), _read(weights, max_bytes, refuse)
                )
            if self._located(ref)[0].stamp == stamp:
                return read
        raise refuse.unavailable("it was replaced while it was read")

    def list(self) -> list[str]:
        return sorted(set(self._names()))

    def _names(self) -> Iterator[str]:
        found = 0
        for root in self._roots:
            for folder, inside, files in os.walk(root):
                inside[:] = sorted(name for name in inside if not name.startswith("."))  # no request can name those
                if CONFIG_FILE not in files:
                    continue
                if found >= MAX_LISTED:
                    return
                relative = Path(folder).relative_to(root).as_posix()
                try:
                    ref = parse_adapter_ref(relative, SourceName.LOCAL, frozenset({SourceName.LOCAL}))
                except AdapterReferenceInvalid:
                    continue  # a folder that no request could name
                found += 1
                yield ref.id

    def _located(self, ref: AdapterRef) -> tuple[Located, Path, Path]:
        refuse = Refusals(ref.id, ref.source)
        if not is_plain(ref.id):
            raise refuse.not_found()
        try:
            place = self._place(ref)
        except OSError as error:
            raise refuse.unavailable(error.strerror or "its folder cannot be read") from error
        for root in self._roots:
            folder = root / place
            try:
                located = _stamped(str(folder), refuse)
            except FileNotFoundError as missing:
                if folder.is_dir():
                    raise _missing(folder, refuse) from missing
                continue
            if self._inside.get(ref) != located.stamp:
                _check_inside(root, folder, refuse)
                self._inside[ref] = located.stamp
                if len(self._inside) > MAX_REMEMBERED:
                    self._inside.popitem(last=False)
            return located, root, folder
        raise refuse.not_found()


def _stamped(folder: str, refuse: Refusals) -> Located:
    """The version in a folder. Raises `FileNotFoundError` as the system does."""
    facts: list[os.stat_result] = []
    for name in PARTS:
        try:
            facts.append(os.stat(f"{folder}/{name}"))  # noqa: PTH116 - each wish comes here; a Path costs more than stat
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError from error
        except OSError as error:
            raise refuse.unavailable(error.strerror or "a file cannot be reached") from error
        if not stat.S_ISREG(facts[-1].st_mode):
            raise refuse.corrupt(f"{name} is not a file")
    stamp = " ".join(f"{fact.st_mtime_ns}.{fact.st_size}.{fact.st_dev}.{fact.st_ino}" for fact in facts)
    return Located(stamp, facts[1].st_size)


def _missing(folder: Path, refuse: Refusals) -> Exception:
    has = {name: (folder / name).exists() for name in (*PARTS, PICKLED_FILE)}
    return missing_part(has[CONFIG_FILE], has[WEIGHTS_FILE], has[PICKLED_FILE], refuse)


def _check_inside(root: Path, folder: Path, refuse: Refusals) -> None:
    """Refuse an adapter whose links lead out of the root, in the words for one that is not there."""
    for name in PARTS:
        if not Path(os.path.realpath(folder / name)).is_relative_to(root):
            raise refuse.not_found()


@contextmanager
def _opened(root: Path, folder: Path, refuse: Refusals) -> Iterator[tuple[int, int]]:
    descriptors: list[int] = []
    try:
        for name in PARTS:
            descriptors.append(os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
            # What was opened is checked, not what the name pointed at a moment ago.
            if not Path(f"/proc/self/fd/{descriptors[-1]}").readlink().is_relative_to(root):
                raise refuse.not_found()
            if not stat.S_ISREG(os.fstat(descriptors[-1]).st_mode):
                raise refuse.corrupt(f"{name} is not a file")
        yield descriptors[0], descriptors[1]
    except OSError as error:
        raise refuse.unavailable(error.strerror or "the file cannot be read") from error
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


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
