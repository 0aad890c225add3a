"""The number of replicas for a load: by the seconds of work that wait, and by the banks' thrash. A pure function."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetLoad:
    """The sums over a fleet's heartbeats.

    replicas        that live, those that are starting included
    backlog_tokens  admitted and waiting, and those that wait at the edges for a first replica
    tokens_per_s    the speed of one replica
    thrash          loaded bytes that had been evicted within the minute before ÷ all loaded bytes, the fleet's mean
    load_share      seconds of loads that requests waited for, per second of the replicas
    """

    replicas: int
    backlog_tokens: float
    tokens_per_s: float
    thrash: float = 0.0
    load_share: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingRules:
    """The bounds and constants of the policy.

    target_backlog_s  seconds of work for each replica that are well
    calm_s            seconds of low load before a replica is given back
    idle_s            seconds without any work before the last replica is given back
    thrash            thrash above which banks are too small, where loads take `load_share` of the time as well
    """

    least: int = 0
    most: int = 8
    target_backlog_s: float = 2.0
    calm_s: float = 60.0
    idle_s: float = 300.0
    thrash: float = 0.5
    load_share: float = 0.1


@dataclass(frozen=True, slots=True)
class ScalingState:
    """The memory of the policy between two calls: the seconds of low load so far, and of no load at all."""

    calm_s: float = 0.0
    idle_s: float = 0.0


def wanted_replicas(
    load: FleetLoad, state: ScalingState, elapsed_s: float, rules: ScalingRules
) -> tuple[int, ScalingState]:
    """Return the number of replicas that the load needs, and the state for the next call.

    It grows at once, by a quarter a call for thrash; it shrinks by one after `calm_s` of low load, and to zero after
    `idle_s` without work. From zero, any work starts a replica. `least` and `most` hold always.
    """
    is_idle = load.backlog_tokens <= 0.0
    idle_s = state.idle_s + elapsed_s if is_idle else 0.0
    needed = math.ceil(load.backlog_tokens / (max(load.tokens_per_s, 1e-9) * rules.target_backlog_s))
    if load.thrash > rules.thrash and load.load_share > rules.load_share:
        needed = max(needed, load.replicas + max(1, load.replicas // 4))
    if needed >= load.replicas:
        return _within(needed, rules), ScalingState(0.0, idle_s)
    calm_s = state.calm_s + elapsed_s
    if is_idle and idle_s >= rules.idle_s:
        return _within(0, rules), ScalingState(0.0, idle_s)
    if calm_s >= rules.calm_s and load.replicas > 1:
        return _within(load.replicas - 1, rules), ScalingState(0.0, idle_s)
    return _within(load.replicas, rules), ScalingState(calm_s, idle_s)


def _within(replicas: int, rules: ScalingRules) -> int:
    return min(rules.most, max(rules.least, replicas))
