"""The store from a name to a place on the device, with real files and inline loaders, and with loads held back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from manylora import errors
from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterState
from manylora.adapters.ingest.fakes import ManualIngest
from manylora.adapters.packing.image import largest_file_bytes
from manylora.adapters.store.ascent import PATIENCE_S
from manylora.adapters.store.loads import INGEST_FACTOR
from manylora.adapters.store.tracked import MAX_TRACKED
from manylora.adapters.store.versions import RELOCATE_S
from manylora.adapters.tiers.image_folder import MAX_NAME_BYTES
from manylora.config.groups.adapters import AdaptersConfig
from tests.adapters.adapter_files import (
    TINY,
    config_bytes,
    local,
    lora_tensors,
    packed,
    safetensors_bytes,
    save_adapter,
)
from tests.adapters.store_folder import CONFIG, IMAGE_BYTES, House, facts


def file_bytes(folder: Path) -> int:
    return (folder / "adapter_model.safetensors").stat().st_size


def test_an_adapter_goes_through_the_states_to_the_device(house: House) -> None:
    save_adapter(house.root / "a", seed=3)
    states: list[AdapterState] = []
    while states[-1:] != [AdapterState.ON_DEVICE]:
        states.append(house.store.want(local("a")))
        assert house.store.pin(local("a")) is None or states[-1] is AdapterState.ON_DEVICE
        house.store.poll()
    expected = [AdapterState.ABSENT, AdapterState.FETCHING, AdapterState.ON_DISK]
    if house.below is AdapterState.IN_HOST:
        expected.append(AdapterState.IN_HOST)
    assert states == [*expected, AdapterState.ON_DEVICE]


def test_a_placed_adapter_has_the_packed_weights(house: House) -> None:
    folder = save_adapter(house.root / "team" / "a", seed=3)
    placed = house.placed("team/a")
    assert placed is not None
    expected = packed(config_bytes(), (folder / "adapter_model.safetensors").read_bytes(), dtype="bfloat16")
    assert placed.digest == expected.digest
    weights = house.store.weights[placed.digest]
    assert weights.image.dtype is torch.bfloat16
    assert weights.image.view(torch.uint8).numpy().tobytes() == bytes(expected.body)
    assert weights.image.data_ptr() % 64 == 0
    np.testing.assert_array_equal(weights.table, expected.table)
    assert placed.num_bytes == IMAGE_BYTES


def test_requests_for_one_cold_adapter_share_one_load(tmp_path: Path) -> None:
    ingest = ManualIngest()
    house = House(tmp_path, ingest=ingest)
    save_adapter(house.root / "a")
    for _ in range(5):
        house.turn(*["a"] * 20)
    assert ingest.num_submitted == 1
    house.store.close()


def test_a_stuck_load_delays_no_other(tmp_path: Path) -> None:
    ingest = ManualIngest()
    house = House(tmp_path, ingest=ingest)
    names = ["stuck", "b", "c"]
    for name in names:
        save_adapter(house.root / name)
    house.turn(*names)
    assert [job.ref.id for job in ingest.jobs.values()] == names
    ingest.finish(1, facts("b"))
    ingest.finish(2, facts("c"))
    house.turn(*names)
    assert house.store.want(local("b")) is AdapterState.ON_DISK
    assert house.store.want(local("stuck")) is AdapterState.FETCHING
    house.store.close()


def test_loads_at_once_are_bounded_and_first_come_first_served(tmp_path: Path) -> None:
    ingest = ManualIngest()
    house = House(tmp_path, ingest=ingest)
    names = [f"a{number}" for number in range(6)]
    for name in names:
        save_adapter(house.root / name)
    house.turn(*names)
    assert [job.ref.id for job in ingest.jobs.values()] == names[:4]
    ingest.fail(0, errors.AdapterCorrupt("x"))
    house.turn(*reversed(names))
    assert [job.ref.id for job in ingest.jobs.values()] == names[1:5]
    house.store.close()


def test_a_wish_that_is_not_repeated_is_dropped(tmp_path: Path) -> None:
    ingest = ManualIngest()
    house = House(tmp_path, ingest=ingest)
    names = [f"a{number}" for number in range(5)]
    for name in names:
        save_adapter(house.root / name)
    house.turn(*names)
    house.turn()
    ingest.fail(0, errors.AdapterCorrupt("x"))
    house.turn()
    assert ingest.num_submitted == 4  # the fifth had gone before there was room for it
    ingest.finish(1, facts("a1"))
    house.turn()
    house.turn()
    assert house.disk.num_images == 1  # what was under way went on, as far as the disk
    assert len(house.bank) == 0
    house.store.close()


def test_an_unknown_adapter_is_not_found_until_it_is_there(house: House) -> None:
    assert isinstance(house.error("a"), errors.AdapterNotFound)
    house.turn()
    house.turn()
    save_adapter(house.root / "a")
    assert house.placed("a") is not None


def test_a_failure_stands_until_its_retry_time_or_new_content(house: House) -> None:
    folder = save_adapter(house.root / "a", use_qalora=True)
    assert isinstance(house.error("a"), errors.AdapterUnsupported)
    loads = house.store.stats().failures
    house.clock.advance(9.0)
    assert isinstance(house.error("a"), errors.AdapterUnsupported)
    assert house.store.stats().failures == loads
    house.clock.advance(2.0)
    assert isinstance(house.error("a"), errors.AdapterUnsupported)
    assert house.store.stats().failures == loads + 1
    save_adapter(folder)
    house.turn()
    house.turn()
    assert house.placed("a") is not None


def test_new_pins_get_new_content_and_old_pins_keep_theirs(house: House) -> None:
    save_adapter(house.root / "a", seed=1)
    old = house.placed("a")
    assert old is not None
    before = house.image(old).clone()
    save_adapter(house.root / "a", seed=2)
    new = house.placed("a")
    assert new is not None
    assert new.digest != old.digest
    assert torch.equal(house.image(old), before)
    assert not torch.equal(house.image(new), before)
    house.store.unpin(old)
    house.store.unpin(new)
    save_adapter(house.root / "a", seed=1)
    back = house.placed("a")
    assert back is not None
    assert back.digest == old.digest


def test_a_load_of_replaced_content_does_not_become_the_name(tmp_path: Path) -> None:
    ingest = ManualIngest()
    house = House(tmp_path, ingest=ingest)
    save_adapter(house.root / "a", seed=1)
    house.turn("a")
    save_adapter(house.root / "a", seed=2)
    house.clock.advance(RELOCATE_S)
    house.turn("a")
    ingest.finish(0, facts("old"))
    house.turn("a")
    assert house.store.state(local("a")) is AdapterState.FETCHING
    ingest.finish(1, facts("new"))
    house.store.poll()
    assert house.store._tracked.track(local("a")).digest == facts("new").digest
    house.store.close()


def test_names_with_the_same_content_share_one_place(house: House) -> None:
    for name in ("a", "b"):
        save_adapter(house.root / name, seed=1)
    first, second = house.placed("a"), house.placed("b")
    assert first is not None
    assert second is not None
    assert house.store.weights[first.digest] is house.store.weights[second.digest]
    assert house.store.stats().bank_bytes_used == IMAGE_BYTES


def test_a_deleted_adapter_is_not_found_and_its_pins_stay(house: House) -> None:
    folder = save_adapter(house.root / "a")
    placed = house.placed("a")
    for path in folder.iterdir():
        path.unlink()
    assert isinstance(house.error("a"), errors.AdapterNotFound)
    assert placed is not None
    assert bool(house.image(placed).isfinite().all())
    house.store.unpin(placed)


def test_a_full_bank_is_back_pressure_and_never_an_error(house: House) -> None:
    names = [f"a{number}" for number in range(4)]
    for number, name in enumerate(names):
        save_adapter(house.root / name, seed=number)
    pins = [house.placed(name) for name in names[:3]]
    assert None not in pins
    assert house.placed("a3", turns=20) is None
    assert house.store.failure(local("a3")) is None
    assert pins[1] is not None
    house.store.unpin(pins[1])
    assert house.placed("a3") is not None
    assert house.store.stats().evictions == 1
    assert house.store.state(local("a1")) is house.below


def test_a_wait_for_room_is_no_failure_however_long(house: House) -> None:
    for number in range(4):
        save_adapter(house.root / f"a{number}", seed=number)
        house.placed(f"a{number}")
    house.clock.advance(1000.0)
    house.turn("a3")
    assert house.store.failure(local("a3")) is None


def test_a_wait_for_a_turn_to_load_ends_as_lack_of_capacity(tmp_path: Path) -> None:
    house = House(tmp_path, replace(CONFIG, parallel_loads=1), ManualIngest())
    for name in ("slow", "behind"):
        save_adapter(house.root / name)
    house.turn("slow", "behind")
    house.clock.advance(31.0)
    house.turn("slow", "behind")
    failure = house.store.failure(local("behind"))
    assert isinstance(failure, errors.AdapterCapacity)
    assert failure.is_retryable
    assert isinstance(house.store.failure(local("slow")), errors.AdapterLoadTimeout)
    house.store.close()


def test_a_load_that_takes_too_long_is_given_up_and_its_slot_is_free(tmp_path: Path) -> None:
    ingest = ManualIngest()
    house = House(tmp_path, replace(CONFIG, parallel_loads=1), ingest)
    for name in ("stuck", "left", "good"):
        save_adapter(house.root / name)
    house.turn("stuck")
    house.clock.advance(31.0)
    house.turn("stuck")
    failure = house.store.failure(local("stuck"))
    assert isinstance(failure, errors.AdapterLoadTimeout)
    assert failure.message == "Adapter 'stuck' was not ready within 30 s"
    house.turn("left")
    assert [job.ref.id for job in ingest.jobs.values()] == ["left"]
    house.clock.advance(31.0)
    house.turn("good")  # nobody waits for the other any more, and its load is given up all the same
    house.turn("good")
    assert [job.ref.id for job in ingest.jobs.values()] == ["good"]
    bound_bytes = largest_file_bytes(file_bytes(house.root / "good"), TINY, "bfloat16")
    assert house.disk.used_bytes == bound_bytes + MAX_NAME_BYTES
    house.store.close()


def test_a_slow_load_goes_on_without_its_waiters(tmp_path: Path) -> None:
    ingest = ManualIngest()
    house = House(tmp_path, ingest=ingest)
    save_adapter(house.root / "a")
    house.turn("a")
    house.turn()
    ingest.finish(0, facts("a"))
    house.turn()
    assert house.store.want(local("a")) is AdapterState.ON_DISK
    house.store.close()


def test_a_new_wish_waits_anew_however_long_ago_the_last_one_was(tmp_path: Path) -> None:
    """An idle engine polls nothing, so a wish whose request has gone must not be left to age."""
    ingest = ManualIngest()
    house = House(tmp_path, replace(CONFIG, parallel_loads=1), ingest)
    for name in ("first", "second"):
        save_adapter(house.root / name)
    house.turn("first", "second")
    house.store.unwant(local("second"))  # it waited for its turn to load
    house.store.unwant(local("first"))
    ingest.fail(0, errors.AdapterCorrupt("x"))
    house.clock.advance(300.0)
    house.turn("second")
    house.turn("second")
    assert house.store.failure(local("second")) is None
    house.store.close()


def test_ingest_stays_within_its_memory(tmp_path: Path) -> None:
    ingest = ManualIngest()
    for name in ("a", "b", "c"):
        save_adapter(tmp_path / "root" / name)
    size = file_bytes(tmp_path / "root" / "a")
    house = House(tmp_path, replace(CONFIG, ingest_bytes=int(2.5 * INGEST_FACTOR * size)), ingest)
    house.turn("a", "b", "c")
    assert [job.ref.id for job in ingest.jobs.values()] == ["a", "b"]
    ingest.fail(0, errors.AdapterCorrupt("x"))
    house.turn("a", "b", "c")
    assert [job.ref.id for job in ingest.jobs.values()] == ["b", "c"]
    house.store.close()
    tight = House(tmp_path, replace(CONFIG, ingest_bytes=size), ManualIngest())
    tight.turn("a")
    assert isinstance(tight.store.failure(local("a")), errors.AdapterTooLarge)
    tight.store.close()


def test_what_a_poll_began_is_told_with_its_bytes(house: House) -> None:
    save_adapter(house.root / "a")
    told: list[tuple[AdapterRef, int]] = []
    for _ in range(6):
        house.turn("a")
        told += house.store.begun()
    assert told == [(local("a"), file_bytes(house.root / "a")), (local("a"), IMAGE_BYTES)]


def test_an_adapter_larger_than_the_bank_is_too_large(tmp_path: Path) -> None:
    house = House(tmp_path, AdaptersConfig(bank_bytes=IMAGE_BYTES - 1))
    save_adapter(house.root / "a")
    failure = house.error("a")
    assert isinstance(failure, errors.AdapterTooLarge)
    assert failure.message == f"Adapter 'a' needs {IMAGE_BYTES} bytes; the limit is {IMAGE_BYTES - 1}"
    house.store.close()


def test_an_adapter_over_the_limits_is_not_even_read(tmp_path: Path) -> None:
    for config in (AdaptersConfig(max_bytes=100, bank_bytes=1 << 20), AdaptersConfig(disk_bytes=9, bank_bytes=1 << 20)):
        ingest = ManualIngest()
        house = House(tmp_path, config, ingest)
        save_adapter(house.root / "a")
        assert isinstance(house.error("a"), errors.AdapterTooLarge)
        assert ingest.num_submitted == 0
        house.store.close()


@pytest.mark.parametrize("loads", [100, pytest.param(1_000, marks=pytest.mark.long)])
def test_many_failing_loads_leave_every_byte(house: House, monkeypatch: pytest.MonkeyPatch, loads: int) -> None:
    # Nothing changes while an adapter is read, so that no read waits for the file system's next tick.
    monkeypatch.setattr("manylora.adapters.sources.local.TICK_S", 0.0)
    save_adapter(house.root / "good")
    for number in range(loads):
        (house.root / "bad").mkdir(exist_ok=True)
        weights = b"not an adapter" if number % 2 else safetensors_bytes(lora_tensors(rank=8))
        (house.root / "bad" / "adapter_model.safetensors").write_bytes(weights)
        (house.root / "bad" / "adapter_config.json").write_bytes(config_bytes())
        assert isinstance(house.error("bad"), errors.AdapterCorrupt)
        house.clock.advance(20.0)
    stats = house.store.stats()
    assert (stats.bank_bytes_used, stats.disk_bytes_used, stats.failures) == (0, 0, loads)
    assert [path.name for path in house.disk.folder.iterdir()] == ["lock"]
    assert house.placed("good") is not None


def test_an_image_damaged_on_disk_is_packed_again(house: House) -> None:
    save_adapter(house.root / "a")
    placed = house.placed("a")
    assert placed is not None
    before = house.image(placed).clone()
    house.store.unpin(placed)
    house.store._device.remove(placed.digest)
    path = house.disk.path(placed.digest)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    again = house.placed("a", turns=10)
    assert again is not None
    assert torch.equal(house.image(again), before)
    assert house.store.stats().loads == 2


def test_an_adapter_in_memory_needs_no_file(house: House) -> None:
    save_adapter(house.root / "a")
    placed = house.placed("a")
    assert placed is not None
    house.store.unpin(placed)
    house.disk.path(placed.digest).unlink()
    assert house.placed("a", turns=1) == placed


def test_after_a_restart_an_adapter_is_on_disk_without_being_packed_again(tmp_path: Path) -> None:
    house = House(tmp_path)
    save_adapter(house.root / "a")
    assert house.placed("a") is not None
    house.store.close()
    again = House(tmp_path)
    assert again.store.want(local("a")) is AdapterState.ON_DISK
    assert again.placed("a") is not None
    assert again.store.stats().loads == 0
    again.store.close()


def test_what_others_want_now_is_not_evicted_at_once(house: House) -> None:
    for number in range(4):
        save_adapter(house.root / f"a{number}", seed=number)
    for number in range(3):
        placed = house.placed(f"a{number}")
        assert placed is not None
        house.store.unpin(placed)
    everyone = [f"a{number}" for number in range(4)]
    for _ in range(5):
        house.turn(*everyone)
    assert house.store.stats().evictions == 0
    house.clock.advance(PATIENCE_S)
    for _ in range(3):
        house.turn(*everyone)
    assert house.store.state(local("a3")) is AdapterState.ON_DEVICE


def test_a_source_that_is_not_there_is_refused_by_name(house: House) -> None:
    ref = AdapterRef(SourceName.HUB, "org/name")
    assert house.store.want(ref) is AdapterState.FAILED
    failure = house.store.failure(ref)
    assert isinstance(failure, errors.AdapterReferenceInvalid)
    assert "Given: hub" in failure.message


def test_unknown_names_leave_bounded_state(house: House) -> None:
    save_adapter(house.root / "a")
    placed = house.placed("a")
    assert placed is not None
    for number in range(MAX_TRACKED + 500):
        house.store.want(local(f"unknown-{number}"))
        if number % 100 == 0:
            house.turn("a")
    house.turn()
    house.turn("unknown")
    assert len(house.store._tracked) <= MAX_TRACKED
    again = house.placed("a")
    assert again == placed


def test_a_failure_is_seen_even_if_it_is_not_remembered_at_all(tmp_path: Path) -> None:
    house = House(tmp_path, replace(CONFIG, negative_cache_s=0.0))
    save_adapter(house.root / "broken")
    (house.root / "broken" / "adapter_config.json").write_text("{}")
    for _ in range(5):
        house.store.poll()
        house.store.want(local("broken"))
        if house.store.failure(local("broken")) is not None:
            return
    raise AssertionError("the failure was never seen")


class Poor:
    """A lender with nothing to lend, who counts how often he is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def lend(self, num_bytes: int, *, drop_cached: bool) -> int:
        self.asked += 1
        return 0


def test_many_that_wait_for_room_look_for_it_once_a_poll(tmp_path: Path) -> None:
    house, lender = House(tmp_path, replace(CONFIG, bank_bytes=4 * IMAGE_BYTES)), Poor()
    names = [f"a{number}" for number in range(24)]
    for seed, name in enumerate(names):
        save_adapter(house.root / name, seed=seed)
    held = [house.placed(name) for name in names[:4]]
    house.store.borrow_from(lender)
    waiting = names[4:]
    for _ in range(len(waiting)):
        house.turn(*waiting)
    assert house.store.stats().on_disk == len(names)
    assert all(house.store.lacks_room(local(name)) for name in waiting)
    lender.asked = 0
    house.turn(*waiting)
    assert lender.asked <= 4  # as one that waits asks
    for place in held:
        assert place is not None
        house.store.unpin(place)
    house.turn(*waiting)
    assert sum(house.store.lacks_room(local(name)) for name in waiting) == len(waiting) - 4
    house.store.close()
