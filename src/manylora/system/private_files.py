"""Files that only their owner may read: keys' hashes, what customers owe, and the weights that they uploaded."""

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

OTHERS = 0o077
"""Permission bits of the group and of all others."""


def keep_private() -> None:
    """Make what this process and its children write from now on readable by their owner alone."""
    os.umask(OTHERS)


def make_private(file: Path) -> None:
    """Make an empty file unless it is there; SQLite gives the files beside a database the mode of that."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.close(descriptor)


def tighten(*places: Path) -> None:
    """Take from the group and all others what an older release, or another umask, let them do. Links are not followed.

    One log line a place names the changes, and the files of other users, which stay as they are.
    """
    for place in places:
        changed = failed = 0
        for path in _open_to_others(place):
            try:
                path.chmod(stat.S_IMODE(path.lstat().st_mode) & ~OTHERS)
                changed += 1
            except FileNotFoundError:
                continue  # it has gone meanwhile
            except OSError:
                failed += 1
        if changed:
            log.warning("files.tightened place=%s number=%d: only their owner may read them now", place, changed)
        if failed:
            log.warning("files.not_tightened place=%s number=%d: they belong to another user", place, failed)


def _open_to_others(place: Path) -> Iterator[Path]:
    """The place and what is below it, as far as others may do anything with it. Links are left out."""
    try:
        mode = place.lstat().st_mode
    except OSError:
        return
    if stat.S_ISLNK(mode):
        return
    if mode & OTHERS:
        yield place
    if not stat.S_ISDIR(mode):
        return
    for folder, folders, files in os.walk(place, followlinks=False):
        for path in (Path(folder, name) for name in (*folders, *files)):
            try:
                mode = path.lstat().st_mode
            except OSError:
                continue
            if not stat.S_ISLNK(mode) and mode & OTHERS:
                yield path
