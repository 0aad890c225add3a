"""A store around a folder of adapters, with a clock that the test moves."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from manylora import errors
from manylora.adapter_ref import SourceName
from manylora.adapter_state import AdapterHandle, AdapterState
from manylora.adapters.banks.bank import Bank
from manylora.adapters.banks.devices import CpuBank
from manylora.adapters.ingest.process import InlineIngest
from manylora.adapters.jobs import Ingest, IngestSettings
from manylora.adapters.packing.image import ImageFacts
from manylora.adapters.sources.local import LocalSource
from manylora.adapters.store.store import Store
from manylora.adapters.tiers.disk import DiskTier, ingest_rules
from manylora.adapters.tiers.fakes import TwoMemoryBank
from manylora.adapters.tiers.reading import InlineReader, Reader
from manylora.clock import ManualClock
from manylora.config.groups.adapters import AdaptersConfig
from manylora.ids import Digest
from tests.adapters.adapter_files import TINY, config_bytes, local, lora_tensors, packed, safetensors_bytes

IMAGE_BYTES = packed(config_bytes(), safetensors_bytes(lora_tensors()), dtype="bfloat16").body.nbytes
CONFIG = AdaptersConfig(
    disk_bytes=1 << 20, bank_bytes=3 * IMAGE_BYTES, load_timeout_s=30.0, negative_cache_s=10.0, parallel_loads=4
)


class House:
    """A store around a folder of adapters; `turn` is one step of an engine."""

    def __init__(
        self,
        folder: Path,
        config: AdaptersConfig = CONFIG,
        ingest: Ingest | None = None,
        reader: Reader | None = None,
        base_dir: str = "",
        *,
        bank: TwoMemoryBank | None = None,
    ) -> None:
        self.root = folder / "root"
        self.root.mkdir(exist_ok=True)
        self.clock = ManualClock()
        self.disk = DiskTier(
            folder / "disk",
            config.disk_bytes,
            dtype="bfloat16",
            base_fingerprint=TINY.fingerprint,
            rules=ingest_rules(config),
        )
        settings = IngestSettings(
            shape=TINY,
            roots=(str(self.root),),
            folder=str(self.disk.folder),
            dtype="bfloat16",
            max_rank=config.max_rank,
            max_bytes=config.max_bytes,
            parallel_loads=config.parallel_loads,
            is_strict=config.strict,
            harmless_fields=config.harmless_fields,
            base_dir=base_dir,
        )
        self.bank: Bank = CpuBank(config.bank_bytes) if bank is None else bank
        self.below = AdapterState.ON_DISK if bank is None else AdapterState.IN_HOST  # where the device evicts to
        self.store = Store(
            shape=TINY,
            dtype="bfloat16",
            sources={SourceName.LOCAL: LocalSource((self.root,))},
            ingest=ingest or InlineIngest(settings),
            reader=reader or InlineReader(),
            disk=self.disk,
            bank=self.bank,
            clock=self.clock,
            config=config,
        )

    def turn(self, *names: str) -> None:
        for name in names:
            self.store.want(local(name))
        self.store.poll()

    def placed(self, name: str, turns: int = 6) -> AdapterHandle | None:
        """The adapter, pinned, as soon as that is possible; None when it is not or has failed."""
        for _ in range(turns):
            self.turn(name)
            place = self.store.pin(local(name))
            if place is not None or self.store.failure(local(name)) is not None:
                return place
        return None

    def image(self, placed: AdapterHandle) -> Tensor:
        """The weights of a version on the device."""
        return self.bank[placed.digest].image

    def error(self, name: str) -> errors.ManyloraError:
        assert self.placed(name) is None
        failure = self.store.failure(local(name))
        assert failure is not None
        return failure


def two_memories(folder: Path, config: AdaptersConfig = CONFIG) -> House:
    """A store on a device with memory of its own, and twice as much host memory."""
    bank = TwoMemoryBank(config.bank_bytes, is_prompt=True)
    return House(folder, replace(config, host_bytes=2 * config.bank_bytes), bank=bank)


def facts(name: str, body_bytes: int = IMAGE_BYTES) -> ImageFacts:
    return ImageFacts(Digest(name.encode().hex().ljust(64, "0")), "bfloat16", TINY.num_layers, body_bytes, 0)
