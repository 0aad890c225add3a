"""A simulated fleet under a load: requests come, replicas die and join, and every request is accounted for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.fleet.events import Events
from benchmarks.fleet.policy import Policy
from benchmarks.fleet.profile import Profile
from benchmarks.fleet.replica import Call, Replica
from benchmarks.fleet.traffic import Catalogue, Traffic
from manylora.cluster.views import Tier
from manylora.ids import ReplicaId

PAST_REQUESTS = 100
"""Requests for each adapter of the catalogue, in the mean, that the tiers have seen before a run begins."""


@dataclass(slots=True)
class Result:
    """The requests of a run that came after its warm-up, and the totals of its replicas."""

    calls: list[Call]
    seconds: float
    moved_bytes: dict[Tier, int]
    busy_share: float
    cut: int = 0  # requests that lost their replica after their first token
    retried: int = 0  # requests that lost it before
    unfinished: int = 0
    plans: int = 0

    def hits(self, tier: Tier = Tier.DEVICE) -> float:
        """Return the share of requests whose adapter was in a tier on arrival."""
        return sum(call.tier is tier for call in self.calls) / max(1, len(self.calls))

    def first_s(self) -> NDArray[np.float64]:
        """Return the first-token times from the arrival at the edge; infinite where none came."""
        return np.array([call.first_s - call.at_s if call.first_s >= 0 else np.inf for call in self.calls])

    def figures(self) -> dict[str, float]:
        """Return the figures of the run."""
        first = self.first_s()
        ended = [call for call in self.calls if call.end_s >= 0]
        return {
            **{f"hits_{tier.name.lower()}": self.hits(tier) for tier in Tier},
            "first_p50_ms": 1e3 * float(np.quantile(first, 0.5, method="higher")),
            "first_p99_ms": 1e3 * float(np.quantile(first, 0.99, method="higher")),
            "output_tokens_per_s": sum(call.output for call in ended) / self.seconds,
            "requests": float(len(self.calls)),
            "busy_share": self.busy_share,
            **{f"moved_gb_{tier.name.lower()}": count / 1e9 for tier, count in self.moved_bytes.items()},
        }


@dataclass(slots=True)
class World:
    """One run: its policy, replicas, traffic, and the acts that a scenario sets."""

    profile: Profile
    adapters: Catalogue
    kind: type[Policy]
    settings: dict[str, Any]  # attributes of the policy, of several types
    count: int
    seed: int
    events: Events = field(default_factory=Events)
    calls: list[Call] = field(default_factory=list)
    cut: int = 0
    retried: int = 0
    ended: int = 0
    replicas: list[Replica] = field(init=False)
    policy: Policy = field(init=False)
    names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = [f"adapter-{number}" for number in range(len(self.adapters))]
        self.replicas = [self._replica(number) for number in range(self.count)]
        kind = type(self.kind.__name__, (self.kind,), self.settings)
        self.policy = kind(self.replicas, self.adapters, self.names, self.profile, self.seed)

    def run(self, load: Traffic, rate: float, warm_s: float, end_s: float, *, drain_s: float = 0.0) -> Result:
        """Run a load from time 0 to `end_s`, and return the requests that came from `warm_s` on.

        `drain_s` more seconds without new requests give the last ones time to end.
        """
        self.policy.seed(PAST_REQUESTS * len(self.adapters), rate)
        self._set_next(load, 0)
        self.events.at(self.policy.period_s, self._tick)
        self.events.run(warm_s)
        before = self._totals()
        self.events.run(end_s)
        after = self._totals()
        busy_s = after[1] - before[1]
        self.events.run(end_s + drain_s)
        counted = [call for call in self.calls if call.at_s >= warm_s]
        return Result(
            calls=counted,
            seconds=end_s - warm_s,
            moved_bytes={tier: after[0][tier] - before[0][tier] for tier in Tier},
            busy_share=busy_s / (end_s - warm_s) / self.count,
            cut=self.cut,
            retried=self.retried,
            unfinished=len(self.calls) - self.ended - self.cut,
            plans=getattr(self.policy, "plans", 0),
        )

    def kill(self, numbers: Sequence[int]) -> None:
        """End replicas at once. Their requests without a first token are sent again, the others are cut."""
        for number in numbers:
            self.policy.lost(number)
        for number in numbers:
            for call in self.replicas[number].die():
                if call.first_s >= 0:
                    self.cut += 1
                else:
                    self.retried += 1
                    call.tries += 1
                    self._send(call)

    def _replica(self, number: int) -> Replica:
        name = ReplicaId(f"replica-{self.seed}-{number}")
        return Replica(name, self.profile, self.events, self._began, self._ended)

    def _began(self, call: Call) -> None:
        self.policy.began(call)

    def _ended(self, call: Call) -> None:
        self.ended += 1

    def _set_next(self, load: Traffic, number: int) -> None:
        if number < len(load.at_s):
            self.events.at(float(load.at_s[number]), lambda now: self._arrive(load, number, now))

    def _arrive(self, load: Traffic, number: int, now: float) -> None:
        adapter = int(load.adapters[number])
        call = Call(
            number=number,
            at_s=now,
            adapter=self.names[adapter],
            num_bytes=int(self.adapters.num_bytes[adapter]),
            prompt=int(load.prompts[number]),
            output=int(load.outputs[number]),
        )
        self.calls.append(call)
        self._send(call)
        self._set_next(load, number + 1)

    def _send(self, call: Call) -> None:
        call.replica = self.policy.choose(call)
        self.replicas[call.replica].take(call)

    def _tick(self, now: float) -> None:
        self.policy.tick(now)
        self.events.at(now + self.policy.period_s, self._tick)

    def _totals(self) -> tuple[dict[Tier, int], float]:
        moved = {tier: sum(replica.counts.moved_bytes[tier] for replica in self.replicas) for tier in Tier}
        return moved, sum(replica.counts.busy_s for replica in self.replicas)
