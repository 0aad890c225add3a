"""What a tier refuses of its owner, also where Python removes `assert` statements (`python -O`)."""

import inspect
import mmap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from manylora.adapters.jobs import Ingested, IngestJob
from manylora.adapters.packing.image import HostImage, ImageFacts
from manylora.adapters.tiers import device, disk, host, pinned_cache
from manylora.adapters.tiers.disk import DiskTier, ingest_rules
from manylora.adapters.tiers.fakes import ManualReader, TwoMemoryBank
from manylora.adapters.tiers.image_folder import job_file
from manylora.adapters.tiers.load_stats import LoadStats
from manylora.clock import ManualClock
from manylora.config.groups.adapters import AdaptersConfig
from manylora.ids import Digest, Flow
from tests.adapters.adapter_files import TINY, local
from tests.adapters.store_folder import facts

NUM_BYTES, FLOW = 64, Flow("one")
OWN, OTHER = facts("a", NUM_BYTES), facts("b", NUM_BYTES)
DIGEST = OWN.digest


def without_asserts(module: ModuleType) -> Any:  # a module has the attributes of its source
    """Return a module made anew of its source, as `python -O` compiles it."""
    made = ModuleType(module.__name__)
    exec(compile(inspect.getsource(module), str(module.__file__), "exec", optimize=1), made.__dict__)
    return made


def image_of(facts: ImageFacts, num_bytes: int = NUM_BYTES) -> HostImage:
    table = np.zeros((facts.num_layers, facts.width, 3), dtype=np.int64)
    return HostImage(facts, table, mmap.mmap(-1, max(num_bytes, mmap.PAGESIZE)))


class Placed:
    """A device with one version on it and in its host tier; a second one fits into both."""

    def __init__(self, folder: Path) -> None:
        self.reader, self.bank = ManualReader(), TwoMemoryBank(2 * NUM_BYTES)
        self.disk = DiskTier(
            folder, 1 << 20, dtype="bfloat16", base_fingerprint=TINY.fingerprint, rules=ingest_rules(AdaptersConfig())
        )
        self.device = without_asserts(device).Device(
            bank=self.bank,
            host_bytes=2 * NUM_BYTES,
            disk=self.disk,
            reader=self.reader,
            clock=ManualClock(),
            stats=LoadStats(),
            on_change=lambda digest: None,
        )
        self.begin(OWN)
        self.end()

    def begin(self, facts: ImageFacts) -> None:
        """Bring a version to the host tier as a read does, and begin its placement."""
        self.device.host.reserve(facts.digest, facts.body_bytes)
        self.device.host.put(image_of(facts))
        self.device._named[facts.digest] = {"own"}
        assert self.device.begin_hop(local("a"), FLOW, facts, set())

    def end(self) -> None:
        for digest in list(self.bank.placing):
            self.bank.finish(digest)
        self.device.poll_placed()


@pytest.fixture
def placed(tmp_path: Path) -> Iterator[Placed]:
    made = Placed(tmp_path / "disk")
    yield made
    made.disk.close()


@pytest.mark.parametrize("act", ["remove", "erase"])
def test_a_held_version_is_neither_removed_nor_erased(act: str, placed: Placed) -> None:
    placed.device.hold(DIGEST)
    assert placed.device.pin(local("a"), DIGEST, FLOW) is not None
    with pytest.raises(AssertionError, match=f"version {DIGEST} has 2 pins: it stays on the device"):
        getattr(placed.device, act)(DIGEST)
    assert DIGEST in placed.bank
    assert DIGEST in placed.device.host
    placed.device.release(DIGEST)
    placed.device.unpin(DIGEST)
    getattr(placed.device, act)(DIGEST)
    assert DIGEST not in placed.bank
    assert DIGEST not in placed.device.host


@pytest.mark.parametrize("act", ["remove", "erase"])
def test_a_version_on_its_way_to_the_device_is_neither_removed_nor_erased(act: str, placed: Placed) -> None:
    placed.begin(OTHER)
    image = placed.device.host.get(OTHER.digest)
    image.body[:1] = b"\1"
    with pytest.raises(AssertionError, match=f"version {OTHER.digest} is read or placed now"):
        getattr(placed.device, act)(OTHER.digest)
    with pytest.raises(AssertionError, match=f"image {OTHER.digest} is copied to the device"):
        getattr(without_asserts(host).HostTier, act)(placed.device.host, OTHER.digest)
    assert image.body[:1] == b"\1"
    placed.end()
    getattr(placed.device, act)(OTHER.digest)
    assert OTHER.digest not in placed.bank


def test_an_operator_holds_only_what_is_on_the_device(placed: Placed) -> None:
    placed.begin(OTHER)  # its room is reserved, and no more
    with pytest.raises(AssertionError, match=f"version {OTHER.digest} is not on the device"):
        placed.device.hold(OTHER.digest)
    assert placed.device.pins(OTHER.digest) == 0


def test_no_more_is_given_back_than_was_lent(placed: Placed) -> None:
    with pytest.raises(AssertionError, match="1 bytes to give back, 0 were lent"):
        placed.device.give_back(1)
    assert placed.bank.total_bytes == placed.device.own_bytes == 2 * NUM_BYTES


def test_an_image_fills_no_reservation_of_other_bytes(placed: Placed) -> None:
    tier = without_asserts(host).HostTier(
        1 << 20, may_evict=lambda digest: True, on_change=lambda digest: None, pages=placed.bank
    )
    tier.reserve(DIGEST, NUM_BYTES + 1)
    with pytest.raises(AssertionError, match=f"image {DIGEST} has {NUM_BYTES} bytes, {NUM_BYTES + 1} were reserved"):
        tier.put(image_of(OWN))
    assert DIGEST not in tier


def test_an_image_takes_no_room_on_disk_that_its_load_has_not_reserved(tmp_path: Path) -> None:
    tier = without_asserts(disk).DiskTier(tmp_path, 4096, dtype="bfloat16", base_fingerprint=TINY.fingerprint)
    assert tier.reserve(1, 100)
    (tier.folder / job_file(1)).write_bytes(bytes(100))
    larger = replace(OWN, body_bytes=5000)
    job = IngestJob(1, local("a"), "1", "a.1")
    with pytest.raises(AssertionError, match=f"has {larger.file_bytes} bytes, more than its load reserved"):
        tier.settle(job, Ingested(1, larger, 1, (), {}))
    assert tier.facts(DIGEST) is None
    tier.close()


def test_a_file_that_is_erased_counts_until_its_end(tmp_path: Path) -> None:
    tier = without_asserts(disk).DiskTier(tmp_path, 4096, dtype="bfloat16", base_fingerprint=TINY.fingerprint)
    assert tier.reserve(1, 100)
    (tier.folder / job_file(1)).write_bytes(bytes(100))
    tier._cache.budget_bytes = 50  # less than the load has reserved
    with pytest.raises(AssertionError, match=r"bytes until it is erased, and they are not free"):
        tier.condemn_job(1)
    assert tier.num_erasing == 0
    tier.close()


def test_a_cache_reserves_an_entry_once_and_unpins_it_no_more_often_than_it_was_pinned() -> None:
    cache = without_asserts(pinned_cache).PinnedCache(100)
    assert cache.reserve("a", 60, lambda key: None)
    with pytest.raises(AssertionError, match="a has its room already"):
        cache.reserve("a", 10, lambda key: None)
    assert cache.used_bytes == 60
    cache.unpin("a")
    with pytest.raises(AssertionError, match="a was unpinned more often than pinned"):
        cache.unpin("a")
    assert cache.pins("a") == 0
    assert Digest("a") in cache
