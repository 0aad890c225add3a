"""Files that only their owner may read: hashes of keys, the ledger, and uploaded weights."""

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

OTHERS = 0o077
"""Permission bits of the group and of all others."""


def keep_private() -> None:
    """Set the umask, so that only the owner can read the files that this process and its children make from now on."""
    os.umask(OTHERS)


def make_private(file: Path) -> None:
    """Make an empty file unless it exists. SQLite gives the files beside a database the mode of the database's file."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.close(descriptor)


def tighten(*places: Path) -> None:
    """Remove the rights of the group and of all others, as an older release or another umask has set them.

    Links are not followed. One log line a place names the changes, and the files of other users, which stay as they
    are.
    """
    for place in places:
        changed = failed = 0
        for path in _open_to_others(place):
            try:
                path.chmod(stat.S_IMODE(path.lstat().st_mode) & ~OTHERS)
                changed += 1
            except FileNotFoundError:
                continue  # removed meanwhile
            except OSError:
                failed += 1
        if changed:
            log.warning("files.tightened place=%s number=%d: only their owner may read them now", place, changed)
        if failed:
            log.warning("files.not_tightened place=%s number=%d: they belong to another user", place, failed)


def _open_to_others(place: Path) -> Iterator[Path]:
    """Yield the place and all below it on which others have any right. Links are left out."""
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
