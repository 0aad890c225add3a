"""What the configuration wants of adapters: preloaded, pinned, and taken off the device when idle."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from manylora.adapter_state import AdapterAction, AdapterState
from manylora.adapters.store.preloads import MAX_TRIES, RETRY_S
from tests.adapters.adapter_files import local, save_adapter
from tests.adapters.store_folder import CONFIG, House


@contextmanager
def opened(folder: Path, *names: str, **settings: object) -> Iterator[House]:
    """A store with these adapters at its source."""
    for seed, name in enumerate(names):
        save_adapter(folder / "root" / name, seed=seed)
    house = House(folder, replace(CONFIG, **settings))  # type: ignore[arg-type]  # each test's own
    yield house
    house.store.close()


def wait(house: House, duration_s: float = RETRY_S) -> None:
    house.clock.advance(duration_s)
    for _ in range(5):
        house.turn()


def states(house: House) -> dict[str, AdapterState]:
    return {info.id: info.state for info in house.store.infos()}


def test_configured_adapters_are_on_the_device_before_anyone_asks(tmp_path: Path) -> None:
    with opened(tmp_path, "a", "team/b", "c", preload=("a",), pinned=("local://team/b",)) as house:
        wait(house)
        assert states(house) == {"a": AdapterState.ON_DEVICE, "team/b": AdapterState.ON_DEVICE}
        assert [info.is_pinned for info in house.store.infos()] == [False, True]
        assert house.placed("c") is not None  # others are loaded when they are asked for
        house.store.manage(AdapterAction.UNPIN, local("team/b"))
        wait(house)
        assert house.store.stats().pinned == 0  # an order is carried out once


def test_a_name_that_is_not_there_yet_is_logged_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path, "a", preload=("late", "a"), pinned=("later",)) as house, caplog.at_level(logging.WARNING):
        for _ in range(3):
            wait(house)
        assert states(house) == {"a": AdapterState.ON_DEVICE}
        lines = [record.getMessage() for record in caplog.records]
        assert lines == [
            "adapter.pin_delayed adapter=local:later error=Adapter 'later' was not found in source 'local'",
            "adapter.preload_delayed adapter=local:late error=Adapter 'late' was not found in source 'local'",
        ]
        save_adapter(house.root / "late", seed=7)
        save_adapter(house.root / "later", seed=8)
        wait(house, CONFIG.negative_cache_s)
        assert states(house)["late"] is AdapterState.ON_DEVICE
        assert house.store.info(local("later")).is_pinned


def test_a_source_that_is_off_stops_no_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path, "a", hub_endpoint="", preload=("hub://org/name", "a")) as house:
        wait(house)
        assert states(house) == {"a": AdapterState.ON_DEVICE}
    assert "adapter.preload_impossible name=hub://org/name" in caplog.text


def test_an_idle_adapter_is_taken_off_the_device_and_stays_on_disk(tmp_path: Path) -> None:
    with opened(tmp_path, "used", "idle", "kept", idle_ttl_s=30.0, pinned=("kept",)) as house:
        wait(house)
        used, idle = house.placed("used"), house.placed("idle")
        assert used is not None
        assert idle is not None
        house.clock.advance(100.0)
        house.store.unpin(idle)  # its time begins now
        wait(house, 29.0)
        assert states(house)["idle"] is AdapterState.ON_DEVICE
        wait(house, 1.0)
        assert states(house) == {
            "idle": AdapterState.ON_DISK,
            "used": AdapterState.ON_DEVICE,
            "kept": AdapterState.ON_DEVICE,
        }
        house.store.unpin(used)
        wait(house, 31.0)
        assert states(house)["used"] is AdapterState.ON_DISK
        assert house.store.stats().evictions == 2
        assert house.placed("idle") is not None


def test_a_long_list_is_tried_bit_by_bit(tmp_path: Path) -> None:
    names = tuple(f"missing{number}" for number in range(2 * MAX_TRIES))
    with opened(tmp_path, "a", preload=(*names, "a")) as house:
        house.turn()
        assert house.store.stats().failures == MAX_TRIES
        assert house.store.is_busy  # so that an idle server goes on at once
        house.turn()
        assert house.store.stats().failures == 2 * MAX_TRIES
        for _ in range(5):
            house.turn()
        assert house.store.info(local("a")).state is AdapterState.ON_DEVICE


def test_a_name_that_stays_unknown_has_failed_once(tmp_path: Path) -> None:
    with opened(tmp_path, preload=("missing",)) as house:
        for _ in range(30):
            wait(house)
        assert house.store.stats().failures == 1
        assert not house.store.is_busy
