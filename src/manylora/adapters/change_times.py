"""File systems whose change time (ctime) tells every change of a file: what a stamp of a local adapter may rely on.

A program can set a file's modification time back (`cp -p`, `rsync --times`), but not its change time: the kernel sets
it. That holds for the file systems of `DATED`. Others (FUSE, 9p, read-only images) may report whatever they like.
"""

import os
import re
from pathlib import Path

DATED = frozenset(
    [
        "bcachefs",
        "btrfs",
        "ext2",
        "ext3",
        "ext4",
        "f2fs",
        "jfs",
        "nfs",
        "nfs4",
        "overlay",
        "ramfs",
        "tmpfs",
        "xfs",
        "zfs",
    ]
)
MOUNTS = Path("/proc/self/mountinfo")
_OCTAL = re.compile(r"\\([0-7]{3})")
_POINT_FIELD = 4


class ChangeTimes:
    """Tells by its device whether a file's change time can be relied on. Each device is looked up once."""

    def __init__(self, mounts: Path = MOUNTS) -> None:
        self._mounts = mounts
        self._known: dict[int, bool] = {}

    def are_reliable(self, device: int, path: str) -> bool:
        """Whether the file system of `device` (`st_dev`), on which `path` lies, sets change times itself."""
        if device not in self._known:
            self._known[device] = self._kind_of(path) in DATED
        return self._known[device]

    def _kind_of(self, path: str) -> str:
        """The type of the file system mounted deepest above a path; empty where the system does not tell."""
        real, best, kind = os.path.realpath(path), "", ""
        try:
            lines = self._mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        except OSError:
            return ""
        for line in lines:
            fields, _, rest = line.partition(" - ")
            point = _OCTAL.sub(lambda match: chr(int(match[1], 8)), fields.split(" ")[_POINT_FIELD])
            is_above = real == point or real.startswith(point.rstrip("/") + "/")
            if is_above and len(point) >= len(best):  # of two at one place the later one is on top
                best, kind = point, rest.partition(" ")[0]
        return kind
