"""What this process may use: processors and memory, by the container's limits before the machine's."""

import os
from dataclasses import dataclass
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """threads: processors this process may run on at once, at least 1; memory_bytes: bytes it may still take."""

    threads: int
    memory_bytes: int


def find_resources(cgroup: Path = _CGROUP, meminfo: Path = Path("/proc/meminfo")) -> Resources:
    """Read the limits of the container (cgroup v2, then v1) and of the machine; the tightest wins."""
    memory = min(bytes_ for bytes_ in (_container_memory(cgroup), _machine_memory(meminfo)) if bytes_ is not None)
    processors = len(os.sched_getaffinity(0))
    quota = _container_processors(cgroup)
    return Resources(threads=max(1, min(processors, processors if quota is None else quota)), memory_bytes=memory)


def _container_memory(cgroup: Path) -> int | None:
    """Bytes below the container's memory limit, or None if it has none."""
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, used = _number(cgroup / limit_name), _number(cgroup / used_name)
        if limit is not None and limit < 1 << 60:  # v1 writes "no limit" as a very large number
            return max(0, limit - (used or 0) + _reclaimable((cgroup / limit_name).parent / "memory.stat"))
    return None


def _reclaimable(stat_file: Path) -> int:
    """Bytes of file cache that the container counts as used and gives up on demand."""
    try:
        stat = stat_file.read_text().split()
    except OSError:
        return 0
    for name in ("total_inactive_file", "inactive_file"):  # v1 counts the container's children under the first
        if name in stat:
            return int(stat[stat.index(name) + 1])
    return 0


def _container_processors(cgroup: Path) -> int | None:
    """Whole processors of the container's CPU quota (0 for a part of one), or None if it has none."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        quota_v1, period_v1 = _number(cgroup / "cpu/cpu.cfs_quota_us"), _number(cgroup / "cpu/cpu.cfs_period_us")
        return quota_v1 // period_v1 if quota_v1 and period_v1 and quota_v1 > 0 else None
    return int(quota) // int(period) if quota.isdigit() else None


def _machine_memory(meminfo: Path) -> int:
    """`MemAvailable`: what can be taken without swapping."""
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{meminfo} has no MemAvailable")


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
