"""What a process may use, read from made-up trees of `/proc` and of control groups."""

import os
from pathlib import Path

import pytest

from manylora.system.resources import find_resources, has_cuda_device

GB = 10**9
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:4 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw shared:5 - cgroup cgroup rw,memory\n"
)
HYBRID = V1 + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"


@pytest.fixture(autouse=True)
def eight_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def tree(root: Path, mounts: str, groups: str, files: dict[str, object], available: int = 64 * GB) -> Path:
    """A root with `/proc` and the control groups' files, by their paths below `/sys/fs/cgroup`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {available // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/self/mountinfo").write_text("23 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + mounts)
    for name, content in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    return root


SERVICE = "system.slice/manylora.service"


@pytest.mark.parametrize(
    ("mounts", "groups", "files", "memory", "threads"),
    [
        pytest.param(
            *(V2, f"0::/{SERVICE}\n"),
            {f"{SERVICE}/memory.max": 2 * GB, f"{SERVICE}/memory.current": GB, f"{SERVICE}/cpu.max": "150000 100000"},
            *(GB, 1),
            id="a service's own limits",
        ),
        pytest.param(
            *(V2, f"0::/{SERVICE}\n"),
            {
                f"{SERVICE}/memory.max": 8 * GB,
                f"{SERVICE}/cpu.max": "max 100000",
                "system.slice/memory.max": 3 * GB,
                "system.slice/memory.current": GB // 2,
                "system.slice/cpu.max": "250000 100000",
            },
            *(5 * GB // 2, 2),
            id="a tighter limit above",
        ),
        pytest.param(
            *(V2, "0::/a/b/c\n"),
            {"a/b/c/memory.max": "max", "a/b/memory.high": 2 * GB, "a/b/memory.max": 4 * GB, "a/memory.max": 3 * GB},
            *(2 * GB, 8),
            id="the limit at which the kernel slows it down",
        ),
        pytest.param(
            *(V2, "0::/\n"),
            {"memory.max": 2 * GB, "memory.current": 3 * GB // 2, "memory.stat": f"inactive_file {GB // 2}\nfile 9"},
            *(GB, 8),
            id="a container's root, with file cache",
        ),
        pytest.param(
            *(V2, "0::/\n"),
            {"memory.max": 2 * GB, "memory.swap.max": 5, "memory.current": 0, "cpu.max": "50000 100000"},
            *(2 * GB, 1),
            id="a part of a processor, and swap that counts nowhere",
        ),
        pytest.param(
            *(V1, f"4:memory:/{SERVICE}\n1:cpu,cpuacct:/{SERVICE}\n2:freezer:/elsewhere\n"),
            {
                f"memory/{SERVICE}/memory.limit_in_bytes": 2 * GB,
                f"memory/{SERVICE}/memory.usage_in_bytes": GB,
                f"memory/{SERVICE}/memory.stat": f"inactive_file 5\ntotal_inactive_file {GB // 4}\n",
                "memory/memory.limit_in_bytes": 9223372036854771712,
                f"cpu,cpuacct/{SERVICE}/cpu.cfs_quota_us": -1,
                f"cpu,cpuacct/{SERVICE}/cpu.cfs_period_us": 100000,
                "cpu,cpuacct/system.slice/cpu.cfs_quota_us": 399999,
                "cpu,cpuacct/system.slice/cpu.cfs_period_us": 100000,
            },
            *(5 * GB // 4, 3),
            id="version 1",
        ),
        pytest.param(
            *(V1, "4:memory:/inner\n"),
            {"memory/inner/memory.stat": f"hierarchical_memory_limit {GB}\ncache 5\n"},
            *(GB, 8),
            id="version 1, a limit above what is mounted",
        ),
        pytest.param(
            *(HYBRID, f"4:memory:/x\n1:cpu,cpuacct:/\n0::/{SERVICE}\n"),
            {
                "memory/x/memory.limit_in_bytes": GB,
                f"unified/{SERVICE}/cpu.max": "200000 100000",
                f"unified/{SERVICE}/memory.max": 2 * GB,
            },
            *(GB, 2),
            id="both versions",
        ),
        pytest.param(
            "35 31 0:32 /docker/77ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
            "4:memory:/docker/77ab/child\n",
            {"memory/memory.limit_in_bytes": 2 * GB, "memory/child/memory.limit_in_bytes": GB},
            *(GB, 8),
            id="a mount that shows a container's group",
        ),
        pytest.param(
            *(V2, "0::/../../elsewhere\n"),
            {"memory.max": GB, "cpu.max": "300000 100000"},
            *(GB, 3),
            id="a group outside of the namespace",
        ),
        pytest.param(
            "30 23 0:26 / /sys/fs/cgroup/my\\040groups rw - cgroup2 cgroup2 rw\n",
            "0::/a:b\n",
            {"my groups/a:b/memory.max": GB},
            *(GB, 8),
            id="odd names",
        ),
        pytest.param(V2, "0::/gone (deleted)\n", {"memory.max": "max"}, 64 * GB, 8, id="a group that is gone"),
        pytest.param("", "", {}, 64 * GB, 8, id="no groups"),
    ],
)
def test_the_tightest_limit_counts(
    mounts: str, groups: str, files: dict[str, object], memory: int, threads: int, tmp_path: Path
) -> None:
    found = find_resources(root=tree(tmp_path, mounts, groups, files))
    assert (found.memory_bytes, found.threads) == (memory, threads)


def test_the_machine_decides_where_it_has_less_than_the_limit(tmp_path: Path) -> None:
    root = tree(tmp_path, V2, "0::/\n", {"memory.max": 2 * GB}, available=1024 * 1024)
    assert find_resources(root=root).memory_bytes == 1024 * 1024


def test_what_the_processes_of_the_plan_have_taken_is_theirs(tmp_path: Path) -> None:
    root = tree(tmp_path, V2, "0::/\n", {"memory.max": 2 * GB, "memory.current": GB})
    (root / "proc/7").mkdir()
    (root / "proc/7/smaps_rollup").write_text("0-1 ---p 0 0 [rollup]\nRss: 9 kB\nAnonymous:   300000 kB\n")
    assert find_resources((7, 8), root).memory_bytes == GB + 300_000 * 1024


def test_without_proc_half_of_the_machine_is_taken(tmp_path: Path) -> None:
    found = find_resources((7,), tmp_path)
    assert found.memory_bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    assert found.threads == 8


def test_a_cuda_device_has_a_numbered_file(tmp_path: Path) -> None:
    (tmp_path / "nvidiactl").touch()
    assert not has_cuda_device(tmp_path)
    (tmp_path / "nvidia0").touch()
    assert has_cuda_device(tmp_path)
