"""The folder of an engine process's socket in the temporary directory, and the removal of killed servers' folders."""

import contextlib
import fcntl
import os
import re
import shutil
import socket
import stat
import tempfile
from pathlib import Path

from manylora.clock import Clock
from manylora.errors import StartupError

PREFIX = "manylora-"
SOCKET = "engine"
_LOCK = "lock"
_NEW_LOCK = "lock.new"  # not held yet: another server's start would take its folder for a dead one's
_NAME = re.compile(rf"{PREFIX}[a-z0-9_]{{8}}")  # the form of names from `mkdtemp`
_YOUNG_S = 60.0
_SHORT_PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/run")
MAX_PARENT_BYTES = 107 - len(f"/{PREFIX}12345678/{SOCKET}")
"""Longest path of the parent folder: a socket's path has 108 bytes with the zero at its end (unix(7))."""


class RuntimeFolder:
    """A folder that only its user may enter. A lock on it shows that its server lives; a kill releases the lock."""

    def __init__(self, clock: Clock) -> None:
        """Make a folder, and remove those of this user's killed servers. Raises `StartupError`."""
        parent = socket_folder_parent()
        _sweep(parent, clock)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))  # mode 0700
        self._lock = os.open(self.path / _NEW_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        (self.path / _NEW_LOCK).rename(self.path / _LOCK)

    @property
    def address(self) -> str:
        """Address of the engine's socket, for ZeroMQ."""
        return f"ipc://{self.path}/{SOCKET}"

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def socket_folder_parent() -> Path:
    """Return the parent folder: the temporary directory, or a shorter path if that one is too long for a socket.

    Raises `StartupError` if no such directory can be written.
    """
    try:
        given = [tempfile.gettempdir()]
    except FileNotFoundError:
        given = []
    for parent in (*given, *_SHORT_PLACES):
        if len(os.fsencode(parent)) <= MAX_PARENT_BYTES and _is_text(parent) and os.access(parent, os.W_OK | os.X_OK):
            return Path(parent)
    raise StartupError(
        f"no folder for the engine's socket: none of {', '.join([*given, *_SHORT_PLACES])} can be written with a "
        f"path of at most {MAX_PARENT_BYTES} bytes in UTF-8; let TMPDIR name one"
    )


def _is_text(path: str) -> bool:
    """Return whether a path is UTF-8, as ZeroMQ's addresses are."""
    return path.encode(errors="ignore") == os.fsencode(path)


def _sweep(parent: Path, clock: Clock) -> None:
    for path in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if _NAME.fullmatch(path.name) and _is_ours(path) and _is_left(path, clock):
                shutil.rmtree(path)


def _is_ours(path: Path) -> bool:
    """Return whether a path is a folder of this user that holds only the files of a server."""
    facts = path.lstat()
    is_own_folder = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid()
    return is_own_folder and {SOCKET, _LOCK, _NEW_LOCK}.issuperset(entry.name for entry in path.iterdir())


def _is_left(path: Path, clock: Clock) -> bool:
    """Return whether the server of a folder is gone."""
    try:
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:  # a server makes it just now, or an earlier version without locks made it
        return clock.wall_s() - path.lstat().st_mtime > _YOUNG_S and not _is_listening(path / SOCKET)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
