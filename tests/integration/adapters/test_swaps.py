"""Names whose content changes all the time (figure R3 in small): a reply is always that of the content at its time."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from manylora.adapters.tiers.disk import DiskTier
from manylora.bench.faults.swaps import KINDS, NUM_CONTENTS, Swapper
from manylora.engine.scheduling import pins


@pytest.fixture
def swapper(tmp_path: Path) -> Iterator[Swapper]:
    made = Swapper(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("operations", [200, pytest.param(2000, marks=pytest.mark.long)])
def test_every_reply_is_that_of_the_content_its_name_had(swapper: Swapper, operations: int) -> None:
    assert swapper.distinct_replies == NUM_CONTENTS + 1
    found = swapper.run(operations)
    assert found.mismatches == []
    assert found.replies["tokens"] > operations // 2
    assert found.cached_tokens > 0
    assert found.evictions > 0
    assert found.loads > NUM_CONTENTS
    assert len(found.operations) == 2 * len(set(KINDS))


def test_an_old_version_in_place_of_a_new_one_would_be_seen(swapper: Swapper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiskTier, "name_key", lambda self, ref, stamp: f"{abs(hash(str(ref))):040x}"[:40])
    assert swapper.run(100).mismatches


@pytest.mark.long
def test_keys_and_values_of_another_adapter_would_be_seen(swapper: Swapper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "prefix_root", lambda digest, salt: b"one for all")
    assert swapper.run(100).mismatches
