"""The simulation of a fleet: known queues, conserved requests, and true tiers."""

import argparse
import json
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from benchmarks.fleet.affinity import Affinity
from benchmarks.fleet.baselines import BoundedHashing, Multiplexing, PowerOfChoices, Random
from benchmarks.fleet.load_share import LoadShare
from benchmarks.fleet.min_cost_flow import Assignment
from benchmarks.fleet.policy import Policy
from benchmarks.fleet.profile import Profile, card, cpu
from benchmarks.fleet.run import own_setting, run_compare
from benchmarks.fleet.traffic import Crowd, Traffic, catalogue, traffic
from benchmarks.fleet.world import World
from numpy.typing import NDArray

from manylora.cluster.views import Tier

POLICIES = (Affinity, LoadShare, BoundedHashing, PowerOfChoices, Multiplexing, Random)
SMALL = replace(
    card(), prompt=100, output=20, rows=8, bank_bytes=2_000_000_000, host_bytes=4_000_000_000, disk_bytes=20_000_000_000
)


def one_at_a_time(step_s: float) -> Profile:
    """A replica whose service time is the number of output tokens × `step_s`: a queue with one server."""
    return replace(SMALL, step_s=step_s, decode_row_s=0.0, prompt_row_s=0.0, rows=1, chunk=8)


def waits(outputs: NDArray[np.int64], rate: float, seed: int) -> float:
    """Return the mean wait before service of requests of these sizes, 1 ms a token, on one replica."""
    profile = one_at_a_time(0.001)
    rng = np.random.default_rng(seed)
    at = np.cumsum(rng.exponential(1 / rate, len(outputs)))
    load = Traffic(at_s=at, adapters=0 * outputs, prompts=0 * outputs + 1, outputs=outputs)
    world = World(profile, catalogue(1, 1.0, profile, 0), Random, {}, 1, 0)
    found = world.run(load, rate, 0.0, float(at[-1]), drain_s=1000.0)
    assert found.unfinished == 0
    # The first token comes at the end of its first step.
    return float(np.mean(found.first_s())) - 0.001


def test_exponential_services_wait_as_in_m_m_1() -> None:
    rng = np.random.default_rng(1)
    outputs = np.maximum(1, np.round(rng.exponential(30.0, 10_000))).astype(np.int64)
    rate, mu = 20.0, 1 / (float(outputs.mean()) * 0.001)
    rho = rate / mu
    assert waits(outputs, rate, 2) == pytest.approx(rho / (mu - rate), rel=0.1)


def test_equal_services_wait_as_in_m_d_1() -> None:
    rate, mu = 35.0, 50.0
    rho = rate / mu
    assert waits(np.full(10_000, 20), rate, 3) == pytest.approx(rho / (2 * mu * (1 - rho)), rel=0.1)


@pytest.mark.parametrize("kind", POLICIES)
def test_every_request_ends_once_although_replicas_die(kind: type[Policy]) -> None:
    adapters = catalogue(200, 1.0, SMALL, 0)
    load = traffic(adapters, SMALL, 250.0, 4.0, 0, spread=0.5)
    world = World(SMALL, adapters, kind, {}, 5, 0)
    world.events.at(2.0, lambda _: world.kill([1, 3]))
    found = world.run(load, 250.0, 0.0, 4.0, drain_s=200.0)
    assert len(found.calls) == len(load.at_s)
    assert found.unfinished == 0
    assert found.retried > 0
    assert sum(call.end_s < 0 for call in found.calls) == found.cut
    assert all(call.first_s >= call.at_s for call in found.calls)
    assert all(call.replica not in (1, 3) for call in found.calls if call.at_s > 2.0)
    assert sum(found.hits(tier) for tier in Tier) == pytest.approx(1.0)


def test_equal_seeds_give_equal_runs() -> None:
    adapters = catalogue(200, 1.0, SMALL, 0)
    load = traffic(adapters, SMALL, 60.0, 4.0, 0)
    runs = [World(SMALL, adapters, Affinity, {}, 4, 0).run(load, 60.0, 1.0, 4.0).figures() for _ in range(2)]
    assert runs[0] == runs[1]


def test_a_load_takes_the_measured_time_of_its_tier() -> None:
    adapters = catalogue(1, 1.0, SMALL, 0)
    world = World(SMALL, adapters, Random, {}, 1, 0)
    load = Traffic(at_s=np.array([0.0]), adapters=np.array([0]), prompts=np.array([10]), outputs=np.array([1]))
    world._set_next(load, 0)
    world.events.run(60.0)
    size = int(adapters.num_bytes[0])
    step_s = SMALL.step_s + 10 * SMALL.prompt_row_s
    assert world.calls[0].first_s == pytest.approx(SMALL.rates.load_s(size)[Tier.STORE] + step_s)
    assert world.replicas[0].tier("adapter-0") is Tier.DEVICE
    assert world.replicas[0].counts.moved_bytes == {Tier.DEVICE: size, Tier.HOST: size, Tier.DISK: size, Tier.STORE: 0}


def test_a_prefetch_ends_in_its_tier_unless_a_request_comes() -> None:
    world = World(SMALL, catalogue(2, 1.0, SMALL, 0), Random, {}, 1, 0)
    replica = world.replicas[0]
    replica.prefetch("adapter-0", 20_000_000, Tier.DISK)
    world.events.run(10.0)
    assert replica.tier("adapter-0") is Tier.DISK
    replica.prefetch("adapter-1", 20_000_000, Tier.HOST)
    replica.keep({"adapter-1": 20_000_000})
    world.events.run(20.0)
    assert replica.tier("adapter-1") is Tier.DEVICE
    assert replica.bank.is_pinned("adapter-1")


def test_a_flow_of_least_cost_is_the_best_of_all_assignments() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        costs = rng.integers(-5, 20, (4, 3)).astype(float)
        copies = rng.integers(1, 3, 4)
        slots = np.array([2, 2, 3])
        solved = Assignment(costs, slots)
        placed = [sum(solved.add(row) for _ in range(count)) for row, count in enumerate(copies.tolist())]
        assert np.all(solved.is_placed.sum(axis=0) + solved.free == slots)
        best = _least(costs, placed, slots)
        assert costs[solved.is_placed].sum() == best


def _least(costs: NDArray[np.float64], placed: list[int], slots: NDArray[np.int64]) -> float:
    rows = [[set(order[:count]) for order in permutations(range(costs.shape[1]))] for count in placed]
    found = [
        sum(costs[row, place] for row, places in enumerate(chosen) for place in places)
        for chosen in product(*rows)
        if np.all(np.bincount([place for places in chosen for place in places], minlength=3) <= slots)
    ]
    return float(min(found))


def test_a_crowd_is_added_to_the_poisson_stream() -> None:
    adapters = catalogue(100, 1.0, SMALL, 0)
    crowd = Crowd(start_s=5.0, end_s=10.0, rate=100.0, adapter=99)
    load = traffic(adapters, SMALL, 50.0, 20.0, 0, crowd=crowd)
    inside = (load.at_s >= 5.0) & (load.at_s < 10.0)
    assert np.all(np.diff(load.at_s) >= 0)
    assert 400 < (load.adapters[inside] == 99).sum() < 620
    assert 800 < (load.adapters != 99).sum() < 1200


def test_a_day_swings_around_its_mean() -> None:
    load = traffic(catalogue(10, 1.0, SMALL, 0), SMALL, 100.0, 100.0, 0, swing=0.8)
    night, noon = (load.at_s < 20).sum(), ((load.at_s > 40) & (load.at_s < 60)).sum()
    assert 9000 < len(load.at_s) < 11_000
    assert noon > 4 * night


def test_the_measured_profile_is_of_the_result_files() -> None:
    profile = cpu()
    assert 0.2 < profile.request_s < 0.5
    assert all(value > 0 for value in (profile.step_s, profile.decode_row_s, profile.prompt_row_s))


def test_a_comparison_runs_the_setting_of_the_command_line(tmp_path: Path) -> None:
    found = {"own": {"stray": 2.0}, "tried": {"random": [{"settings": {}, "saturated": 300.0}]}}
    (tmp_path / "sweep.json").write_text(json.dumps(found), encoding="utf-8")
    options = argparse.Namespace(
        profile="card",
        replicas=2,
        adapters=50,
        zipf=1.0,
        spread=0.0,
        requests=40,
        load=0.1,
        seeds=[0],
        sweep=tmp_path / "sweep.json",
        own=own_setting("stray=16,copy_share=0.05,spares=2"),
        policies=["manylora"],
    )
    assert run_compare(options)["runs"]["manylora|own|0"]["settings"] == {"stray": 16, "copy_share": 0.05, "spares": 2}
    options.own = None
    assert run_compare(options)["runs"]["manylora|own|0"]["settings"] == {"stray": 2.0}
