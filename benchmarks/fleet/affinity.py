"""The fleet's own policy: `manylora.cluster` as a router and a planner call it, over heartbeats alone."""

import math
from collections import Counter

import numpy as np

from benchmarks.fleet.policy import HEARTBEAT_S, Policy
from benchmarks.fleet.replica import Call, Replica
from manylora.cluster.cost import CostRules
from manylora.cluster.demand import Arrivals, DemandEstimate
from manylora.cluster.placement import Placement, PlacementRules, Room, is_due, plan
from manylora.cluster.prefetching import prefetches
from manylora.cluster.ranking import rank
from manylora.cluster.views import FleetView, Heartbeat, Tier, Want
from manylora.ids import Digest

PLAN_S = 10.0
"""Seconds between two plans when no burst asks for one."""


class Affinity(Policy):
    """Cost-to-serve ranking at several edges, and one placement by demand.

    edges       routers, each with its own requests and with heartbeats for those of the others
    kept_share  part of a bank that placement fills
    """

    edges = 2
    stray = 2.0
    kept_share = 0.75
    copy_share = 0.1
    spares = 1

    def prepare(self) -> None:
        self.cost_rules = CostRules(rates=self.profile.rates, stray=self.stray)
        self.rules = PlacementRules(copy_share=self.copy_share)
        self.views = [FleetView(str(edge)) for edge in range(self.edges)]
        self.numbers = {replica.name: number for number, replica in enumerate(self.replicas)}
        self.sizes = dict(zip(self.names, self.adapters.num_bytes.tolist(), strict=True))
        self.placement = Placement()
        self.plans = 0
        self._epoch = 0
        self._planned_s = -math.inf
        self._requests: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._sent: Counter[tuple[str, str]] = Counter()
        self.demand = DemandEstimate()

    def choose(self, call: Call) -> int:
        call.edge = call.number % self.edges
        view = self.views[call.edge]
        view.now_s = self.replicas[0].events.now_s
        want = Want(digest=Digest(call.adapter), num_bytes=call.num_bytes, tokens=call.prompt)
        chosen = rank(want, view, self.cost_rules, most=1)[0]
        call.ticket = view.route(chosen, want.tokens)
        self._sent[view.edge, chosen] = call.ticket
        if not call.tries:
            self._requests[call.adapter] += 1
            self._tokens[call.adapter] += call.prompt + call.output
        return self.numbers[chosen]

    def began(self, call: Call) -> None:
        self.views[call.edge].settle(self.replicas[call.replica].name, call.ticket)

    def tick(self, now: float) -> None:
        self._epoch += 1
        for number in self.open:
            self._beat(self.replicas[number])
        arrivals = {
            Digest(adapter): Arrivals(requests=count, tokens=self._tokens[adapter], num_bytes=self.sizes[adapter])
            for adapter, count in self._requests.items()
        }
        self.demand.observe(arrivals, HEARTBEAT_S)
        self._requests.clear()
        self._tokens.clear()
        if now - self._planned_s >= PLAN_S or is_due(self.demand, self._rooms(), self.placement, self.rules):
            self._planned_s = now
            self._plan()

    def lost(self, number: int) -> None:
        super().lost(number)
        for view in self.views:
            view.close(self.replicas[number].name)
        self._plan()

    def joined(self, number: int) -> None:
        super().joined(number)
        self.numbers[self.replicas[number].name] = number

    def seed(self, requests: int, rate: float) -> None:
        """Begin with the demand of that past as the long average knows it, its plan, and the tiers that it leads to."""
        past_s = requests / rate
        self.demand = DemandEstimate(average_s=past_s)
        counts = self.rng.poisson(self.adapters.shares * requests) * -math.expm1(-1.0)
        tokens = self.profile.prompt + self.profile.output
        self.demand.observe(
            {
                Digest(self.names[adapter]): Arrivals(
                    requests=counts[adapter],
                    tokens=counts[adapter] * tokens,
                    num_bytes=int(self.adapters.num_bytes[adapter]),
                )
                for adapter in np.flatnonzero(counts).tolist()
            },
            past_s,
        )
        self.demand.observe({}, 60.0)  # its burst is over
        self._beat_all()
        self.placement = plan(self.demand, self._rooms(), Placement(), self.rules)
        homes = self.homes()
        places = [
            [self.numbers[name] for name in self.placement.places.get(Digest(adapter), ())] or homes[number]
            for number, adapter in enumerate(self.names)
        ]
        if self.spares:
            self.seed_spares(requests, 1 + self.spares)
        self.seed_at(requests, places)
        self._take_over()

    def _beat_all(self) -> None:
        self._epoch += 1
        for number in self.open:
            self._beat(self.replicas[number])

    def _beat(self, replica: Replica) -> None:
        tiers = {Digest(adapter): replica.tier(adapter) for adapter in replica.changed}
        replica.changed.clear()
        beat = Heartbeat(
            replica=replica.name,
            epoch=self._epoch,
            since=self._epoch - 1 if replica.name in self.views[0].slots else 0,
            backlog_tokens=replica.backlog_tokens(),
            tokens_per_s=replica.tokens_per_s(),
            tiers=tiers,
            received={view.edge: self._sent[view.edge, replica.name] for view in self.views},
        )
        for view in self.views:
            view.now_s = replica.events.now_s
            view.apply(beat)

    def _rooms(self) -> list[Room]:
        profile = self.profile
        return [
            Room(
                replica=self.replicas[number].name,
                num_bytes=int(self.kept_share * profile.bank_bytes),
                tokens_per_s=(profile.prompt + profile.output) / profile.request_s,
            )
            for number in self.open
        ]

    def _plan(self) -> None:
        self.plans += 1
        self.placement = plan(self.demand, self._rooms(), self.placement, self.rules)
        self._take_over()

        room = {Tier.DISK: self.profile.disk_bytes, Tier.HOST: self.profile.host_bytes}
        for each in prefetches(self.demand, self.placement, self.views[0], room, spares=self.spares):
            self.replicas[self.numbers[each.replica]].prefetch(each.digest, self.sizes[each.digest], each.tier)

    def _take_over(self) -> None:
        for view in self.views:
            view.place(self.placement.places)
        kept: dict[str, dict[str, int]] = {self.replicas[number].name: {} for number in self.open}
        for adapter, names in self.placement.places.items():
            for name in names:
                kept[name][adapter] = self.sizes[adapter]
        for number in self.open:
            self.replicas[number].keep(kept[self.replicas[number].name])
