"""The simulated engine with the real adapter store, on loaders whose time is the test's."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from manylora.adapter_ref import SourceName
from manylora.adapters.banks.bank import Bank
from manylora.adapters.banks.devices import CpuBank
from manylora.adapters.ingest.fakes import ManualIngest
from manylora.adapters.packing.image import ImageFacts
from manylora.adapters.store.store import Store
from manylora.adapters.tiers.disk import DiskTier
from manylora.adapters.tiers.fakes import ManualReader, TwoMemoryBank
from manylora.clock import ManualClock
from manylora.config.groups.adapters import AdaptersConfig
from manylora.engine.events import StepEvents
from manylora.engine.scheduling.blocks import BlockPool
from manylora.engine.scheduling.lending import KvLender
from manylora.engine.scheduling.retention import Retention
from manylora.ids import Digest
from tests.adapters.adapter_files import TINY
from tests.adapters.fake_source import FakeSource, facts_of, num_rows
from tests.engine.simulation.world import World

STEP_S = 0.02


@dataclass
class SimulatedKv:
    """A KV cache without keys and values."""

    num_blocks: int
    block_size: int
    num_bytes: int

    def discard(self, first: int, stop: int) -> bool:
        return True


class StoredWorld(World):
    """Loads end at the next step; a read ends `read_s` after it began. A step takes `STEP_S`."""

    def __init__(
        self,
        folder: Path,
        *,
        bank_bytes: int,
        host_bytes: int = 0,
        read_s: float = 0.0,
        lent_block_bytes: int = 0,
        **world: Any,
    ) -> None:
        """With `lent_block_bytes`, so large are the KV blocks, and idle ones are lent to the bank.

        With `host_bytes`, the device has memory of its own, and placements end at the step after the next.
        """
        self.ingest, self.reader = ManualIngest(), ManualReader()
        self.placements = TwoMemoryBank(bank_bytes) if host_bytes else None
        self.bank: Bank = CpuBank(bank_bytes) if self.placements is None else self.placements
        clock = ManualClock()
        self.adapters = Store(
            shape=TINY,
            dtype="bfloat16",
            sources={SourceName.LOCAL: FakeSource()},
            ingest=self.ingest,
            reader=self.reader,
            disk=DiskTier(folder, 40_000, dtype="bfloat16", base_fingerprint=TINY.fingerprint),
            bank=self.bank,
            clock=clock,
            config=AdaptersConfig(max_bytes=10_000, bank_bytes=bank_bytes, host_bytes=host_bytes),
        )
        self.read_s = read_s
        self._facts: dict[Digest, tuple[str, ImageFacts]] = {}
        self._placing: set[Digest] = set()  # since the last step
        self._reading_since_s: dict[Digest, float] = {}
        self.num_reads = 0
        if lent_block_bytes:
            most_blocks = Retention(
                block_size=world["block_size"], max_rows=world.get("max_rows", 32), window=world.get("sliding_window")
            ).most_blocks(world["max_model_len"])
            world["open_lender"] = partial(self._open_lender, lent_block_bytes, most_blocks)
        super().__init__(store=self.adapters, clock=clock, **world)

    def _open_lender(self, block_bytes: int, kept_blocks: int, pool: BlockPool) -> KvLender:
        kv = SimulatedKv(pool.num_blocks, pool.block_size, pool.num_blocks * block_bytes)
        lender = KvLender(pool, kv, kept_blocks=kept_blocks)
        self.adapters.borrow_from(lender)
        return lender

    def step(self) -> StepEvents:
        self.turn_loaders()
        events = super().step()
        self.clock.advance(STEP_S)
        return events

    def close(self) -> None:
        self.adapters.close()

    def turn_loaders(self) -> None:
        """Let the loads end that are under way, and the reads and placements whose time has come."""
        if self.placements is not None:
            for digest in self._placing:
                self.placements.finish(digest)
            self._placing = set(self.placements.placing)
        for number, job in list(self.ingest.jobs.items()):
            facts = facts_of(job.ref.id, job.stamp)
            self._facts[facts.digest] = (job.ref.id, facts)
            self.ingest.finish(number, facts)
        now_s = self.clock.monotonic_s()
        for digest in list(self.reader.reads):
            if now_s - self._reading_since_s.setdefault(digest, now_s) >= self.read_s:
                del self._reading_since_s[digest]
                name, facts = self._facts[digest]
                self.reader.finish(facts, num_rows(name))
                self.num_reads += 1
