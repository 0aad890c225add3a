"""The folder of a server's copies of pushed adapters: what a start, an end and an erasure leave."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from manylora.errors import InvalidParameter
from manylora.ids import TenantId
from manylora.server.names.pushed_adapters import CONFIG_KEY, PushCopies
from manylora.stored.pushes import PushFacts


def facts(version: int) -> PushFacts:
    return PushFacts(id=f"push-{version}", tenant=TenantId("acme"), name="tone", version=version, num_bytes=1)


def copied(copies: PushCopies, push: PushFacts, metadata: dict[str, str]) -> None:
    with copies.incoming() as incoming:
        incoming.weights.write_bytes(save({"weight": torch.zeros(2)}, metadata=metadata))
        copies.write_config(incoming)
        copies.publish(incoming, push)


def test_a_start_an_end_and_an_erasure_leave_no_file(tmp_path: Path) -> None:
    (tmp_path / "pushed" / "acme" / "old" / "7").mkdir(parents=True)
    copies = PushCopies(tmp_path / "pushed")
    assert list(copies.root.iterdir()) == []
    for version in (1, 2):
        copied(copies, facts(version), {CONFIG_KEY: json.dumps({"r": version})})
    assert json.loads((copies.root / "acme" / "tone" / "2" / "adapter_config.json").read_text()) == {"r": 2}
    copies.erase(facts(1))
    assert [path.name for path in (copies.root / "acme" / "tone").iterdir()] == ["2"]
    copies.erase(facts(2))
    copies.erase(facts(2))
    assert list(copies.root.iterdir()) == []
    copies.close()
    assert not copies.root.exists()


def test_a_push_that_is_not_published_leaves_no_file(tmp_path: Path) -> None:
    copies = PushCopies(tmp_path / "pushed")
    with pytest.raises(InvalidParameter, match=CONFIG_KEY):
        copied(copies, facts(1), {"format": "pt"})
    assert list(copies.root.iterdir()) == []


def test_a_push_whose_copy_waits_for_its_end_is_copied_again_without_harm(tmp_path: Path) -> None:
    """A request that hears of a push before its deletion copies it while the first copy is still there."""
    copies = PushCopies(tmp_path / "pushed")
    for _ in range(2):
        copied(copies, facts(1), {CONFIG_KEY: "{}"})
    with pytest.raises(OSError, match="not empty"):  # of a control plane that counts versions anew
        copied(copies, replace(facts(1), id="push-other"), {CONFIG_KEY: "{}"})
    copies.erase(facts(1))
    assert list(copies.root.iterdir()) == []
    copied(copies, facts(1), {CONFIG_KEY: "{}"})
    assert [path.name for path in (copies.root / "acme" / "tone").iterdir()] == ["1"]
