"""The ratios of one comparison with other servers, from figures of known rates."""

import dataclasses

from benchmarks.serving.servers import MAX_TOKENS
from benchmarks.serving.versus import LONG, TRIAGE, ratios

from manylora.bench.load import Figures, figures_of
from manylora.bench.workloads import WORKLOADS


def rates(*tokens_per_s: float) -> list[Figures]:
    """Return the figures of rounds in which a server wrote so many tokens a second."""
    nothing = figures_of([], 0.0, 1.0)
    return [dataclasses.replace(nothing, output_tokens_per_s=rate) for rate in tokens_per_s]


def test_l1_compares_tokens_of_prompts() -> None:
    # 10 requests of 2,048 + 32 tokens a second beside 256 of 100 + 10: 20,480 tokens of prompts beside 25,600.
    sides = {LONG.label: {"manylora": rates(320, 320), "llama.cpp": rates(160, 80)}, TRIAGE.label: {}}
    sides[TRIAGE.label]["manylora"] = rates(2560, 2560)
    found = ratios(sides)
    assert found["L1 long, base: prompt tokens/s ÷ triage's"] == {"min": 0.8, "median": 0.8, "max": 0.8}
    assert found["L1 long, base: prompt tokens/s ÷ llama.cpp's"] == {
        "min": 2.0,
        "median": 2.67,
        "max": 4,
    }
    assert not any(name.startswith("S1 long") for name in found)


def test_l1_needs_both_workloads() -> None:
    assert ratios({TRIAGE.label: {"manylora": rates(100)}}) == {}
    assert ratios({LONG.label: {"manylora": rates(100)}}) == {}


def test_a_peer_that_wrote_nothing_is_infinitely_far() -> None:
    sides = {LONG.label: {"manylora": rates(100), "llama.cpp": rates(0)}}
    assert ratios(sides) == {"L1 long, base: prompt tokens/s ÷ llama.cpp's": {"median": float("inf")}}


def test_a_prompt_of_every_workload_fits_a_peers_stream() -> None:
    assert all(work.prompt + work.output <= MAX_TOKENS for work in WORKLOADS.values())
