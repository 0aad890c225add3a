"""A device with memory of its own: adapters come to it over host memory, and stay there when they leave it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from manylora.adapter_state import AdapterAction, AdapterHandle, AdapterState
from manylora.adapters.banks.placed_images import weights_of
from manylora.adapters.tiers.fakes import ManualReader, TwoMemoryBank
from manylora.errors import AdapterInUse, AdapterTooLarge
from tests.adapters.adapter_files import local, save_adapter
from tests.adapters.store_folder import CONFIG, IMAGE_BYTES, House

Make = Callable[..., House]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes a store on a device with room for two adapters; placements end at once unless they are `manual`."""
    made: list[House] = []

    def open_store(*, host_places: int = 4, is_manual: bool = False) -> House:
        bank = TwoMemoryBank(2 * IMAGE_BYTES, is_prompt=not is_manual)
        config = replace(CONFIG, bank_bytes=2 * IMAGE_BYTES, host_bytes=host_places * IMAGE_BYTES)
        made.append(House(tmp_path, config, bank=bank))
        for number, name in enumerate("abcdef"):
            save_adapter(made[0].root / name, seed=number)
        return made[0]

    yield open_store
    made[0].store.close()


def used(house: House, name: str) -> AdapterHandle:
    """Bring an adapter to the device and use it once."""
    placed = house.placed(name, turns=60)
    assert placed is not None
    house.store.unpin(placed)
    house.store.unwant(local(name))
    return placed


def states(house: House, names: str) -> list[str]:
    return [house.store.state(local(name)).value for name in names]


def test_the_gauges_of_host_memory_are_real(make: Make) -> None:
    house = make()
    used(house, "a")
    stats = house.store.stats()
    assert (stats.in_host, stats.host_bytes_used) == (1, IMAGE_BYTES)
    assert (stats.on_device, stats.bank_bytes_used) == (1, IMAGE_BYTES)
    assert [(times.tier, sum(times.counts)) for times in stats.load_times] == [("device", 1), ("disk", 1), ("host", 1)]
    assert set(house.store.info(local("a")).stage_ms) >= {"read", "place"}


def test_what_the_device_evicts_stays_in_host_and_comes_back_without_the_disk(make: Make) -> None:
    house = make()
    first = used(house, "a")
    weights = house.image(first).clone()
    for name in "bc":
        used(house, name)
    assert states(house, "abc") == ["in_host", "on_device", "on_device"]
    house.disk.path(first.digest).unlink()  # whoever reads it fails
    again = house.placed("a", turns=60)
    assert again is not None
    assert torch.equal(house.image(again), weights)
    assert house.store.stats().loads == 3
    house.store.unpin(again)


def test_host_memory_evicts_the_least_valuable_and_it_is_on_disk_still(make: Make) -> None:
    house = make(host_places=2)
    for name in "abc":
        used(house, name)
    stats = house.store.stats()
    assert stats.host_bytes_used <= 2 * IMAGE_BYTES
    assert states(house, "a") == ["on_disk"]
    used(house, "a")
    assert states(house, "a") == ["on_device"]


def test_the_only_copy_that_could_bring_an_adapter_back_is_kept(make: Make) -> None:
    house = make(host_places=2)
    held = house.placed("a", turns=60)
    assert held is not None
    house.disk.remove(held.digest)  # from now on it is in memory only
    for name in "bcb":  # each of them needs the room in host memory that the older image of `a` has
        used(house, name)
    assert states(house, "bc") == ["on_device", "on_disk"]
    house.store.unpin(held)
    for name in "cb":
        used(house, name)
    assert states(house, "a") == ["in_host"]


def test_a_placement_that_takes_its_time_keeps_its_image_and_blocks_nothing_else(make: Make) -> None:
    house = make(is_manual=True)
    assert isinstance(house.bank, TwoMemoryBank)
    for _ in range(6):
        house.turn("a")
    [digest] = house.bank.placing
    assert states(house, "a") == ["in_host"]
    assert house.store.pin(local("a")) is None
    assert house.store.is_busy
    house.store.unwant(local("a"))
    with pytest.raises(AdapterInUse, match="it is being read"):
        house.store.manage(AdapterAction.EVICT, local("a"))
    for _ in range(6):
        house.turn("a", "b")
    assert len(house.bank.placing) == 2
    house.bank.finish(digest)
    house.turn("a", "b")
    placed = house.store.pin(local("a"))
    assert placed is not None
    assert states(house, "ab") == ["on_device", "in_host"]
    house.store.unpin(placed)


def test_a_deleted_adapter_leaves_no_byte_in_either_memory(make: Make) -> None:
    house = make()
    placed = house.placed("a", turns=60)
    assert placed is not None
    host = house.store._device.host
    assert host is not None
    image = host.get(placed.digest)
    assert image is not None
    on_device, in_host = house.image(placed), weights_of(image)
    assert on_device.any()
    assert in_host.any()
    house.store.manage(AdapterAction.DELETE, local("a"))
    assert on_device.any(), "a request still runs with it"
    house.store.unpin(placed)
    assert not on_device.any()
    assert not in_host.any()
    stats = house.store.stats()
    assert (stats.in_host, stats.host_bytes_used, stats.bank_bytes_used) == (0, 0, 0)


def test_a_deletion_waits_for_a_placement_under_way(make: Make) -> None:
    house = make(is_manual=True)
    assert isinstance(house.bank, TwoMemoryBank)
    for _ in range(6):
        house.turn("a")
    [digest] = house.bank.placing
    in_host = weights_of(house.bank.placing[digest])
    house.store.manage(AdapterAction.DELETE, local("a"))
    assert in_host.any(), "the copy reads it"
    house.bank.finish(digest)
    house.turn()
    assert not in_host.any()
    assert digest not in house.bank
    assert house.store.stats().bank_bytes_used == 0


def test_an_evicted_adapter_leaves_both_memories(make: Make) -> None:
    house = make()
    used(house, "a")
    house.turn()
    house.turn()
    house.store.manage(AdapterAction.EVICT, local("a"))
    stats = house.store.stats()
    assert (stats.in_host, stats.on_device, stats.on_disk) == (0, 0, 0)


def test_an_adapter_larger_than_host_memory_is_too_large(make: Make) -> None:
    house = make(host_places=0)
    assert isinstance(house.error("a"), AdapterTooLarge)


def test_a_read_that_fails_gives_its_room_in_host_back(tmp_path: Path) -> None:
    reader = ManualReader()
    bank = TwoMemoryBank(IMAGE_BYTES, is_prompt=True)
    config = replace(CONFIG, bank_bytes=IMAGE_BYTES, host_bytes=IMAGE_BYTES)
    house = House(tmp_path, config, reader=reader, bank=bank)
    save_adapter(house.root / "a")
    while not reader.reads:
        house.turn("a")
    assert house.store.stats().host_bytes_used == IMAGE_BYTES
    [digest] = reader.reads
    reader.fail(digest)
    house.store.unwant(local("a"))
    house.turn()
    assert house.store.stats().host_bytes_used == 0
    assert house.store.state(local("a")) is AdapterState.ABSENT
    house.store.close()
