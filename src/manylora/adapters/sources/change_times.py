"""File systems on which every change of a file gives it another change time (ctime).

The stamp of a local adapter relies on it. A program can set a file's modification time back (`cp -p`, `rsync --times`),
but not its change time, because the kernel sets it. That holds for the file systems of `DATED`. Others (FUSE, 9p, read-
only images) may report any value. A container's overlay may lie above such an image: the image's fixed times are
usually whole seconds, and times that the kernel sets are not.
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
        "ramfs",
        "tmpfs",
        "xfs",
        "zfs",
    ]
)
OVERLAY = "overlay"
SECOND_NS = 1_000_000_000
MOUNTS = Path("/proc/self/mountinfo")
_OCTAL = re.compile(r"\\([0-7]{3})")
_POINT_FIELD = 4


class ChangeTimes:
    """Finds out whether a file's change time is reliable. Each device is looked up once."""

    def __init__(self, mounts: Path = MOUNTS) -> None:
        self._mounts = mounts
        self._kinds: dict[int, str] = {}

    def is_reliable(self, device: int, changed_ns: int, path: str) -> bool:
        """Return whether the kernel has set the change time of a file on `device` (`st_dev`) at or below `path`."""
        if device not in self._kinds:
            self._kinds[device] = self._kind_of(path)
        kind = self._kinds[device]
        return kind in DATED or (kind == OVERLAY and changed_ns % SECOND_NS != 0)

    def _kind_of(self, path: str) -> str:
        """Return the type of the file system mounted deepest above a path; empty if the system does not report it."""
        real, best, kind = os.path.realpath(path), "", ""
        try:
            lines = self._mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        except OSError:
            return ""
        for line in lines:
            fields, _, rest = line.partition(" - ")
            point = _OCTAL.sub(lambda match: chr(int(match[1], 8)), fields.split(" ")[_POINT_FIELD])
            is_above = real == point or real.startswith(point.rstrip("/") + "/")
            if is_above and len(point) >= len(best):  # of two mounts at one place the later one covers the other
                best, kind = point, rest.partition(" ")[0]
        return kind
