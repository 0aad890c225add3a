"""Killed in the middle: whatever the moment, the next start finds whole images, no leftovers, and counts every byte."""

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import AdapterState
from manylora.adapters.ingest.client import ProcessIngest
from manylora.adapters.packing.image import HEADER_BYTES, ImageDamaged, read_image
from manylora.adapters.store.store import Store
from manylora.adapters.tiers.disk import DiskTier
from manylora.clock import ManualClock
from manylora.config.environment import child_environment
from tests.adapters.adapter_files import TINY, local, save_adapter
from tests.adapters.server_store import bytes_in, opened, place, turn
from tests.conftest import long, thinned
from tests.support.paths import ROOT
from tests.support.waiting import wait_for

KILLS, MOST_KILLS = 40, 1_000
INGEST_KILLS = 12
BUDGET_BYTES = 3 << 20
ENDED = {AdapterState.FAILED, AdapterState.ON_DEVICE}

OWNER = """
import os, random, signal, sys, time
from pathlib import Path
from manylora.adapters.packing.image import lay_out, write_image
from manylora.adapters.tiers.image_folder import job_file
from manylora.adapters.jobs import Ingested, IngestJob
from manylora.adapters.tiers.disk import DiskTier
from manylora.ids import Digest
from tests.adapters.adapter_files import TINY, local

root, budget_bytes, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def bring_for_ever(draw):
    # What store and ingest process do for one load after another, each with a large image.
    disk = DiskTier(root, budget_bytes, dtype="bfloat16", base_fingerprint=TINY.fingerprint)
    table, _ = lay_out(TINY, {}, "bfloat16")
    for number in range(1_000_000):
        body = memoryview(draw.randbytes(draw.randrange(1, 500_000) // 64 * 64))
        digest, name_key = Digest(draw.randbytes(32).hex()), draw.randbytes(20).hex()
        assert disk.reserve(number, 600_000)
        file = disk.folder / job_file(number)
        facts = write_image(file, digest=digest, dtype="bfloat16", table=table, body=body, may_create=False)
        disk.settle(IngestJob(number, local("a"), "", name_key), Ingested(number, facts, 0, (), {}))

draw = random.Random(0)
for kill in range(kills):
    child = os.fork()
    if child == 0:
        bring_for_ever(random.Random(kill))
    if kill % 2:  # a load ends before each second kill, however slow the machine is
        before = set(root.glob("0/*.img"))
        while set(root.glob("0/*.img")) <= before:
            time.sleep(0.001)
    time.sleep(draw.uniform(0.002, 0.06))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print("killed", flush=True)
    if not sys.stdin.readline():
        break
"""


def assert_whole(folder: Path) -> None:
    for path in folder.glob("*.img"):
        assert path.name.startswith(read_image(path).digest)
    for path in folder.glob("*.name"):
        assert (folder / path.read_text()).exists()


@pytest.mark.long
def test_an_owner_killed_at_any_moment_leaves_whole_images(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(tmp_path), str(BUDGET_BYTES), str(MOST_KILLS)]
    here = ROOT
    folder = tmp_path / "0"
    kills = cut_short = images = 0
    with subprocess.Popen(
        command, env=child_environment(), cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        while process.stdout.readline():
            kills += 1
            cut_short += bool(list(folder.glob("*.tmp")))
            assert bytes_in(folder) <= BUDGET_BYTES
            disk = DiskTier(tmp_path, BUDGET_BYTES, dtype="bfloat16", base_fingerprint=TINY.fingerprint)
            assert disk.folder == folder
            assert not list(folder.glob("*.tmp"))
            assert disk.used_bytes == bytes_in(folder) <= BUDGET_BYTES
            assert_whole(folder)
            images = disk.num_images
            disk.close()
            if kills >= KILLS and cut_short and images > 2:
                break
            process.stdin.write(b"\n")
            process.stdin.flush()
    assert kills < MOST_KILLS, f"{cut_short} kills came within a load, {images} images are whole: badly chosen moments"


def ingest_of(store: Store) -> ProcessIngest:
    ingest = store._ingest
    assert isinstance(ingest, ProcessIngest)
    return ingest


def is_placed_in_time(store: Store, clock: ManualClock, ref: AdapterRef) -> bool:
    """Return whether an adapter is on the device; a load that met the killed process is tried again later."""
    clock.advance(0.1)
    return turn(store, [ref]) == [AdapterState.ON_DEVICE]


@pytest.mark.slow
@pytest.mark.long
def test_an_ingest_process_killed_at_any_moment_leaves_whole_images_and_every_byte(tmp_path: Path) -> None:
    draw = random.Random(0)
    clock = ManualClock()
    save_adapter(tmp_path / "root" / "probe", seed=999)
    with opened(tmp_path, clock=clock, disk_bytes=BUDGET_BYTES) as store:
        folder = store._disk.folder
        failures = 0
        for kill in range(INGEST_KILLS):
            (tmp_path / "root" / "probe" / "adapter_config.json").touch()
            wait_for(partial(is_placed_in_time, store, clock, local("probe")))  # the process is up
            refs = [local(f"a{kill}-{number}") for number in range(12)]
            for number, ref in enumerate(refs):
                save_adapter(tmp_path / "root" / ref.id, rank=64, seed=100 * kill + number)
            turn(store, refs)
            if kill % 2:  # a load ends before each second kill, however slow the machine is
                wait_for(lambda refs=refs: bool(set(turn(store, refs)) & ENDED))  # type: ignore[misc]  # of a loop's variable
            else:
                time.sleep(draw.uniform(0.0, 0.04))  # the moment is what is tested
            os.kill(ingest_of(store).pid, signal.SIGKILL)
            wait_for(lambda refs=refs: set(turn(store, refs)) <= ENDED)  # type: ignore[misc]  # of a loop's variable
            failures += sum(store.failure(ref) is not None for ref in refs)
            assert store.stats().disk_bytes_used == bytes_in(folder) <= BUDGET_BYTES
            assert not list(folder.glob("*.tmp"))
            assert_whole(folder)
            clock.advance(20.0)
            loads = store.stats().loads - (kill + 1)  # but for those of the probe
            if min(failures, loads) > 0 and kill >= 3:
                break  # both have been met
        assert min(failures, loads) > 0, "the moments are badly chosen"
        place(store, *refs)  # and what failed can be had


@pytest.mark.long
def test_an_owner_killed_with_its_ingest_process_at_work_leaves_the_folder_to_the_next(tmp_path: Path) -> None:
    for number in range(40):
        save_adapter(tmp_path / "root" / f"a{number}", rank=64, seed=number)
    code = (
        "import os, sys; from pathlib import Path; from tests.adapters.adapter_files import local; "
        "from tests.adapters.server_store import opened, turn, wait_for\n"
        "with opened(Path(sys.argv[1])) as store:\n"
        "    refs = [local(f'a{number}') for number in range(40)]\n"
        "    wait_for(lambda: not turn(store, refs) or store.stats().loads >= 3)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    here = ROOT
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=child_environment(), cwd=here, check=False)
    with opened(tmp_path) as store:
        assert store._disk.folder == tmp_path / "tier" / "0"
        assert store.stats().on_disk >= 3
        assert store.stats().disk_bytes_used == bytes_in(store._disk.folder)
        assert_whole(store._disk.folder)
        place(store, *(local(f"a{number}") for number in range(40)))
        wait_for(lambda: not list(store._disk.folder.glob("*.tmp")))
        assert store.stats().loads <= 37
        assert store.stats().disk_bytes_used == bytes_in(store._disk.folder)


DAMAGES = ("header", "digest", "table", "body", "truncated", "empty", "longer")

DAMAGED = [
    *thinned([(damage, bool(number % 2)) for number, damage in enumerate(DAMAGES)], 2),
    *long(*((damage, not number % 2) for number, damage in enumerate(DAMAGES))),
]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("damage", "is_restarted"), DAMAGED)
def test_a_damaged_image_is_removed_and_packed_again(tmp_path: Path, damage: str, is_restarted: bool) -> None:
    save_adapter(tmp_path / "root" / "a")
    with opened(tmp_path) as store:
        place(store, local("a"))
        placed = store.pin(local("a"))
        assert placed is not None
        expected = store.weights[placed.digest].image.clone()
        store.unpin(placed)
        path = store._disk.path(placed.digest)
        size = path.stat().st_size
        if not is_restarted:
            store._device.remove(placed.digest)
            harm(path, damage)
            place(store, local("a"))
            assert store.stats().loads == 2
            assert bool((store.weights[placed.digest].image == expected).all())
    if is_restarted:
        harm(path, damage)
        with opened(tmp_path) as store:
            place(store, local("a"))
            assert store.stats().loads == 1
            placed = store.pin(local("a"))
            assert placed is not None
            assert bool((store.weights[placed.digest].image == expected).all())
    assert path.stat().st_size == size
    assert read_image(path).digest == placed.digest


def harm(path: Path, damage: str) -> None:
    places = {"header": 0, "digest": 40, "table": HEADER_BYTES + 100, "body": path.stat().st_size - 1}
    if damage in places:
        flip(path, places[damage])
    else:
        size = {"truncated": path.stat().st_size - 1, "empty": 0, "longer": path.stat().st_size + 1}[damage]
        os.truncate(path, size)
    with pytest.raises(ImageDamaged):
        read_image(path)
