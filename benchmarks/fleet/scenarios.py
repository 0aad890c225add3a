"""The scenarios of the simulation: a steady load, saturation, a flash crowd, deaths, and the time of one ranking."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.fleet.policy import HEARTBEAT_S
from benchmarks.fleet.profile import Profile
from benchmarks.fleet.settings import KINDS, Settings
from benchmarks.fleet.traffic import Catalogue, Crowd, catalogue, traffic
from benchmarks.fleet.world import Result, World
from manylora.clock import SystemClock
from manylora.cluster.cost import CostRules, TierRates
from manylora.cluster.ranking import rank
from manylora.cluster.views import FleetView, Heartbeat, Tier, Want
from manylora.fleet.edge.router import ReplicaRouter
from manylora.fleet.wire.link_messages import HostBeat
from manylora.ids import Digest, ReplicaId

WARM_SHARE = 0.25
"""Part of a run that fills queues and tiers before requests count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The fleet and the catalogue of a scenario. `requests` are those of a whole run."""

    profile: Profile
    replicas: int
    adapters: int
    zipf: float
    spread: float
    requests: int

    def catalogue(self, seed: int) -> Catalogue:
        return catalogue(self.adapters, self.zipf, self.profile, seed)

    def mean_bytes(self) -> float:
        return float(self.catalogue(0).num_bytes.mean())

    def plain_capacity(self) -> float:
        """Return the requests a second of all replicas with all rows running and every adapter there."""
        return self.replicas / self.profile.request_s

    def world(self, name: str, settings: Settings, seed: int) -> World:
        return World(self.profile, self.catalogue(seed), KINDS[name], settings, self.replicas, seed)


def steady(shape: Shape, name: str, settings: Settings, rate: float, seed: int) -> Result:
    """Run a constant load and return what came after the warm-up."""
    world = shape.world(name, settings, seed)
    seconds = shape.requests / rate
    load = traffic(world.adapters, shape.profile, rate, seconds, seed, spread=shape.spread)
    return world.run(load, rate, WARM_SHARE * seconds, seconds, drain_s=60.0)


def saturated(shape: Shape, name: str, settings: Settings, seed: int) -> float:
    """Return the requests that end in a second while half as many again as a plain fleet's capacity come."""
    world = shape.world(name, settings, seed)
    rate = 1.5 * shape.plain_capacity()
    seconds = shape.requests / rate
    load = traffic(world.adapters, shape.profile, rate, seconds, seed, spread=shape.spread)
    world.run(load, rate, 0.0, seconds)
    ends = np.array([call.end_s for call in world.calls if call.end_s >= 0])
    return float(((ends > seconds / 2) & (ends <= seconds)).sum() / (seconds / 2))


def crowd(shape: Shape, name: str, settings: Settings, seed: int, share: float = 0.25) -> dict[str, Any]:
    """Let a crowd of `share` of the capacity come for the least wanted adapter of a fleet with half its load.

    Returns, for windows of a heartbeat from the crowd's begin on, first tokens of its requests ÷ its arrivals in a
    window; and the number of the first window with 0.9 or more.
    """
    world = shape.world(name, settings, seed)
    rate, more = 0.5 * shape.plain_capacity(), share * shape.plain_capacity()
    begin, end = 30.0, 50.0
    wanted = Crowd(start_s=begin, end_s=end, rate=more, adapter=shape.adapters - 1)
    load = traffic(world.adapters, shape.profile, rate, end, seed, crowd=wanted, spread=shape.spread)
    world.run(load, rate, begin, end, drain_s=60.0)
    adapter = world.names[-1]
    crowding = [call for call in world.calls if call.adapter == adapter and call.at_s >= begin]
    edges = np.arange(begin, end + HEARTBEAT_S / 2, HEARTBEAT_S)
    served, _ = np.histogram([call.first_s for call in crowding], edges)
    series = (served / (more * HEARTBEAT_S)).round(3).tolist()
    reached = next((number + 1 for number, value in enumerate(series) if value >= 0.9), -1)
    first = np.array([call.first_s - call.at_s for call in crowding])
    return {
        "policy": name,
        "seed": seed,
        "heartbeats_to_0.9": reached,
        "replicas": len({call.replica for call in crowding}),
        "first_p99_ms": round(1e3 * float(np.quantile(first, 0.99)), 1),
        "series": series[:20],
    }


def deaths(shape: Shape, name: str, settings: Settings, seed: int, share: float = 0.1) -> dict[str, Any]:
    """Kill a share of the replicas at once under 0.7 of the capacity, and follow the device tier's hits."""
    world = shape.world(name, settings, seed)
    rate = 0.7 * shape.plain_capacity()
    begin, death, end = 30.0, 60.0, 150.0
    victims = np.random.default_rng([seed, 5]).choice(shape.replicas, max(1, round(share * shape.replicas)), False)
    load = traffic(world.adapters, shape.profile, rate, end, seed, spread=shape.spread)
    world.events.at(death, lambda _: world.kill(victims.tolist()))
    found = world.run(load, rate, begin, end, drain_s=60.0)
    at = np.array([call.at_s for call in found.calls])
    is_hit = np.array([call.tier is Tier.DEVICE for call in found.calls])
    before = float(is_hit[at < death].mean())
    windows = [round(float(is_hit[(at >= start) & (at < start + 5)].mean()), 4) for start in np.arange(death, end, 5.0)]
    # The windows are noisy: recovered is the first from which on the mean of all later requests is there.
    later = [float(is_hit[at >= start].mean()) for start in np.arange(death, end - 20, 5.0)]
    recovered = next((5.0 * number for number, value in enumerate(later) if value >= 0.98 * before), -1.0)
    return {
        "policy": name,
        "seed": seed,
        "killed": len(victims),
        "lost_before_first_token": found.unfinished,
        "sent_again": found.retried,
        "cut_after_first_token": found.cut,
        "hits_before": round(before, 4),
        "recovered_s": recovered,
        "series": windows,
    }


def routing(replicas: int, adapters: int, repeats: int = 2000) -> dict[str, Any]:
    """Measure a ranking over a view in which each adapter is on some replicas and the hottest on all, in µs."""
    view = FleetView("edge")
    rng = np.random.default_rng(0)
    names = [Digest(f"adapter-{number}") for number in range(adapters)]
    for number in range(replicas):
        held = {names[each]: Tier.DISK for each in rng.integers(0, adapters, 200).tolist()}
        held |= {names[each]: Tier.DEVICE for each in range(min(20, adapters))}
        view.apply(
            Heartbeat(
                replica=ReplicaId(f"replica-{number}"),
                epoch=1,
                backlog_tokens=float(rng.integers(0, 4000)),
                tokens_per_s=2e4,
                tiers=held,
            )
        )
    rules = CostRules(rates=TierRates(fixed_s=(0.0002, 0.001, 0.06), bytes_per_s=(44e9, 3e9, 2e8)))
    wants = [
        Want(digest=names[number], num_bytes=80_000_000, tokens=100.0)
        for number in (rng.zipf(1.2, repeats) % adapters).tolist()
    ]
    found: dict[str, Any] = {"replicas": replicas, "adapters": adapters}
    for label, most in (("first_four_us", 4), ("whole_order_us", None)):
        times = []
        for want in wants:
            begun = time.perf_counter()
            rank(want, view, rules, most)
            times.append(1e6 * (time.perf_counter() - begun))
        found[label] = _quantiles(times)
    return found | {"edge_us": _quantiles(_edge_us(replicas, adapters, wants))}


def _edge_us(replicas: int, adapters: int, wants: list[Want]) -> list[float]:
    """Return the times until an edge's own router names the first replica of each request, in µs."""
    router = ReplicaRouter("edge", SystemClock())
    rng = np.random.default_rng(0)
    for number in range(replicas):
        held = {f"adapter-{each}": int(Tier.DISK) for each in rng.integers(0, adapters, 200).tolist()}
        held |= {f"adapter-{each}": int(Tier.DEVICE) for each in range(min(20, adapters))}
        beat = HostBeat(float(rng.integers(0, 4000)), 2e4, 0, True, held, load_s=(0.002, 0.03, 0.6))
        router.take(f"replica-{number}", beat, is_whole=True)
    times = []
    for want in wants:
        begun = time.perf_counter()
        next(iter(router.order(want)))
        times.append(1e6 * (time.perf_counter() - begun))
    return times


def _quantiles(times: list[float]) -> dict[str, float]:
    return {name: round(float(np.quantile(times, q)), 1) for name, q in (("p10", 0.1), ("p50", 0.5), ("p99", 0.99))}
