"""F1 and F2 without a server: each condition has as many rounds, and the figures are ratios of 99th percentiles."""

from collections.abc import Sequence
from typing import Any

import pytest
from benchmarks.faults import fairness
from benchmarks.faults.fairness import Round, isolation


@pytest.mark.parametrize(("requests", "is_told"), [(30, True), (60, False)])
def test_the_idle_machine_has_a_share_of_every_round(
    requests: int, is_told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds: dict[str, list[int]] = {"idle": [], "flood": [], "neighbours": []}

    async def play(
        site: Any, quiet: Sequence[tuple[str, float]], flood_per_s: float, seconds: float, seed: int
    ) -> Round:
        name = "flood" if flood_per_s else "idle" if len(quiet) == 1 else "neighbours"
        seeds[name].append(seed)
        took_ms = {"idle": 100.0, "flood": 250.0, "neighbours": 1000.0}[name]
        return Round([(float(second), took_ms) for second in range(requests)], 14.0)

    monkeypatch.setattr(fairness, "play", play)
    site: Any = None  # only `play` reaches for it
    found: Any = isolation(site, 0.4, 70.0, 2)
    assert seeds == {"idle": [0, 1], "flood": [0, 1], "neighbours": [0, 1]}
    assert found["first_token_ms"]["idle"]["count"] == found["first_token_ms"]["flood"]["count"] == 2 * requests
    assert found["to_idle"] == {"median": 2.5, "low": 2.5, "high": 2.5}
    assert found["F1"]["median"] == 0.25
    assert [at for at, _ in found["firsts"]["idle"]] == [at for at, _ in found["firsts"]["flood"]]
    assert ("ask for more --seconds" in capsys.readouterr().out) == is_told
