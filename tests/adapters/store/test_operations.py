"""What operators can do to adapters, and what they are told of them."""

import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType

import pytest

from manylora import errors
from manylora.adapter_ref import SourceName
from manylora.adapter_state import AdapterAction, AdapterState
from manylora.adapters.store.operator_pins import LOOK_S
from tests.adapters.adapter_files import local, save_adapter
from tests.adapters.store_folder import CONFIG, IMAGE_BYTES, House


def save(house: House, *names: str) -> None:
    for seed, name in enumerate(names):
        save_adapter(house.root / name, seed=seed)


def turns(house: House, *names: str, count: int = 5) -> None:
    for _ in range(count):
        house.turn(*names)


def test_a_preloaded_adapter_comes_to_the_device_though_nobody_waits_for_it(house: House) -> None:
    save(house, "a")
    info = house.store.manage(AdapterAction.PRELOAD, local("a"))
    assert (info.id, info.source, info.state) == ("a", SourceName.LOCAL, AdapterState.ABSENT)
    turns(house)
    info = house.store.info(local("a"))
    assert info.state is AdapterState.ON_DEVICE
    assert (info.hits, info.last_use_s, info.pins, info.is_pinned) == (0, None, 0, False)
    assert house.store.list() == [local("a")]


def test_a_prefetched_adapter_comes_to_the_disk_and_takes_no_room_on_the_device(house: House) -> None:
    save(house, "a")
    assert house.store.manage(AdapterAction.PREFETCH, local("a")).state is AdapterState.ABSENT
    turns(house)
    assert house.store.info(local("a")).state is AdapterState.ON_DISK
    assert house.store.stats().on_device == 0
    assert not house.store._wishes
    assert house.store.manage(AdapterAction.PREFETCH, local("a")).state is AdapterState.ON_DISK
    turns(house, "a")
    assert house.store.info(local("a")).state is AdapterState.ON_DEVICE


@pytest.mark.parametrize("also", ["request", "preload"])
def test_a_prefetched_adapter_that_is_wanted_nearer_goes_there(house: House, also: str) -> None:
    save(house, "a")
    house.store.manage(AdapterAction.PREFETCH, local("a"))
    if also == "preload":
        house.store.manage(AdapterAction.PRELOAD, local("a"))
    turns(house, *(["a"] if also == "request" else []))
    assert house.store.info(local("a")).state is AdapterState.ON_DEVICE


def test_a_prefetch_of_a_missing_adapter_is_refused_and_leaves_no_wish(house: House) -> None:
    with pytest.raises(errors.AdapterNotFound):
        house.store.manage(AdapterAction.PREFETCH, local("missing"))
    turns(house)
    assert not house.store._wishes


def test_a_pinned_adapter_stays_whatever_else_is_wanted(house: House) -> None:
    names = [f"a{number}" for number in range(6)]
    save(house, *names)
    house.store.manage(AdapterAction.PIN, local("a0"))
    turns(house)
    for name in names[1:]:
        placed = house.placed(name)
        assert placed is not None
        house.store.unpin(placed)
    assert house.store.info(local("a0")).state is AdapterState.ON_DEVICE
    assert house.store.info(local("a0")).is_pinned
    assert house.store.stats().pinned == 1
    assert not house.store.manage(AdapterAction.UNPIN, local("a0")).is_pinned
    for name in names[1:]:
        placed = house.placed(name)
        assert placed is not None
        house.store.unpin(placed)
    assert house.store.info(local("a0")).state is house.below


def test_a_pin_moves_to_the_version_that_takes_its_place(house: House) -> None:
    save(house, "a")
    house.store.manage(AdapterAction.PIN, local("a"))
    turns(house)
    old = house.store.info(local("a")).digest
    save_adapter(house.root / "a", seed=9)
    house.clock.advance(LOOK_S)
    turns(house)
    info = house.store.info(local("a"))
    assert info.digest != old
    assert info.state is AdapterState.ON_DEVICE
    assert house.store.stats().pinned == 1
    assert [house.store._device.is_held(digest) for digest in house.store._device._facts] == [False, True]


def test_pins_leave_a_quarter_of_the_bank_to_others(tmp_path: Path) -> None:
    house = House(tmp_path, replace(CONFIG, bank_bytes=4 * IMAGE_BYTES))
    save(house, "a0", "a1", "a2", "a3", "a4")
    for name in ("a0", "a1", "a2"):
        house.store.manage(AdapterAction.PIN, local(name))
    turns(house)
    assert house.placed("a3") is not None
    with pytest.raises(errors.AdapterCapacity) as refused:
        house.store.manage(AdapterAction.PIN, local("a3"))
    taken, limit = 3 * IMAGE_BYTES, 3 * IMAGE_BYTES
    assert refused.value.message == (
        f"Adapter 'a3' needs {IMAGE_BYTES} bytes to be pinned; others have {taken} of {limit}"
    )
    # The size of one that was never here is known when it is packed; till then the pin stands, and then it is given up.
    assert house.store.manage(AdapterAction.PIN, local("a4")).is_pinned
    turns(house)
    info = house.store.info(local("a4"))
    assert not info.is_pinned
    assert "bytes to be pinned" in info.error
    assert house.store.failure(local("a4")) is None
    house.store.close()


def test_an_adapter_that_pins_leave_no_room_for_is_too_large_and_does_not_wait_for_ever(tmp_path: Path) -> None:
    house = House(tmp_path, replace(CONFIG, bank_bytes=2 * IMAGE_BYTES))
    save(house, "a")
    house.store.manage(AdapterAction.PIN, local("a"))
    turns(house)
    save_adapter(house.root / "large", rank=24)
    failure = house.error("large")
    assert isinstance(failure, errors.AdapterTooLarge)
    assert failure.message.endswith(f"the limit is {IMAGE_BYTES}")
    house.store.close()


def test_an_adapter_larger_than_all_pins_may_be_is_not_pinned(tmp_path: Path) -> None:
    house = House(tmp_path, replace(CONFIG, bank_bytes=IMAGE_BYTES))
    save(house, "a")
    assert house.placed("a") is not None
    with pytest.raises(errors.AdapterTooLarge, match=f"the limit is {IMAGE_BYTES * 3 // 4}"):
        house.store.manage(AdapterAction.PIN, local("a"))
    house.store.close()


def test_what_is_in_use_is_not_evicted(house: House) -> None:
    save(house, "a")
    house.turn("a")
    with pytest.raises(errors.AdapterInUse, match="Adapter 'a' is in use: requests wait for it"):
        house.store.manage(AdapterAction.EVICT, local("a"))
    placed = house.placed("a")
    assert placed is not None
    turns(house)
    with pytest.raises(errors.AdapterInUse, match="1 requests hold it"):
        house.store.manage(AdapterAction.EVICT, local("a"))
    house.store.unpin(placed)
    house.store.manage(AdapterAction.PIN, local("a"))
    with pytest.raises(errors.AdapterInUse, match="unpin it first"):
        house.store.manage(AdapterAction.EVICT, local("a"))
    house.store.manage(AdapterAction.UNPIN, local("a"))
    assert house.store.manage(AdapterAction.EVICT, local("a")).state is AdapterState.ABSENT
    stats = house.store.stats()
    assert (stats.bank_bytes_used, stats.disk_bytes_used, stats.pinned) == (0, 0, 0)
    assert house.store.manage(AdapterAction.EVICT, local("a")).state is AdapterState.ABSENT
    assert house.placed("a") is not None


@pytest.mark.parametrize("action", [*AdapterAction])
def test_an_adapter_that_is_nowhere_is_not_found(house: House, action: AdapterAction) -> None:
    with pytest.raises(errors.AdapterNotFound):
        house.store.manage(action, local("never-heard-of"))
    with pytest.raises(errors.AdapterNotFound):
        house.store.info(local("never-heard-of"))
    assert house.store.infos() == ()


def test_what_stands_against_an_adapter_is_told(house: House) -> None:
    save_adapter(house.root / "broken", use_qalora=True)
    failure = house.error("broken")
    with pytest.raises(errors.AdapterUnsupported):
        house.store.manage(AdapterAction.PIN, local("broken"))
    info = house.store.info(local("broken"))
    assert (info.state, info.error) == (AdapterState.FAILED, failure.message)


def test_infos_tell_use_rank_size_and_the_stages_of_the_load(house: House) -> None:
    save(house, "b", "a")
    first, second = house.placed("b"), house.placed("b")
    assert first is not None
    assert second is not None
    house.clock.advance(5.0)
    house.store.unpin(first)
    house.clock.advance(2.0)
    house.turn("a")
    a, b = house.store.infos()
    assert (a.id, a.state, a.hits) == ("a", AdapterState.FETCHING, 0)
    assert (b.id, b.digest, b.num_bytes, b.pins, b.hits) == ("b", first.digest, IMAGE_BYTES, 1, 2)
    assert b.last_use_s == pytest.approx(2.0)
    assert b.rank == 4
    assert {"fetch", "check", "pack", "write", "read"} <= b.stage_ms.keys()


def test_what_is_asked_of_an_unknown_name_costs_the_same_however_many_are_known(house: House) -> None:
    def calls() -> int:
        made = 0

        def count(frame: FrameType, event: str, argument: object) -> None:
            nonlocal made
            made += 1

        sys.setprofile(count)
        try:
            with pytest.raises(errors.AdapterNotFound):
                house.store.info(local("missing"))
        finally:
            sys.setprofile(None)
        return made

    save(house, *(f"a{number}" for number in range(20)))
    assert house.placed("a0") is not None
    calls()
    few = calls()
    for number in range(1, 20):
        turns(house, f"a{number}")
    assert house.store.stats().on_disk == 20
    assert calls() <= few + 20
