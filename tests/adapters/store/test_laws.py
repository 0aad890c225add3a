"""The laws of the adapter store, for every order of wishes, pins, loads, failures and evictions."""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from manylora.adapter_ref import SourceName
from manylora.adapter_state import AdapterAction, AdapterHandle, AdapterState
from manylora.adapters.banks.bank import Bank
from manylora.adapters.banks.devices import CpuBank
from manylora.adapters.ingest.fakes import ManualIngest
from manylora.adapters.packing.image import ImageFacts, largest_file_bytes
from manylora.adapters.store.store import Store
from manylora.adapters.tiers.disk import DiskTier
from manylora.adapters.tiers.fakes import ManualReader, TwoMemoryBank
from manylora.clock import ManualClock
from manylora.config.groups.adapters import AdaptersConfig
from manylora.engine.adapter_port import AdapterStore
from manylora.errors import AdapterCorrupt, AdapterNotFound, ManyloraError
from manylora.ids import Digest, Flow
from tests.adapters.adapter_files import TINY, local
from tests.adapters.fake_source import BODY_BYTES, NAMES, FakeSource, facts_of, num_rows

BANK_BYTES = 6_000
HOST_BYTES = 7_000
DISK_BYTES = 40_000


class StoreMachine(RuleBasedStateMachine):
    """Drives a store whose loads, reads and placements end only when a rule says so."""

    def __init__(self) -> None:
        super().__init__()
        self.placements = self.new_placements()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = ManualClock()
        self.source = FakeSource()
        self.ingest = ManualIngest()
        self.reader = ManualReader()
        self.bank: Bank = CpuBank(BANK_BYTES) if self.placements is None else self.placements
        self.disk = DiskTier(self.folder, DISK_BYTES, dtype="bfloat16", base_fingerprint=TINY.fingerprint)
        self.store = Store(
            shape=TINY,
            dtype="bfloat16",
            sources={SourceName.LOCAL: self.source},
            ingest=self.ingest,
            reader=self.reader,
            disk=self.disk,
            bank=self.bank,
            clock=self.clock,
            config=AdaptersConfig(
                max_bytes=10_000,
                load_timeout_s=20.0,
                negative_cache_s=5.0,
                parallel_loads=2,
                bank_bytes=BANK_BYTES,
                host_bytes=HOST_BYTES,
            ),
        )
        self.device = self.store._device
        self.port: AdapterStore = self.store  # the engine's Protocol is satisfied
        self.pins: list[tuple[str, AdapterHandle]] = []
        self.facts: dict[Digest, tuple[str, ImageFacts]] = {}
        self.deleted: set[str] = set()  # and not replaced since

    def new_placements(self) -> TwoMemoryBank | None:
        """Return the bank of a device with memory of its own; None: host memory is the device's."""
        return None

    @rule(names=st.lists(st.sampled_from([*NAMES, "unknown"]), max_size=4), flow=st.sampled_from(["one", "other"]))
    def step(self, names: list[str], flow: str) -> None:
        """What the engine does in a step: want, poll, pin what can be pinned."""
        for name in names:
            self.port.want(local(name), Flow(flow))
        self.port.poll()
        for name in names:
            placed = self.port.pin(local(name))
            if placed is not None:
                assert self.port.failure(local(name)) is None
                stamp = str(self.source.versions[name])
                assert placed.digest == facts_of(name, stamp).digest, "a new pin has the version there is now"
                assert name not in self.deleted
                self.pins.append((name, placed))
            elif name == "unknown" or name in self.deleted:
                assert isinstance(self.port.failure(local(name)), AdapterNotFound)

    @precondition(lambda self: self.pins)
    @rule(index=st.integers(0, 99))
    def unpin(self, index: int) -> None:
        self.port.unpin(self.pins.pop(index % len(self.pins))[1])

    @precondition(lambda self: self.ingest.jobs)
    @rule(index=st.integers(0, 99), is_good=st.sampled_from([True, True, True, False]))
    def end_load(self, index: int, is_good: bool) -> None:
        number, job = list(self.ingest.jobs.items())[index % len(self.ingest.jobs)]
        if is_good:
            facts = facts_of(job.ref.id, job.stamp)
            self.facts[facts.digest] = (job.ref.id, facts)
            self.ingest.finish(number, facts)
        else:
            self.ingest.fail(number, AdapterCorrupt(job.ref.id))

    @precondition(lambda self: self.reader.reads)
    @rule(index=st.integers(0, 99), is_good=st.sampled_from([True, True, True, False]))
    def end_read(self, index: int, is_good: bool) -> None:
        digest = list(self.reader.reads)[index % len(self.reader.reads)]
        name, facts = self.facts[digest]
        if is_good:
            self.reader.finish(facts, num_rows(name))
        else:
            self.reader.fail(digest)

    @precondition(lambda self: self.placements is not None and self.placements.placing)
    @rule(index=st.integers(0, 99))
    def end_placement(self, index: int) -> None:
        assert self.placements is not None
        placing = list(self.placements.placing)
        self.placements.finish(placing[index % len(placing)])

    @rule(name=st.sampled_from(NAMES))
    def replace(self, name: str) -> None:
        self.source.versions[name] += 1
        self.deleted.discard(name)

    @rule(
        name=st.sampled_from([*NAMES, "unknown"]),
        action=st.sampled_from([*AdapterAction]),
    )
    def manage(self, name: str, action: AdapterAction) -> None:
        try:
            info = self.store.manage(action, local(name))
        except ManyloraError:
            return
        assert action is not AdapterAction.EVICT or info.state in (AdapterState.ABSENT, AdapterState.FAILED)
        assert action is not AdapterAction.UNPIN or not info.is_pinned
        if action is AdapterAction.DELETE:
            assert info.is_deleted
            self.deleted.add(name)

    @rule(duration_s=st.sampled_from([0.1, 1.0, 6.0, 21.0]))
    def wait(self, duration_s: float) -> None:
        self.clock.advance(duration_s)

    @invariant()
    def pinned_adapters_are_never_evicted(self) -> None:
        for _, placed in self.pins:
            assert placed.digest in self.bank
            assert self.device.is_held(placed.digest)

    @invariant()
    def pins_leave_room(self) -> None:
        infos = self.store.infos()
        pinned = {info.digest: info.num_bytes for info in infos if info.is_pinned and info.digest}
        held = {one.held: self.device.num_bytes(one.held) for one in self.store._tracked if one.held is not None}
        assert sum((pinned | held).values()) <= BANK_BYTES or pinned.keys() != held.keys()
        assert sum(held.values()) <= BANK_BYTES * 3 // 4
        assert self.port.stats().pinned == len(held)
        assert all(self.device.is_held(digest) for digest in held)

    @invariant()
    def an_idle_store_has_nothing_to_do(self) -> None:
        assert not (self.store._is_idle and self.store._has_work())

    @invariant()
    def budgets_are_never_exceeded(self) -> None:
        stats = self.port.stats()
        assert stats.bank_bytes_used <= stats.bank_bytes_total == BANK_BYTES
        assert stats.disk_bytes_used <= DISK_BYTES
        placed_bytes = sum(facts.body_bytes for digest, (_, facts) in self.facts.items() if digest in self.bank)
        read = [digest for digest in self.reader.reads if self.device.is_moving(digest)]
        read_bytes = sum(self.facts[digest][1].body_bytes for digest in read)
        placing = {} if self.placements is None else self.placements.placing
        placing_bytes = sum(self.facts[digest][1].body_bytes for digest in placing)
        host = self.device.host
        if host is None:
            assert placed_bytes + read_bytes <= stats.bank_bytes_used
            assert (stats.in_host, stats.host_bytes_used) == (0, 0)
        else:
            assert stats.host_bytes_used <= HOST_BYTES
            # A placement counts until the poll that takes it over.
            assert placed_bytes + placing_bytes == stats.bank_bytes_used
            host_bytes = sum(self.facts[digest][1].body_bytes for digest in host)
            assert host_bytes + read_bytes <= stats.host_bytes_used
            assert stats.in_host == len(host)

    @invariant()
    def bank_rows_are_conserved(self) -> None:
        placed = [name for digest, (name, _) in self.facts.items() if digest in self.bank]
        rows = sum(int(self.bank[digest].table[:, :, 2].sum()) for digest in self.facts if digest in self.bank)
        assert rows == sum(num_rows(name) for name in placed)
        assert len(self.bank) == len(placed)
        assert sum(self.device.shares._bytes.values()) == self.device.used_bytes

    def teardown(self) -> None:
        """At rest nothing is left: every pin given back, every load ended, every byte accounted for."""
        for _, placed in self.pins:
            self.port.unpin(placed)
        self.pins.clear()
        for name in NAMES:
            with suppress(AdapterNotFound):
                self.store.manage(AdapterAction.UNPIN, local(name))
        self.port.poll()
        while self.port.is_busy:
            for number in list(self.ingest.jobs):
                self.ingest.fail(number, AdapterCorrupt("end"))
            self._finish_all()
            self.port.poll()
        self.port.poll()
        placed_bytes = sum(facts.body_bytes for digest, (_, facts) in self.facts.items() if digest in self.bank)
        assert self.device.used_bytes == placed_bytes
        kept = [facts for digest, (_, facts) in self.facts.items() if self.disk.facts(digest) is not None]
        names_bytes = sum(path.stat().st_size for path in self.disk.folder.glob("*.name"))
        assert self.disk.used_bytes == sum(facts.file_bytes for facts in kept) + names_bytes
        for digest, (name, _) in self.facts.items():
            if name in self.deleted:
                assert digest not in self.bank
                assert self.device.host is None or digest not in self.device.host
                assert self.disk.facts(digest) is None
        self.replace("a0")
        self._can_still_serve()
        self.store.close()
        shutil.rmtree(self.folder)

    def _finish_all(self) -> None:
        for digest in list(self.reader.reads):
            self.reader.finish(self.facts[digest][1], num_rows(self.facts[digest][0]))
        if self.placements is not None:
            for digest in list(self.placements.placing):
                self.placements.finish(digest)

    def _can_still_serve(self) -> None:
        """Whatever happened before, a good adapter is soon on the device."""
        self.clock.advance(100.0)
        for _ in range(8):
            self.port.want(local("a0"))
            self.port.poll()
            for number, job in list(self.ingest.jobs.items()):
                facts = facts_of(job.ref.id, job.stamp)
                self.facts[facts.digest] = (job.ref.id, facts)
                self.ingest.finish(number, facts)
            self._finish_all()
        assert self.port.want(local("a0")) is AdapterState.ON_DEVICE


def test_bounds_fit_the_test() -> None:
    assert largest_file_bytes(max(BODY_BYTES), TINY, "bfloat16") < DISK_BYTES / 2


class TwoMemoryStoreMachine(StoreMachine):
    """The same store beside a device with memory of its own: adapters reach it in two hops."""

    def new_placements(self) -> TwoMemoryBank:
        return TwoMemoryBank(BANK_BYTES)

    @invariant()
    def what_the_device_alone_has_is_in_host(self) -> None:
        """Nothing that could return to the device in one copy is given up while it has no other copy."""
        assert self.device.host is not None
        for digest in self.facts:
            if digest in self.bank and self.disk.facts(digest) is None:
                assert digest in self.device.host


TestStoreLaws = StoreMachine.TestCase
TestTwoMemoryStoreLaws = TwoMemoryStoreMachine.TestCase
TestStoreLaws.settings = TestTwoMemoryStoreLaws.settings = settings(stateful_step_count=50)
