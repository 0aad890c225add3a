"""The processors and the memory that this process may use, by its control groups and the machine.

Linux limits a process at its control group and at every group above that one; the tightest limit counts. The group of a
systemd service is far below the root of the cgroup file system; that of a container is usually its root. Sources:
cgroups(7), proc(5), the kernel's cgroup-v2 and cgroup-v1/memory pages.
"""

import math
import os
import re
import resource
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from manylora.errors import ConfigInvalid

_NO_LIMIT = 1 << 60  # version 1 writes "no limit" as a very large number
LEAST_FILES = 128
"""Open files that a server needs: connections, sockets between processes, the database, journals, adapters' files."""
_MOST_FILES = 65536
_RECLAIMABLE = ("inactive_file", "active_file")
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """The resources of this process.

    threads       processors that it may run on at once, at least 1
    memory_bytes  bytes that it may take, 0 or more
    """

    threads: int
    memory_bytes: int


def find_resources(own: Sequence[int] = (), root: Path = Path("/")) -> Resources:
    """Read the limits of the process's control groups (version 2, 1 or both) and of the machine; the tightest wins.

    Args:  own   ids of processes whose memory counts as available, for a plan that includes them
           root  the folder with `/proc` and the mounted control groups
    Without `/proc` the available memory is unknown, and half of the machine's memory counts.
    """
    groups = _groups(root)
    limits = [limit for group in groups if (limit := _memory_left(group)) is not None]
    memory = min([_machine_memory(root), *limits])
    taken = sum(_anonymous_bytes(root, process) for process in own)
    quotas = [quota for group in groups if (quota := _processors(group)) is not None]
    processors = _num_processors()
    # A thread more than the quota has processors would only wait for the next period.
    return Resources(threads=max(1, min([processors, *map(math.floor, quotas)])), memory_bytes=memory + taken)


def has_cuda_device(folder: Path = Path("/dev")) -> bool:
    """Return whether the system has the device file of a CUDA device. Nothing is opened."""
    return any(each.name.removeprefix("nvidia").isdigit() for each in folder.glob("nvidia*"))


def machine_bytes() -> int:
    """Return the bytes of this machine's memory, taken or not, without swap."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def raise_file_limit() -> None:
    """Raise the limit on open files of this process and its children as far as possible.

    Raises `ConfigInvalid` if that is too few.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if most < LEAST_FILES:
        raise ConfigInvalid(
            f"this process may open {most} files, and a server takes at least {LEAST_FILES}: raise its limit "
            "(`ulimit -n`, LimitNOFILE= of a systemd service, --ulimit nofile= of a container)"
        )
    with suppress(OSError, ValueError):  # the present limit is enough
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _num_processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # some systems and sandboxes lack the call
        return os.cpu_count() or 1


# ── where the groups are ─────────────────────────────────────────────────────────────────────────────────────────


def _groups(root: Path) -> list[Path]:
    """Return the folders of this process's control groups and of all above them that are mounted."""
    found: list[Path] = []
    for controllers, path in _memberships(root):
        for mount in _mounts(root):
            if mount.holds(controllers):
                found += mount.folders(root, path)
    return list(dict.fromkeys(found))


def _memberships(root: Path) -> Iterator[tuple[frozenset[str], str]]:
    """Yield (controllers, path) of each hierarchy in `/proc/self/cgroup`. Version 2 has no controllers there."""
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number.isdecimal():
            yield frozenset(filter(None, controllers.split(","))), path


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mounted hierarchy.

    inner    the group at its mount point
    options  mount options, with the controllers of version 1
    """

    inner: str
    point: str
    kind: str
    options: frozenset[str]

    def holds(self, controllers: frozenset[str]) -> bool:
        if self.kind == "cgroup2":
            return not controllers
        return self.kind == "cgroup" and bool(controllers & self.options & {"memory", "cpu"})

    def folders(self, root: Path, path: str) -> list[Path]:
        """Return the folders from the mount point down to the group; only the mount point for a group outside of it."""
        point = root / self.point.lstrip("/")
        below = PurePosixPath(path)
        if self.inner != "/" and below.is_relative_to(self.inner):
            below = PurePosixPath("/") / below.relative_to(self.inner)
        parts = below.parts[1:]
        folders = [point.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
        is_shown = ".." not in parts and folders[-1].is_dir()
        return folders if is_shown else folders[:1]


def _mounts(root: Path) -> Iterator[_Mount]:
    """Yield the control group mounts of `/proc/self/mountinfo`.

    Its fields: number, parent, device, root, mount point, options…, "-", kind, source, super options.
    """
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, more = before.split(), after.split()
        if len(fields) >= 5 and len(more) >= 3 and more[0] in ("cgroup", "cgroup2"):
            yield _Mount(_plain(fields[3]), _plain(fields[4]), more[0], frozenset(more[2].split(",")))


def _plain(field: str) -> str:
    """Return a field with its octal escapes replaced. The kernel writes spaces and backslashes in octal."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), field)


# ── the limits of a group ────────────────────────────────────────────────────────────────────────────────────────


def _memory_left(group: Path) -> int | None:
    """Return the bytes left below the group's limit, with the file cache that it can drop; None if it has no limit.

    `memory.high` counts like `memory.max`: above it the kernel slows the process down extremely. Swap does not count.
    """
    stat = _stat(group)
    names = ("memory.max", "memory.high", "memory.limit_in_bytes")
    limits = [number for name in names if (number := _number(group / name)) is not None]
    # Version 1 has the tightest limit above the group, too, where the groups themselves are invisible.
    limits += [stat["hierarchical_memory_limit"]] if "hierarchical_memory_limit" in stat else []
    limit = min((limit for limit in limits if limit < _NO_LIMIT), default=None)
    if limit is None:
        return None
    used = _number(group / "memory.current")
    used = _number(group / "memory.usage_in_bytes") if used is None else used
    # Under these names version 1 has the group alone, and its children under `total_…`; version 2 counts all.
    cache = sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in _RECLAIMABLE)
    return max(0, min(limit, limit - (used or 0) + cache))


def _stat(group: Path) -> dict[str, int]:
    pairs = (line.split() for line in _lines(group / "memory.stat"))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _processors(group: Path) -> float | None:
    """Return the processors of the group's quota, as a fraction; None if it has no quota."""
    fields = " ".join(_lines(group / "cpu.max")).split()
    if len(fields) == 2 and all(field.isdecimal() for field in fields):
        quota, period = int(fields[0]), int(fields[1])
    else:
        quota = _number(group / "cpu.cfs_quota_us") or 0  # -1: none
        period = _number(group / "cpu.cfs_period_us") or 0
    return quota / period if quota > 0 and period > 0 else None


# ── the machine and its processes ────────────────────────────────────────────────────────────────────────────────


def _machine_memory(root: Path) -> int:
    """Return `MemAvailable`, the bytes that can be taken without swapping; without `/proc`, half of all memory."""
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return machine_bytes() // 2


def _anonymous_bytes(root: Path, process: int) -> int:
    """Return the bytes of a process that no file holds and that end with it; 0 where the system does not say."""
    for line in _lines(root / f"proc/{process}/smaps_rollup"):
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    return 0


def _lines(file: Path) -> list[str]:
    with suppress(OSError):
        return file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return []


def _number(file: Path) -> int | None:
    text = "".join(_lines(file)).strip()
    return int(text) if text.isdecimal() else None
