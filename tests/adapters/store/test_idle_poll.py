"""A poll of a store that has nothing to do does nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manylora.adapter_state import AdapterAction, AdapterState
from manylora.adapters.store.store import EXPIRY_S
from manylora.adapters.tiers.device import FRESH_S
from tests.adapters.adapter_files import local, save_adapter
from tests.adapters.store_folder import CONFIG, House

SUB_POLLS = {
    "_ingest": ["poll"],
    "_reader": ["poll", "erased"],
    "_eraser": ["advance"],
    "_preloads": ["advance"],
    "_pins": ["follow_versions"],
    "_device": ["age", "expire", "poll_placed"],
    "_wishes": ["drop_lapsed"],
    "_versions": ["give_up_stuck_searches"],
    "_loads": ["give_up_stuck"],
    "_ascent": ["advance"],
    "_verifier": ["advance"],
}


def forbid(house: House, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note every sub-poll that is called from now on."""
    called: list[str] = []
    for part, methods in SUB_POLLS.items():
        for method in methods:
            note = f"{part}.{method}"
            original = getattr(getattr(house.store, part), method)

            def noting(*args: Any, original: Any = original, note: str = note) -> Any:
                called.append(note)
                return original(*args)

            monkeypatch.setattr(getattr(house.store, part), method, noting)
    return called


def at_rest(house: House) -> None:
    """Bring an adapter, pin it as a request does, and let nothing be wanted or fresh."""
    save_adapter(house.root / "a")
    assert house.placed("a") is not None
    house.store.unwant(local("a"))
    house.clock.advance(FRESH_S)
    house.store.poll()


def test_it_calls_no_sub_poll(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    at_rest(house)
    called = forbid(house, monkeypatch)
    for _ in range(3):
        house.store.poll()
    assert called == []
    assert house.store.begun() == []


def test_a_wish_ends_the_rest(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    at_rest(house)
    called = forbid(house, monkeypatch)
    save_adapter(house.root / "b", seed=2)
    house.store.want(local("b"))
    house.store.poll()
    assert {note.split(".")[0] for note in called} == set(SUB_POLLS)


def test_an_order_of_an_operator_ends_the_rest(house: House) -> None:
    at_rest(house)
    save_adapter(house.root / "b", seed=2)
    house.store.manage(AdapterAction.PRELOAD, local("b"))
    for _ in range(8):
        house.store.poll()
    assert house.store.state(local("b")) is AdapterState.ON_DEVICE


def test_the_turns_of_idle_polls_count(house: House) -> None:
    """A wish of a request that came before them is an old one after them."""
    at_rest(house)
    adapter = house.store._tracked.track(local("a"))
    house.store.want(local("a"))
    assert house.store._tracked.is_requested(adapter)
    house.store.unwant(local("a"))
    before = house.store._tracked.turn
    for _ in range(3):
        house.store.poll()
    assert house.store._tracked.turn == before + 3


def test_idle_adapters_still_go_after_their_time(tmp_path: Path) -> None:
    house = House(tmp_path, replace(CONFIG, idle_ttl_s=10.0))
    save_adapter(house.root / "a")
    placed = house.placed("a")
    assert placed is not None
    house.store.unpin(placed)
    house.store.unwant(local("a"))
    house.clock.advance(9.0)
    house.store.poll()
    assert house.store.state(local("a")) is AdapterState.ON_DEVICE
    house.clock.advance(1.0 + EXPIRY_S)
    house.store.poll()
    assert house.store.state(local("a")) is AdapterState.ON_DISK
    house.store.close()
