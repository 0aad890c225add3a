"""Deletion and verification: what is left of an adapter's bytes, and who still gets it."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from manylora import errors
from manylora.adapter_ref import merged_ref
from manylora.adapter_state import AdapterAction, AdapterHandle, AdapterState, is_over
from manylora.adapters.ingest.fakes import ManualIngest
from manylora.adapters.jobs import IngestJob
from manylora.adapters.store.versions import RELOCATE_S
from manylora.adapters.tiers.fakes import ManualReader
from manylora.adapters.tiers.image_folder import job_file
from manylora.adapters.tiers.reader_threads import ThreadedReader
from manylora.adapters.tiers.reading import read_or_none
from manylora.merging import MergeRecipe, MergeStrategy
from tests.adapters.adapter_files import local, save_adapter
from tests.adapters.store_folder import CONFIG, IMAGE_BYTES, House, facts
from tests.support.waiting import wait_for

MERGE = merged_ref([local("a"), local("b")], MergeRecipe((0.5, 0.5), MergeStrategy.LINEAR))


def delete(house: House, name: str = "a") -> None:
    assert house.store.manage(AdapterAction.DELETE, local(name)).is_deleted


def place(house: House, name: str = "a") -> AdapterHandle:
    placed = house.placed(name)
    assert placed is not None
    return placed


def image_files(house: House) -> list[Path]:
    return [path for path in house.disk.folder.iterdir() if path.name != "lock"]


class Watched:
    """Bytes of an image, on disk by a link that no deletion removes, and what they were."""

    def __init__(self, house: House, placed: AdapterHandle) -> None:
        self.link = house.root.parent / f"link-{placed.digest}"
        os.link(house.disk.path(placed.digest), self.link)
        self.memory = house.image(placed).view(torch.uint8).numpy()
        assert self.memory.any()
        assert any(self.link.read_bytes())

    def assert_kept(self) -> None:
        assert self.memory.any()
        assert any(self.link.read_bytes())

    def assert_erased(self) -> None:
        assert not self.memory.any()
        size = self.link.stat().st_size
        assert size >= IMAGE_BYTES
        assert self.link.read_bytes() == bytes(size)


def test_no_byte_of_a_deleted_adapter_is_left_when_its_last_request_ends(house: House) -> None:
    save_adapter(house.root / "a")
    first, second = place(house), place(house)
    watched = Watched(house, first)
    before = watched.memory.copy()
    delete(house)
    info = house.store.info(local("a"))
    assert (info.is_deleted, info.pins, info.state) == (True, 2, AdapterState.FAILED)
    assert not any(watched.link.read_bytes())  # what runs needs no file
    house.store.unpin(first)
    np.testing.assert_array_equal(watched.memory, before)
    house.store.unpin(second)
    watched.assert_erased()
    house.turn()
    assert image_files(house) == []
    stats = house.store.stats()
    assert (stats.bank_bytes_used, stats.disk_bytes_used, stats.on_device, stats.on_disk) == (0, 0, 0, 0)
    with pytest.raises(errors.AdapterNotFound):
        house.store.info(local("a"))
    assert house.store.infos() == ()
    assert (house.root / "a" / "adapter_model.safetensors").exists()


def test_a_deleted_name_is_not_found_until_its_source_has_another_version(house: House) -> None:
    folder = save_adapter(house.root / "a", seed=1)
    house.store.unpin(place(house))
    delete(house)
    for _ in range(3):
        failure = house.error("a")
        assert isinstance(failure, errors.AdapterNotFound)
        assert failure.message == "Adapter 'a' was not found in source 'local'"
        house.clock.advance(60.0)
        house.turn()
    with pytest.raises(errors.AdapterNotFound):
        house.store.manage(AdapterAction.PIN, local("a"))
    save_adapter(folder, seed=2)
    assert house.image(place(house)).isfinite().all()
    assert not house.store.info(local("a")).is_deleted


def test_who_waits_for_a_deleted_adapter_is_told_at_once(tmp_path: Path) -> None:
    house = House(tmp_path, ingest=ManualIngest())
    save_adapter(house.root / "a")
    house.turn("a")
    delete(house)
    assert isinstance(house.store.failure(local("a")), errors.AdapterNotFound)
    house.store.close()


def test_content_stays_until_its_last_name_is_deleted(house: House) -> None:
    for name in ("a", "b"):
        save_adapter(house.root / name, seed=1)
        house.store.unpin(place(house, name))
    held = place(house, "b")
    watched = Watched(house, held)
    delete(house, "a")
    watched.assert_kept()
    assert isinstance(house.error("a"), errors.AdapterNotFound)
    house.store.unpin(place(house, "b"))
    delete(house, "b")
    assert house.store.info(local("b")).pins == 1
    house.store.unpin(held)
    watched.assert_erased()


def test_names_that_are_only_on_disk_keep_shared_content(tmp_path: Path) -> None:
    house = House(tmp_path)
    for name in ("a", "b"):
        save_adapter(house.root / name, seed=1)
        house.store.unpin(place(house, name))
    house.store.close()
    again = House(tmp_path)
    again.store.unpin(place(again, "a"))
    delete(again, "a")
    again.turn()
    assert again.store.stats().on_disk == 1
    again.store.unpin(place(again, "b"))
    assert again.store.stats().loads == 0
    again.store.close()


def test_older_versions_go_with_the_name(tmp_path: Path) -> None:
    house = House(tmp_path)
    for seed in (1, 2, 3):
        save_adapter(house.root / "a", seed=seed)
        house.store.unpin(place(house))
    house.store.close()
    again = House(tmp_path)
    for path in (again.root / "a").iterdir():
        path.unlink()
    delete(again)  # its source no longer has it, and what is left here goes all the same
    again.turn()
    assert image_files(again) == []
    again.store.close()


def test_a_merge_made_of_a_deleted_member_goes_too(house: House) -> None:
    for seed, name in enumerate("ab"):
        save_adapter(house.root / name, seed=seed)
    for _ in range(6):
        house.store.want(MERGE)
        house.store.poll()
    placed = house.store.pin(MERGE)
    assert placed is not None
    watched = Watched(house, placed)
    delete(house, "b")
    assert isinstance(house.store.failure(MERGE), errors.AdapterNotFound)
    house.store.unpin(placed)
    watched.assert_erased()
    house.turn("a")
    assert house.store.stats().on_disk == 0
    assert place(house, "a") is not None


def test_a_merge_of_an_earlier_start_goes_with_any_name(tmp_path: Path) -> None:
    house = House(tmp_path)
    for seed, name in enumerate("ab"):
        save_adapter(house.root / name, seed=seed)
    for _ in range(6):
        house.store.want(MERGE)
        house.store.poll()
    assert house.store.stats().on_disk == 1
    house.store.close()
    again = House(tmp_path)
    delete(again, "b")
    again.turn()
    assert image_files(again) == []
    again.store.close()


@pytest.mark.parametrize("is_good", [True, False])
def test_a_load_under_way_of_a_deleted_name_leaves_nothing(tmp_path: Path, is_good: bool) -> None:
    ingest = ManualIngest()
    house = House(tmp_path, ingest=ingest)
    save_adapter(house.root / "a")
    house.turn("a")
    [(number, job)] = ingest.jobs.items()
    assert isinstance(job, IngestJob)
    written = house.disk.folder / f"{number}.tmp"
    written.write_bytes(b"weights" * 100)
    (tmp_path / "link").hardlink_to(written)
    delete(house)
    if is_good:
        ingest.finish(number, facts("a"))
    else:
        ingest.fail(number, errors.AdapterCorrupt("it is cut short"))
    house.turn()
    house.turn()
    assert (tmp_path / "link").read_bytes() == bytes(700)
    assert image_files(house) == []
    assert house.store.stats().disk_bytes_used == 0
    house.store.close()


def test_a_read_under_way_of_a_deleted_name_leaves_nothing(tmp_path: Path) -> None:
    reader = HeldReader()
    house = House(tmp_path, reader=reader)
    save_adapter(house.root / "a")
    house.turn("a")
    house.turn("a")
    assert reader.reads
    delete(house)
    reader.let_go()
    house.turn()
    house.turn()
    assert image_files(house) == []
    stats = house.store.stats()
    assert (stats.bank_bytes_used, stats.disk_bytes_used) == (0, 0)
    house.store.close()


def test_a_damaged_image_of_a_deleted_name_is_overwritten_too(tmp_path: Path) -> None:
    reader = HeldReader()
    house = House(tmp_path, reader=reader)
    save_adapter(house.root / "a")
    house.turn("a")
    house.turn("a")
    [path] = reader.reads.values()
    with path.open("r+b") as file:
        file.write(b"damaged")
    (tmp_path / "link").hardlink_to(path)
    delete(house)
    reader.let_go()
    house.turn()
    written = (tmp_path / "link").read_bytes()
    assert written == bytes(len(written))
    house.turn()
    assert image_files(house) == []
    assert house.store.stats().bank_bytes_used == 0
    house.store.close()


def test_what_a_load_that_is_given_up_has_written_of_a_deleted_name_is_overwritten(tmp_path: Path) -> None:
    ingest = ManualIngest()
    house = House(tmp_path, ingest=ingest)
    save_adapter(house.root / "a")
    house.turn("a")
    [number] = ingest.jobs
    written, seen = house.disk.folder / job_file(number), tmp_path / "seen"
    written.write_bytes(b"weights")
    seen.hardlink_to(written)
    delete(house)
    house.clock.advance(CONFIG.load_timeout_s)
    turns(house)
    assert seen.read_bytes() == bytes(7)
    assert house.store.stats().disk_bytes_used == 0
    house.store.close()


class HeldReader(ManualReader):
    """Reads for real, when it is let go."""

    def let_go(self) -> None:
        for digest, path in self.reads.items():
            self._ended.append(read_or_none(digest, path))
        self.reads.clear()


def test_files_are_erased_beside_the_owner_s_thread(tmp_path: Path) -> None:
    house = House(tmp_path, reader=ThreadedReader())
    save_adapter(house.root / "a")
    house.store.manage(AdapterAction.PRELOAD, local("a"))

    def is_at_rest() -> bool:
        house.turn()
        return not house.store.is_busy

    wait_for(is_at_rest)
    placed = place(house)
    watched = Watched(house, placed)
    delete(house)
    house.store.unpin(placed)
    wait_for(is_at_rest)
    watched.assert_erased()
    assert image_files(house) == []
    house.store.close()


def test_what_a_crash_left_half_erased_is_erased_at_the_next_start(tmp_path: Path) -> None:
    house = House(tmp_path)
    left = house.disk.folder / "7.gone"
    left.write_bytes(b"weights" * 10)
    (tmp_path / "link").hardlink_to(left)
    house.store.close()
    again = House(tmp_path)
    assert not left.exists()
    assert (tmp_path / "link").read_bytes() == bytes(70)
    again.store.close()


def test_a_pinned_adapter_is_deleted_like_any_other(house: House) -> None:
    save_adapter(house.root / "a")
    house.store.manage(AdapterAction.PIN, local("a"))
    for _ in range(5):
        house.turn()
    delete(house)
    house.turn()
    stats = house.store.stats()
    assert (stats.pinned, stats.bank_bytes_used, stats.disk_bytes_used) == (0, 0, 0)


# ── verification ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def verified(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    save_adapter(house.root / "a")
    house.store.unpin(place(house))
    yield house
    house.store.close()


def damage(house: House) -> None:
    path = house.disk.path(next(iter(house.store._device._facts)))
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)


def turns(house: House, *names: str) -> None:
    for _ in range(6):
        house.turn(*names)


def test_a_whole_image_is_verified(verified: House) -> None:
    assert verified.store.info(local("a")).is_verified is None
    assert verified.store.manage(AdapterAction.VERIFY, local("a")).is_verified is None
    assert verified.store.is_busy
    turns(verified)
    assert verified.store.info(local("a")).is_verified is True
    assert verified.store.stats().disk_bytes_used > 0
    assert not verified.store.is_busy


def test_a_damaged_image_is_removed_and_packed_again_at_the_next_wish(verified: House) -> None:
    damage(verified)
    verified.store.manage(AdapterAction.VERIFY, local("a"))
    turns(verified)
    info = verified.store.info(local("a"))
    assert (info.is_verified, info.state) == (False, AdapterState.ABSENT)
    assert verified.store.stats().bank_bytes_used == 0
    assert place(verified) is not None
    assert verified.store.stats().loads == 2


def test_what_a_request_holds_stays_on_the_device_though_its_image_is_damaged(verified: House) -> None:
    placed = place(verified)
    damage(verified)
    verified.store.manage(AdapterAction.VERIFY, local("a"))
    turns(verified)
    info = verified.store.info(local("a"))
    assert (info.is_verified, info.state, info.num_bytes) == (False, AdapterState.ON_DEVICE, IMAGE_BYTES)
    verified.store.unpin(placed)


def test_a_pin_holds_what_is_packed_after_a_damage(verified: House) -> None:
    verified.store.manage(AdapterAction.PIN, local("a"))
    turns(verified)
    damage(verified)
    verified.store.manage(AdapterAction.VERIFY, local("a"))
    turns(verified)
    turns(verified)
    info = verified.store.info(local("a"))
    assert (info.is_pinned, info.state) == (True, AdapterState.ON_DEVICE)
    assert verified.store.stats().pinned == 1
    assert verified.store.stats().loads == 2


def test_what_is_not_on_disk_cannot_be_verified(house: House) -> None:
    save_adapter(house.root / "a")
    with pytest.raises(errors.AdapterNotFound, match="no packed image"):
        house.store.manage(AdapterAction.VERIFY, local("a"))


def test_a_verification_ends_when_its_image_is_evicted_before_its_turn(tmp_path: Path) -> None:
    reader = HeldReader()
    house = House(tmp_path, reader=reader)
    for seed, name in enumerate("ab"):
        save_adapter(house.root / name, seed=seed)
    for _ in range(4):
        house.turn("a", "b")
        reader.let_go()
    for name in "ab":
        house.store.manage(AdapterAction.VERIFY, local(name))
    house.turn()
    house.store.manage(AdapterAction.EVICT, local("b"))
    reader.let_go()
    turns(house)
    assert house.store.info(local("a")).is_verified is True
    assert is_over(AdapterAction.VERIFY, house.store.info(local("b")))
    assert not house.store.is_busy
    house.store.close()


def test_an_image_is_not_evicted_while_it_is_verified(tmp_path: Path) -> None:
    reader = HeldReader()
    house = House(tmp_path, replace(CONFIG, disk_bytes=1 << 16), reader=reader)
    save_adapter(house.root / "a")
    house.turn("a")
    house.turn("a")
    reader.let_go()
    house.turn()
    house.store.manage(AdapterAction.VERIFY, local("a"))
    house.turn()
    with pytest.raises(errors.AdapterInUse, match="it is being read"):
        house.store.manage(AdapterAction.EVICT, local("a"))
    delete(house)  # waits for the read
    reader.let_go()
    house.clock.advance(RELOCATE_S)
    turns(house)
    assert image_files(house) == []
    house.store.close()
