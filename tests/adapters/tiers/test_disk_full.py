"""A disk that is full, nearly full or read-only: loads end with a clear error, and what is in memory serves on."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from manylora import errors
from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import AdapterAction, AdapterState
from manylora.adapters.ingest.client import ProcessIngest
from manylora.adapters.store.store import Store
from manylora.adapters.tiers.disk import DiskTier
from manylora.adapters.tiers.image_folder import ImageFolder, job_file
from manylora.clock import ManualClock
from manylora.config.environment import child_environment
from tests.adapters.adapter_files import TINY, local, save_adapter
from tests.adapters.server_store import bytes_in, fail, opened, place, turn
from tests.support.waiting import wait_for

DISK_BYTES = 512 << 10
KEPT_FREE_BYTES = DISK_BYTES // 20
RETRY_S = 6.0
NAMES = [f"a{number}" for number in range(9)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of `DISK_BYTES`, all to itself."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here; other tests limit the size of files instead")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, name in enumerate(NAMES):
        save_adapter(tmp_path / "root" / name, seed=seed)
    return tmp_path / "root"


def free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def fill(folder: Path, *, but_bytes: int) -> Path:
    """Take all of a disk but so many bytes."""
    filler = folder / "filler"
    filler.write_bytes(bytes(max(0, free_bytes(folder) - but_bytes)))
    return filler


def ingest_of(store: Store) -> ProcessIngest:
    ingest = store._ingest
    assert isinstance(ingest, ProcessIngest)
    return ingest


def assert_storage_error(failure: Exception, cause: str) -> None:
    assert isinstance(failure, errors.AdapterStorageUnavailable)
    assert failure.is_retryable
    assert "folder tier/0 of model.cache_dir" in failure.message
    assert cause in failure.message


def assert_serves_on(store: Store, ref: AdapterRef) -> None:
    placed = store.pin(ref)
    assert placed is not None
    assert bool(store.weights[placed.digest].image.isfinite().all())
    store.unpin(placed)


def test_a_disk_that_fills_while_an_image_is_written_fails_that_load_and_no_other(
    disk: Path, root: Path, tmp_path: Path
) -> None:
    clock = ManualClock()
    with opened(tmp_path, tier=disk / "tier", clock=clock) as store:
        first, second = local("a0"), local("a1")
        place(store, first)
        before = store.stats()
        ingest = ingest_of(store)
        os.kill(ingest.pid, signal.SIGSTOP)
        turn(store, [second])
        assert store.stats().disk_bytes_used > before.disk_bytes_used
        filler = fill(disk, but_bytes=0)
        os.kill(ingest.pid, signal.SIGCONT)
        assert_storage_error(fail(store, second), "No space left on device")
        assert store.stats().disk_bytes_used == before.disk_bytes_used == bytes_in(disk / "tier" / "0")
        assert_serves_on(store, first)
        assert ingest.restarts == 0
        filler.unlink()
        clock.advance(RETRY_S)
        place(store, first, second)


def test_a_file_that_cannot_grow_fails_its_load_and_no_other(root: Path, tmp_path: Path) -> None:
    """What a quota does, where nothing can be mounted: the ingest process may write no more than 1,000 bytes."""
    clock = ManualClock()
    with opened(tmp_path, clock=clock) as store:
        first, second = local("a0"), local("a1")
        place(store, first)
        before = store.stats()
        _, hard = resource.prlimit(ingest_of(store).pid, resource.RLIMIT_FSIZE)
        resource.prlimit(ingest_of(store).pid, resource.RLIMIT_FSIZE, (1_000, hard))
        assert_storage_error(fail(store, second), "File too large")
        assert store.stats().disk_bytes_used == before.disk_bytes_used == bytes_in(tmp_path / "tier" / "0")
        assert_serves_on(store, first)
        resource.prlimit(ingest_of(store).pid, resource.RLIMIT_FSIZE, (hard, hard))
        clock.advance(RETRY_S)
        place(store, first, second)
        assert ingest_of(store).restarts == 0


def test_idle_images_go_when_the_file_system_lacks_room(disk: Path, root: Path, tmp_path: Path) -> None:
    with opened(tmp_path, tier=disk / "tier") as store:
        place(store, *map(local, NAMES[:-1]))
        image_bytes = store.stats().disk_bytes_used // len(NAMES[:-1])
        fill(disk, but_bytes=KEPT_FREE_BYTES + image_bytes)
        place(store, local(NAMES[-1]))
        assert 1 <= store.stats().on_disk < len(NAMES)
        assert store.stats().disk_bytes_used == bytes_in(disk / "tier" / "0")
        assert free_bytes(disk) >= KEPT_FREE_BYTES
        for name in NAMES:
            assert_serves_on(store, local(name))


def test_a_disk_full_of_other_things_fails_a_load_before_it_is_begun(disk: Path, root: Path, tmp_path: Path) -> None:
    clock = ManualClock()
    with opened(tmp_path, tier=disk / "tier", clock=clock) as store:
        filler = fill(disk, but_bytes=KEPT_FREE_BYTES)
        assert turn(store, [local("a0")]) == [AdapterState.ABSENT]
        failure = store.failure(local("a0"))
        assert failure is not None
        assert_storage_error(failure, "the disk is full: ")
        assert store.stats().disk_bytes_used == bytes_in(disk / "tier" / "0") == 0
        filler.unlink()
        clock.advance(RETRY_S)
        place(store, local("a0"))


def test_a_file_system_smaller_than_the_budget_is_told_at_start(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    for budget_bytes, num_warnings in ((DISK_BYTES // 2, 0), (DISK_BYTES, 1)):
        tier = DiskTier(disk / "tier", budget_bytes, dtype="bfloat16", base_fingerprint=TINY.fingerprint)
        tier.close()
        assert sum("adapter.disk_small" in record.getMessage() for record in caplog.records) == num_warnings


def test_a_load_waits_while_others_hold_what_the_file_system_has(disk: Path) -> None:
    tier = DiskTier(disk / "tier", 1 << 30, dtype="bfloat16", base_fingerprint=TINY.fingerprint)
    half_bytes = (free_bytes(disk) - KEPT_FREE_BYTES) // 2
    assert tier.reserve(1, half_bytes - 1_000)
    assert not tier.reserve(2, half_bytes + 4_000)
    tier.cancel(1)
    assert tier.reserve(2, half_bytes + 4_000)
    tier.close()


def test_a_folder_that_turns_read_only_fails_loads_and_serves_on(disk: Path, root: Path, tmp_path: Path) -> None:
    clock = ManualClock()
    with opened(tmp_path, tier=disk / "tier", clock=clock) as store:
        place(store, local("a0"))
        ingest = ingest_of(store)
        os.kill(ingest.pid, signal.SIGSTOP)
        turn(store, [local("a1")])
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        os.kill(ingest.pid, signal.SIGCONT)
        assert_storage_error(fail(store, local("a1")), "Read-only file system")
        assert_storage_error(fail(store, local("a2")), "")
        assert_serves_on(store, local("a0"))
        store.manage(
            AdapterAction.EVICT, local("a0")
        )  # an operator's order: gone from memory, and from disk as soon as that goes
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        clock.advance(RETRY_S)
        place(store, local("a1"), local("a2"))
        assert store.stats().on_disk == 2
        assert store.stats().disk_bytes_used == bytes_in(disk / "tier" / "0")


def test_a_read_only_folder_is_refused_at_start(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(errors.ConfigInvalid) as raised:
        ImageFolder(disk / "tier")
    message = f"packed adapters cannot be kept in {disk / 'tier'}: Read-only file system; model.cache_dir must name "
    assert raised.value.message.startswith(message)


OPEN_AS_NOBODY = """
import os, sys
from pathlib import Path
from manylora.adapters.tiers.image_folder import ImageFolder
from manylora.errors import ConfigInvalid
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
try:
    print(ImageFolder(Path(sys.argv[1])).path)
except ConfigInvalid as error:
    print(error.message)
"""


def open_as_nobody(root: Path) -> str:
    """Claim a folder below `root` in a process that owns nothing, and return the folder or the error's message."""
    command = [sys.executable, "-c", OPEN_AS_NOBODY, str(root)]
    run = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_a_folder_of_another_user_is_refused_at_start(tmp_path: Path) -> None:
    root = open_to_all(tmp_path) / "adapters"
    root.mkdir()
    root.chmod(0o555)
    message = open_as_nobody(root)
    assert message.startswith(f"packed adapters cannot be kept in {root}: Permission denied; model.cache_dir must name")


def test_a_numbered_folder_of_another_user_is_passed_over(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can leave a folder of another user")
    root = open_to_all(tmp_path) / "adapters"
    ImageFolder(root).close()
    root.chmod(0o777)
    (root / "0").chmod(0o755)
    assert open_as_nobody(root) == str(root / "1")


def open_to_all(folder: Path) -> Path:
    """Let other users pass through the folders of this test, if it is about another user at all."""
    if os.geteuid() == 0:
        shared = Path(tempfile.gettempdir())
        for each in (folder, *(parent for parent in folder.parents if shared in parent.parents)):
            each.chmod(0o755)
    return folder


def test_too_many_servers_on_one_folder_are_told_so(tmp_path: Path) -> None:
    held = [ImageFolder(tmp_path) for _ in range(16)]
    with pytest.raises(errors.ConfigInvalid, match=r"all 16 adapter folders below .* are in use"):
        ImageFolder(tmp_path)
    for folder in held:
        folder.close()


def test_a_load_that_was_given_up_leaves_nothing_whatever_it_still_does(root: Path, tmp_path: Path) -> None:
    """Its process was stopped in the middle and goes on later, when the tier has long given its bytes to others."""
    clock = ManualClock()
    with opened(tmp_path, clock=clock, load_timeout_s=30.0) as store:
        place(store, local("a0"))
        pid = ingest_of(store).pid
        os.kill(pid, signal.SIGSTOP)
        turn(store, [local("a1")])
        clock.advance(20.0)
        turn(store, [local("a1"), local("a2")])  # this one keeps the process alive
        clock.advance(11.0)
        assert isinstance(fail(store, local("a1")), errors.AdapterLoadTimeout)
        os.kill(pid, signal.SIGCONT)
        place(store, local("a2"))
        wait_for(lambda: not turn(store, []) and Path(f"/proc/{pid}").exists() is False)
        assert store.stats().on_disk == 2
        assert store.stats().disk_bytes_used == bytes_in(tmp_path / "tier" / "0")
        assert not list((tmp_path / "tier" / "0").glob("*.tmp"))


def test_a_given_up_job_has_no_file_to_write_to(root: Path, tmp_path: Path) -> None:
    tier = DiskTier(tmp_path / "tier", 1 << 20, dtype="bfloat16", base_fingerprint=TINY.fingerprint)
    assert tier.reserve(7, 60_000)
    assert (tier.folder / job_file(7)).exists()
    tier.cancel(7)
    assert not (tier.folder / job_file(7)).exists()
    tier.close()
