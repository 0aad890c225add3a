"""One cache folder under several bases, several servers, and servers that come and go."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from manylora.adapter_state import AdapterState
from manylora.adapters.base_shape import BaseShape
from manylora.adapters.packing.image import read_image
from manylora.adapters.sources.local import LocalSource
from manylora.adapters.store.store import Store
from manylora.adapters.tiers.disk import DiskTier
from manylora.adapters.tiers.image_folder import ImageFolder
from manylora.config.environment import child_environment
from manylora.ids import Digest
from tests.adapters.adapter_files import TINY, local, save_adapter
from tests.adapters.server_store import bound_of, bytes_in, opened, place, turn
from tests.support.paths import ROOT

OTHER = replace(TINY, fingerprint="cd" * 32)
"""A base of the same name and shape whose weights are others."""


def digest_of(store: Store, name: str) -> Digest:
    placed = store.pin(local(name))
    assert placed is not None
    store.unpin(placed)
    return placed.digest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, name in enumerate("ab"):
        save_adapter(tmp_path / "root" / name, seed=seed)
    return tmp_path / "root"


def served(folder: Path, shape: BaseShape, disk_bytes: int = 1 << 24) -> tuple[Digest, int]:
    """Serve `a` once on a base; returns its digest, and how many loads that took."""
    with opened(folder, shape=shape, disk_bytes=disk_bytes) as store:
        place(store, local("a"))
        return digest_of(store, "a"), store.stats().loads


def test_images_of_one_base_never_serve_another(root: Path, tmp_path: Path) -> None:
    mine, loads = served(tmp_path, TINY)
    others, more_loads = served(tmp_path, OTHER)
    assert mine != others
    assert (loads, more_loads) == (1, 1)
    assert served(tmp_path, TINY) == (mine, 0)  # each finds its own again
    assert served(tmp_path, OTHER) == (others, 0)


def test_images_of_one_base_never_serve_another_that_runs_beside_it(root: Path, tmp_path: Path) -> None:
    with opened(tmp_path, shape=TINY) as first:
        place(first, local("a"))
        others, loads = served(tmp_path, OTHER)
        assert (others != digest_of(first, "a"), loads) == (True, 1)


def test_images_of_another_base_count_in_the_budget_and_go_when_room_is_needed(root: Path, tmp_path: Path) -> None:
    mine, _ = served(tmp_path, TINY)
    folder = tmp_path / "tier" / "0"
    image_bytes = bytes_in(folder)
    disk_bytes = bound_of(root / "a") + image_bytes - 1
    with opened(tmp_path, shape=OTHER, disk_bytes=disk_bytes) as store:
        assert store.stats().on_disk == 1
        assert store.stats().disk_bytes_used == image_bytes
        place(store, local("a"), local("b"))
        assert set(turn(store, [local("a"), local("b")])) == {AdapterState.ON_DEVICE}
        assert not list(folder.glob(f"{mine}*"))
        assert bytes_in(folder) == store.stats().disk_bytes_used <= disk_bytes


# ── several servers ──────────────────────────────────────────────────────────────────────────────────────────────

SERVER = """
import json, sys
from pathlib import Path
from tests.adapters.adapter_files import local
from tests.adapters.server_store import opened, place
folder, names = Path(sys.argv[1]), sys.argv[2:]
with opened(folder) as store:
    place(store, *map(local, names))
    stats = store.stats()
    digests = [store.pin(local(name)).digest for name in names]
    print(json.dumps([stats.loads, stats.disk_bytes_used, str(store._disk.folder), digests]), flush=True)
    sys.stdin.readline()
"""


class Server:
    """Another process with a store on the same folder; it has served when this returns, and runs until `end`."""

    def __init__(self, folder: Path, *names: str) -> None:
        command = [sys.executable, "-c", SERVER, str(folder), *names]
        self._process = subprocess.Popen(
            command,
            env=child_environment(),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        loads, disk_bytes, own, digests = json.loads(self._process.stdout.readline())
        self.loads, self.disk_bytes, self.folder, self.digests = loads, disk_bytes, Path(own), digests

    def end(self) -> None:
        self._process.communicate(b"\n")

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.mark.long
def test_a_second_server_has_what_the_first_one_packed(root: Path, tmp_path: Path) -> None:
    first = Server(tmp_path, "a", "b")
    second = Server(tmp_path, "a", "b")
    assert (first.loads, second.loads) == (2, 0)
    assert first.folder != second.folder
    assert first.digests == second.digests
    assert first.disk_bytes == second.disk_bytes == bytes_in(second.folder)
    images = [sorted(folder.glob("*.img")) for folder in (first.folder, second.folder)]
    assert [path.stat().st_ino for path in images[0]] == [path.stat().st_ino for path in images[1]]
    first.end()
    second.end()


@pytest.mark.long  # two more starts
def test_a_server_in_another_folder_has_what_a_killed_one_packed(root: Path, tmp_path: Path) -> None:
    """The first folder is held by a third server when the second one starts, so it gets another number."""
    first = Server(tmp_path, "a", "b")
    first.kill()
    holder = ImageFolder(tmp_path / "tier")
    assert holder.path == first.folder
    second = Server(tmp_path, "a", "b")
    assert (second.loads, second.folder != first.folder) == (0, True)
    second.end()
    holder.close()


def test_what_one_server_evicts_the_other_keeps(root: Path, tmp_path: Path) -> None:
    with opened(tmp_path, disk_bytes=bound_of(root / "a")) as first, opened(tmp_path) as second:
        place(first, local("a"))
        place(second, local("a"))
        digest = digest_of(first, "a")
        place(first, local("b"))
        assert not first._disk.path(digest).exists()
        second._bank.remove(digest)
        place(second, local("a"))
        assert second.stats().loads == 0
        assert read_image(second._disk.path(digest)).digest == digest


def test_a_damaged_image_beside_is_seen_when_it_is_read_and_packed_anew(root: Path, tmp_path: Path) -> None:
    with opened(tmp_path) as first, opened(tmp_path) as second:
        place(first, local("a"))
        digest = digest_of(first, "a")
        with first._disk.path(digest).open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last[0] ^ 1]))
        place(second, local("a"))
        assert second.stats().loads == 1
        assert read_image(second._disk.path(digest)).digest == digest


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "nothing.img", "", "é"])
def test_a_name_beside_that_leads_nowhere_is_no_image(root: Path, tmp_path: Path, name: str) -> None:
    first, second = (DiskTier(tmp_path, 1 << 20, dtype="bfloat16", base_fingerprint="ab") for _ in range(2))
    key = second.name_key(local("a"), "1")
    (first.folder / f"{key}.name").write_text(name)
    assert second.digest_of(key) is None
    assert second.used_bytes == 0
    first.close()
    second.close()


def test_what_others_have_is_taken_over_within_the_own_budget(root: Path, tmp_path: Path) -> None:
    with opened(tmp_path) as first:
        place(first, local("a"), local("b"))
        disk_bytes = first.stats().disk_bytes_used * 3 // 4
        half = DiskTier(tmp_path / "tier", disk_bytes, dtype="bfloat16", base_fingerprint=TINY.fingerprint)
        for name in "ab":
            stamp = LocalSource((root,)).locate(local(name)).stamp
            assert half.digest_of(half.name_key(local(name), stamp)) is not None
            assert bytes_in(half.folder) == half.used_bytes <= disk_bytes
        assert half.num_images == 1
        half.close()
