"""The store and sources that answer later: one question at a time, one load, and access that is each caller's own."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from manylora import errors
from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterHandle, AdapterState
from manylora.adapters.banks.devices import CpuBank
from manylora.adapters.ingest.fakes import ManualIngest
from manylora.adapters.jobs import IngestJob
from manylora.adapters.packing.image import ImageFacts
from manylora.adapters.sources.source import Located
from manylora.adapters.store.store import Store
from manylora.adapters.store.tracked import MAX_TRACKED
from manylora.adapters.tiers.disk import DiskTier
from manylora.adapters.tiers.fakes import ManualReader
from manylora.clock import ManualClock
from manylora.config.groups.adapters import AdaptersConfig
from manylora.ids import Digest
from tests.adapters.adapter_files import TINY

BODY_BYTES = 640
CONFIG = AdaptersConfig(
    disk_bytes=1 << 20,
    bank_bytes=4 * BODY_BYTES,
    load_timeout_s=30.0,
    negative_cache_s=10.0,
    revision_ttl_s=300.0,
    parallel_loads=8,
)
REF = AdapterRef(SourceName.HUB, "org/name")


class House:
    """A store with a remote source whose every answer is the test's."""

    def __init__(self, folder: Path, config: AdaptersConfig = CONFIG) -> None:
        self.clock = ManualClock()
        self.ingest, self.reader = ManualIngest(), ManualReader()
        self.store = Store(
            shape=TINY,
            dtype="bfloat16",
            sources={},
            remote=frozenset({SourceName.HUB, SourceName.S3}),
            ingest=self.ingest,
            reader=self.reader,
            disk=DiskTier(folder / "disk", config.disk_bytes, dtype="bfloat16", base_fingerprint=TINY.fingerprint),
            bank=CpuBank(config.bank_bytes),
            clock=self.clock,
            config=config,
        )

    def turn(self, *refs: AdapterRef) -> None:
        for ref in refs:
            self.store.want(ref)
        self.store.poll()

    def find(self, stamp: str = "1") -> None:
        """Answer the only question."""
        [number] = self.ingest.searches
        self.ingest.find(number, Located(stamp, BODY_BYTES))

    def load(self) -> IngestJob:
        """End the only load well, and the read that follows; returns the load."""
        [job] = self.ingest.jobs.values()
        self.ingest.finish(job.number, facts(job.stamp))
        return job

    def place(self, ref: AdapterRef) -> AdapterHandle | None:
        """The adapter, pinned, once what was read is taken over."""
        for _ in range(3):
            self.turn(ref)
            for digest in list(self.reader.reads):
                self.reader.finish(next(f for f in map(facts, "123") if f.digest == digest), 1)
            if (placed := self.store.pin(ref)) is not None:
                return placed
        return None


def facts(stamp: str) -> ImageFacts:
    return ImageFacts(Digest(stamp.encode().hex().ljust(64, "0")), "bfloat16", TINY.num_layers, BODY_BYTES, 0)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.store.close()


def test_requests_for_one_adapter_share_one_question_and_one_load(house: House) -> None:
    for _ in range(3):
        house.turn(*[REF] * 100)
    assert len(house.ingest.searches) == 1
    assert house.store.state(REF) is AdapterState.FETCHING
    house.find()
    for _ in range(3):
        house.turn(*[REF] * 100)
    assert (len(house.ingest.searches), house.ingest.num_submitted) == (0, 1)
    house.load()
    placed = house.place(REF)
    assert placed is not None
    assert placed.digest == facts("1").digest


def test_an_adapter_that_is_not_there_is_asked_for_once_until_its_failure_is_forgotten(house: House) -> None:
    house.turn(REF)
    [number] = house.ingest.searches
    house.ingest.fail(number, errors.AdapterNotFound("no"))
    for _ in range(5):
        house.turn(REF)
        assert isinstance(house.store.failure(REF), errors.AdapterNotFound)
    assert not house.ingest.searches
    house.clock.advance(CONFIG.negative_cache_s + 1)
    house.turn(REF)
    house.turn(REF)
    assert len(house.ingest.searches) == 1


def test_the_newest_version_is_asked_for_beside_requests_that_keep_theirs(house: House) -> None:
    house.turn(REF)
    house.find("1")
    house.turn(REF)
    house.load()
    old = house.place(REF)
    assert old is not None
    house.clock.advance(CONFIG.revision_ttl_s - 1)
    assert house.place(REF) is not None
    assert not house.ingest.searches
    house.clock.advance(2)
    assert house.place(REF) is not None  # while it is asked
    house.find("2")
    house.turn(REF)
    house.turn(REF)
    assert house.store.pin(REF) is None  # new pins wait for the new version
    house.load()
    new = house.place(REF)
    assert new is not None
    assert (old.digest, new.digest) == (facts("1").digest, facts("2").digest)


def test_while_a_source_is_down_the_version_it_had_stays_good(house: House) -> None:
    house.turn(REF)
    house.find()
    house.turn(REF)
    house.load()
    assert house.place(REF) is not None
    house.clock.advance(CONFIG.revision_ttl_s + 1)
    house.turn(REF)
    [number] = house.ingest.searches
    house.ingest.fail(number, errors.AdapterSourceUnavailable("down"))
    assert house.place(REF) is not None
    assert house.store.failure(REF) is None
    assert not house.ingest.searches  # not at once again
    house.clock.advance(CONFIG.negative_cache_s + 1)
    house.turn(REF)
    assert len(house.ingest.searches) == 1


def test_access_that_is_taken_away_ends_the_name(house: House) -> None:
    house.turn(REF)
    house.find()
    house.turn(REF)
    house.load()
    assert house.place(REF) is not None
    house.clock.advance(CONFIG.revision_ttl_s + 1)
    house.turn(REF)
    [number] = house.ingest.searches
    house.ingest.fail(number, errors.AdapterAccessDenied("no longer yours"))
    house.turn(REF)
    assert house.store.pin(REF) is None
    assert isinstance(house.store.failure(REF), errors.AdapterAccessDenied)


def test_every_token_is_checked_and_content_is_loaded_once(house: House) -> None:
    mine, yours = replace(REF, token="mine"), replace(REF, token="yours")
    house.turn(mine)
    house.find()
    house.turn(mine)
    house.load()
    assert house.place(mine) is not None
    house.turn(yours)
    assert house.store.pin(yours) is None
    [number] = house.ingest.searches
    assert house.ingest.searches[number].ref.token == "yours"
    house.ingest.fail(number, errors.AdapterNotFound("not yours"))
    house.turn(yours)
    assert house.store.pin(yours) is None
    assert house.place(mine) is not None
    house.clock.advance(CONFIG.negative_cache_s + 1)
    house.turn(yours)
    house.turn(yours)
    house.find()
    assert house.place(yours) is not None  # once its access is proved
    assert house.ingest.num_submitted == 1


def test_a_question_that_is_never_answered_is_given_up(house: House) -> None:
    house.turn(REF)
    house.clock.advance(CONFIG.load_timeout_s)
    house.turn(REF)
    assert not house.ingest.searches
    assert isinstance(house.store.failure(REF), errors.AdapterSourceUnavailable)


def test_a_stuck_source_leaves_turns_to_others(house: House) -> None:
    stuck = [AdapterRef(SourceName.HUB, f"org/a{number}") for number in range(8)]
    house.turn(*stuck)
    for number in list(house.ingest.searches):
        house.ingest.find(number, Located("1", BODY_BYTES))
    house.turn(*stuck)
    assert len(house.ingest.jobs) == 6
    other = AdapterRef(SourceName.S3, "b")
    house.turn(*stuck, other)
    house.find("2")
    house.turn(*stuck, other)
    assert {job.ref.source for job in house.ingest.jobs.values()} == {SourceName.HUB, SourceName.S3}


def test_unknown_names_leave_bounded_state(house: House) -> None:
    for number in range(MAX_TRACKED + 500):
        house.turn(AdapterRef(SourceName.HUB, f"org/unknown-{number}"))
        for search in list(house.ingest.searches):
            house.ingest.fail(search, errors.AdapterNotFound("no"))
    house.turn()
    assert len(house.store._tracked) <= MAX_TRACKED
    assert not house.store._versions._searches


def test_only_what_the_loaders_say_counts_as_their_answer(house: House) -> None:
    house.turn(REF)
    house.clock.advance(CONFIG.load_timeout_s)
    house.turn()  # the question is given up, and its name has failed
    assert (house.store.stats().failures, house.store.stats().answers) == (1, 0)
    house.clock.advance(CONFIG.negative_cache_s)
    house.turn()
    house.turn(REF)
    house.find()
    house.turn(REF)
    assert house.store.stats().answers == 1
    job = house.load()
    house.turn(REF)
    house.reader.finish(facts(job.stamp), 10)
    house.turn(REF)
    assert house.store.stats().answers == 3
