"""What the store counts of its loads."""

from dataclasses import replace
from pathlib import Path

import pytest

from manylora.adapter_ref import SourceName
from manylora.adapter_state import LOAD_BUCKETS_S, AdapterAction
from manylora.adapters.ingest.fakes import ManualIngest
from manylora.adapters.tiers.fakes import ManualReader
from manylora.adapters.tiers.load_stats import MAX_REMEMBERED, RELOAD_S, LoadStats
from manylora.ids import Digest
from tests.adapters.adapter_files import local, save_adapter
from tests.adapters.store_folder import CONFIG, IMAGE_BYTES, House, facts

A = Digest("a" * 64)


def test_a_load_is_counted_in_the_bucket_whose_bound_it_does_not_exceed() -> None:
    stats = LoadStats()
    for took_s in (0.0005, 0.001, 0.002, 60.0, 61.0):
        stats.note_load(SourceName.LOCAL, took_s)
    [times] = stats.load_times()
    assert (times.source, times.tier) == ("local", "disk")
    assert times.total_s == pytest.approx(121.0035)
    assert len(times.counts) == len(LOAD_BUCKETS_S) + 1
    assert (times.counts[0], times.counts[1], times.counts[-2], times.counts[-1]) == (2, 1, 1, 1)
    assert stats.loads == sum(times.counts) == 5


def test_only_what_comes_back_within_a_minute_is_reloaded() -> None:
    stats = LoadStats()
    stats.note_placed(SourceName.HUB, A, 10, 0.1, now_s=0.0)
    stats.note_eviction(A, now_s=1.0)
    stats.note_placed(SourceName.HUB, A, 10, 0.1, now_s=RELOAD_S)
    assert (stats.loaded_bytes, stats.reloaded_bytes, stats.evictions) == (20, 10, 1)
    stats.note_placed(SourceName.HUB, A, 10, 0.1, now_s=RELOAD_S)  # counted once for each time it left
    stats.note_eviction(A, now_s=100.0)
    stats.note_placed(SourceName.HUB, A, 10, 0.1, now_s=100.0 + RELOAD_S)
    assert (stats.loaded_bytes, stats.reloaded_bytes) == (40, 10)


def test_what_left_the_device_is_forgotten_by_time_and_by_number() -> None:
    stats = LoadStats()
    for number in range(MAX_REMEMBERED + 10):
        stats.note_eviction(Digest(f"{number:064}"), now_s=0.0)
    assert len(stats._left) == MAX_REMEMBERED
    stats.note_eviction(A, now_s=RELOAD_S)
    assert list(stats._left) == [A]


def test_the_store_tells_times_and_bytes_of_its_loads(tmp_path: Path) -> None:
    ingest, reader = ManualIngest(), ManualReader()
    house = House(tmp_path, ingest=ingest, reader=reader)
    save_adapter(house.root / "a")
    house.turn("a")
    house.clock.advance(0.3)
    ingest.finish(0, facts("a"))
    house.turn("a")
    for _ in range(2):
        house.clock.advance(0.02)
        reader.finish(facts("a"), 4)
        house.turn("a")
        house.turn()
        house.turn()
        assert len(house.bank) == 1
        house.store._device.remove(facts("a").digest)
        house.turn("a")
    stats = house.store.stats()
    assert (stats.loads, stats.loaded_bytes, stats.reloaded_bytes) == (1, 2 * IMAGE_BYTES, IMAGE_BYTES)
    device, disk = stats.load_times
    assert [(times.source, times.tier) for times in (disk, device)] == [("local", "disk"), ("local", "device")]
    assert disk.total_s == pytest.approx(0.3)
    assert device.total_s == pytest.approx(0.04)
    assert disk.counts[LOAD_BUCKETS_S.index(0.5)] == 1
    assert device.counts[LOAD_BUCKETS_S.index(0.025)] == 2
    assert house.store.info(local("a")).stage_ms["read"] == pytest.approx(20.0)
    house.store.close()


def test_images_that_make_room_on_disk_are_counted(tmp_path: Path) -> None:
    house = House(tmp_path, replace(CONFIG, disk_bytes=8 * IMAGE_BYTES))
    for number in range(12):
        save_adapter(house.root / f"a{number}", seed=number)
        house.store.unpin(house.placed(f"a{number}") or pytest.fail("it was not placed"))
    assert house.store.stats().disk_evictions > 0
    before = house.store.stats().disk_evictions
    house.turn()
    house.turn()
    house.store.manage(AdapterAction.EVICT, local("a11"))  # an order, not for want of room
    assert house.store.stats().disk_evictions == before
    house.store.close()
