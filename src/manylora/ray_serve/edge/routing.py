"""The order of replicas for a call, from the signals that a router gets: the fleet's own ranking, without Ray."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from manylora.clock import Clock
from manylora.cluster.cost import TierRates
from manylora.cluster.demand import Arrivals
from manylora.cluster.signals import heartbeat_of, want_of
from manylora.cluster.steering import Steering
from manylora.cluster.views import Want
from manylora.ids import ReplicaId

RATES = TierRates(fixed_s=(0.0002, 0.002, 0.1), bytes_per_s=(40e9, 2e9, 2e8))
"""Times of an adapter's moves: of the order that `docs/scale.md` measures; they order tiers, and none is billed."""


class CallRouting:
    """One router's view of the replicas, and the calls that it has sent since their last signals.

    A signal counts every call that was sent before it came.

    Args: edges  routers of the fleet: this one sees about that part of the demand
    """

    def __init__(self, router: str, clock: Clock, *, stray: float = 2.0, edges: int = 1) -> None:
        self._steering = Steering(router, clock, stray=stray)
        self._edges = edges
        self._adapter_bytes = 0
        self._sent: dict[str, tuple[ReplicaId, int]] = {}
        self._epochs: dict[ReplicaId, int] = {}  # of each replica's last signal

    def observe(self, signals: Mapping[ReplicaId, Mapping[str, Any]]) -> None:
        """Take the signals of all replicas of now; those that are missing have left."""
        steering = self._steering
        for gone in [replica for replica in steering.view.slots if replica not in signals]:
            steering.forget(gone)
            self._epochs.pop(gone, None)
        sizes = [int(values.get("adapter_bytes", 0)) for values in signals.values()]
        known = [size for size in sizes if size > 0]
        self._adapter_bytes = sum(known) // len(known) if known else 0
        for replica, values in signals.items():
            beat = heartbeat_of(replica, values)
            if beat.epoch > self._epochs.get(replica, -1):  # Serve repeats signals that have not changed
                self._settle_counted(replica)
            self._epochs[replica] = beat.epoch
            steering.take(beat)
        steering.tend()  # a new place gets its adapter with its first request

    def order(self, text: str, candidates: Iterable[ReplicaId]) -> list[ReplicaId]:
        """Return the candidates in the order in which a call tries them. A candidate without a signal comes last.

        Args: text  of `signals.want_text`; any other text, as a call for no adapter in particular has, keeps the order
        """
        given = list(candidates)
        want = self._want(text)
        if want is None:
            return given
        wanted = set(given)
        ranked = [replica for replica in self._steering.order(want, RATES) if replica in wanted]
        return [*ranked, *(replica for replica in given if replica not in set(ranked))]

    def routed(self, call: str, replica: ReplicaId, text: str) -> None:
        """Count a call as sent, until the replica's next signal or its end."""
        want = self._want(text)
        if want is None or replica not in self._steering.view.slots:
            return
        self._sent[call] = (replica, self._steering.sent(replica, want))
        if want.digest is not None and want.tokens:
            arrivals = Arrivals(requests=self._edges, tokens=self._edges * want.tokens, num_bytes=want.num_bytes)
            self._steering.arrived(want.digest, arrivals)

    def ended(self, call: str) -> None:
        if (sent := self._sent.pop(call, None)) is not None:
            self._steering.view.settle(*sent)

    def _want(self, text: str) -> Want | None:
        """Return the needs in a call's text, with the bytes that adapters of this fleet have in the mean."""
        try:
            want = want_of(text)
        except ValueError:
            return None
        if want.digest is None or not self._adapter_bytes:
            return want
        return replace(want, num_bytes=self._adapter_bytes)

    def _settle_counted(self, replica: ReplicaId) -> None:
        for call in [call for call, (where, _) in self._sent.items() if where == replica]:
            self.ended(call)
