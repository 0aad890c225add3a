"""Runs of the benchmark that kills everything: the law of docs/metering.md, to the token, on both transports."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from manylora.bench.faults.chaos import run_chaos
from manylora.bench.faults.chaos_verdict import frames_lost
from manylora.bench.faults.counted_engine import EngineCount
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.tiny import make_base


@pytest.mark.long  # each half a minute
@pytest.mark.parametrize(
    ("transport", "kills"),
    [
        ("process", {"edge": 5, "engine": 5, "control": 5}),
        ("thread", {"edge": 5, "control": 5}),
    ],
)
def test_kills_at_random_moments_lose_one_frame_at_most_and_double_no_token(
    tmp_path: Path, transport: str, kills: dict[str, int]
) -> None:
    make_base(tmp_path / "base", vocab_size=330)
    save_byte_level(tmp_path / "base")
    settings = ("adapters.hub_endpoint=", f"adapters.roots={tmp_path}")
    num_kills = sum(kills.values())
    found = run_chaos(
        tmp_path,
        str(tmp_path / "base"),
        kills=num_kills,
        seed=3,
        vocab=330,
        busy=2,
        settings=settings,
        transport=transport,
    )
    assert found.holds, found
    assert found.kills == kills
    assert json.loads(json.dumps(asdict(found)))["by_reason"] == found.by_reason
    assert 0 < found.received_tokens <= found.charged_tokens <= found.ledger_tokens <= found.engine_tokens
    assert found.requests > 20


@pytest.mark.parametrize(
    ("frames", "is_last_sent", "recorded", "lost"),
    [
        ([1, 2, 1], True, 4, 0),
        ([1, 2, 1], True, 3, 1),
        ([1, 2, 1], True, 1, 2),
        ([1, 2, 1], False, 3, 0),
        ([1, 2, 1], False, 1, 1),
        ([1, 2, 1], False, 4, 0),
        ([1, 2, 1], True, 2, None),
        ([1, 2, 1], True, 5, -1),
        ([], True, 0, 0),
        ([], True, 1, -1),
    ],
)
def test_lost_frames_are_counted_from_the_end(
    frames: list[int], is_last_sent: bool, recorded: int, lost: int | None
) -> None:
    assert frames_lost(EngineCount(frames, is_last_sent), recorded) == lost
