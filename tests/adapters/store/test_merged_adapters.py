"""Merged adapters in the store: one load of their own, by their members' newest versions, for everyone who asks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manylora import errors
from manylora.adapter_ref import AdapterRef, SourceName, merged_ref
from manylora.adapter_state import AdapterHandle
from manylora.adapters.banks.devices import CpuBank
from manylora.adapters.ingest.process import InlineIngest
from manylora.adapters.jobs import IngestJob, IngestSettings, job_from_json
from manylora.adapters.sources.local import LocalSource
from manylora.adapters.store.store import Store
from manylora.adapters.tiers.disk import DiskTier
from manylora.adapters.tiers.reading import InlineReader
from manylora.clock import ManualClock
from manylora.config.groups.adapters import AdaptersConfig
from manylora.merging import MergeRecipe, MergeStrategy
from tests.adapters.adapter_files import LAYERS, TINY, local, save_adapter

CONFIG = AdaptersConfig(disk_bytes=1 << 22, bank_bytes=1 << 20, max_rank=12, negative_cache_s=10.0)
CAT = MergeRecipe((0.7, -0.4), MergeStrategy.CAT)


class House:
    """A store of float32 images around a folder of adapters."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.root.mkdir()
        self.clock = ManualClock()
        disk = DiskTier(folder / "disk", CONFIG.disk_bytes, dtype="float32", base_fingerprint=TINY.fingerprint)
        settings = IngestSettings(
            shape=TINY,
            roots=(str(self.root),),
            folder=str(disk.folder),
            dtype="float32",
            max_rank=CONFIG.max_rank,
            max_bytes=CONFIG.max_bytes,
            parallel_loads=4,
        )
        self.store = Store(
            shape=TINY,
            dtype="float32",
            sources={SourceName.LOCAL: LocalSource((self.root,))},
            ingest=InlineIngest(settings),
            reader=InlineReader(),
            disk=disk,
            bank=CpuBank(CONFIG.bank_bytes),
            clock=self.clock,
            config=CONFIG,
        )

    def placed(self, ref: AdapterRef) -> AdapterHandle | None:
        for _ in range(8):
            self.store.want(ref)
            self.store.poll()
            place = self.store.pin(ref)
            if place is not None or self.store.failure(ref) is not None:
                return place
        return None

    def delta(self, ref: AdapterRef, layer: int = 1, projection: int = 0) -> np.ndarray[Any, Any]:
        """The change of one module's weight."""
        placed = self.placed(ref)
        assert placed is not None, self.store.failure(ref)
        weights = self.store.weights[placed.digest]
        sizes = TINY.projections[projection]
        assert sizes is not None
        offset_a, offset_b, rank = (int(value) for value in weights.table[layer, projection])
        body = weights.image.numpy()
        a = body[offset_a : offset_a + rank * sizes[1]].reshape(rank, sizes[1])
        b = body[offset_b : offset_b + rank * sizes[0]].reshape(rank, sizes[0])
        return np.asarray(b.T @ a)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    save_adapter(made.root / "a", rank=4, seed=1)
    save_adapter(made.root / "b", rank=6, seed=2)
    yield made
    made.store.close()


def both(recipe: MergeRecipe = CAT) -> AdapterRef:
    return merged_ref([local("a"), local("b")], recipe)


def test_a_merge_is_the_weighted_sum_of_its_members(house: House) -> None:
    for layer in range(LAYERS):
        expected = 0.7 * house.delta(local("a"), layer) - 0.4 * house.delta(local("b"), layer)
        np.testing.assert_allclose(house.delta(both(), layer), expected, atol=1e-5)
    assert house.store.stats().on_device == 3


def test_the_same_merge_is_one_adapter_and_another_recipe_is_another(house: House) -> None:
    digests = [
        house.placed(both(MergeRecipe(weights, MergeStrategy.CAT))) for weights in ((1.0, 1.0), (1.0, 1.0), (1.0, 0.5))
    ]
    names = [None if placed is None else placed.digest for placed in digests]
    assert names[0] == names[1]
    assert names[0] != names[2]
    assert None not in names


def test_a_new_version_of_a_member_makes_a_new_merge(house: House) -> None:
    old = house.placed(both())
    save_adapter(house.root / "b", rank=6, seed=9)
    house.clock.advance(2)
    new = house.placed(both())
    assert old is not None
    assert new is not None
    assert old.digest != new.digest
    np.testing.assert_allclose(
        house.delta(both()), 0.7 * house.delta(local("a")) - 0.4 * house.delta(local("b")), atol=1e-5
    )


def test_a_missing_member_is_named(house: House) -> None:
    ref = merged_ref([local("a"), local("nowhere")], CAT)
    assert house.placed(ref) is None
    failure = house.store.failure(ref)
    assert isinstance(failure, errors.AdapterNotFound)
    assert "nowhere" in failure.message


def test_members_that_do_not_fit_together_are_refused(house: House) -> None:
    ref = both(MergeRecipe((1.0, 1.0), MergeStrategy.LINEAR))
    assert house.placed(ref) is None
    failure = house.store.failure(ref)
    assert isinstance(failure, errors.AdapterMergeInvalid)
    assert failure.message.startswith("unable to merge adapters a,b: `linear` needs equal ranks")


def test_a_merged_rank_over_the_limit_is_refused(house: House) -> None:
    ref = merged_ref([local("a"), local("b"), local("a")], MergeRecipe((1.0, 1.0, 1.0), MergeStrategy.CAT))
    assert house.placed(ref) is None
    failure = house.store.failure(ref)
    assert isinstance(failure, errors.AdapterTooLarge)
    assert "rank 14; the limit is 12" in failure.message


def test_a_merge_survives_the_way_to_the_ingest_process() -> None:
    job = IngestJob(3, both(MergeRecipe((1.0, 0.1), MergeStrategy.DARE_TIES, 0.25)), '["x","y"]', "key")
    assert job_from_json(job.to_json()) == job
