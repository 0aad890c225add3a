"""The choice of a replica for each request: the ranking of `cluster/` over the beats of the replicas."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from manylora.adapter_ref import AdapterRef
from manylora.clock import Clock
from manylora.cluster.demand import Arrivals
from manylora.cluster.prefixes import prefix_keys
from manylora.cluster.steering import Steering
from manylora.cluster.views import Heartbeat, Tier, Want
from manylora.engine.request import Request
from manylora.fleet.edge.load_times import FleetLoadTimes
from manylora.fleet.wire.link_messages import HostBeat
from manylora.ids import Digest, ReplicaId

USUAL_BYTES = 16 << 20
"""Bytes of an adapter that no replica has reported."""
FEW = 4
"""Replicas that a request tries before the whole order is made: the first one takes nearly all requests."""
MOST_NAMES = 4096
"""Adapters whose references a router keeps, those of the latest requests."""
LEAST_SPEED, MOST_TOKENS = 1e-3, 1e12


@dataclass(frozen=True, slots=True)
class ReplicaRoute:
    """One request's place in the view. number: of the request at its replica, in the order of their routes."""

    address: str
    number: int


class ReplicaRouter:
    """Ranks the replicas of one base. An adapter has its name here, since its digest is known to engines alone.

    The beats are hints: a false one costs a load or a wait, and changes no answer.
    """

    def __init__(self, edge: str, clock: Clock) -> None:
        self._steering = Steering(edge, clock)
        self._edge = edge
        self._epochs: dict[str, int] = {}
        self._sent: dict[str, int] = {}  # requests routed to an address
        self._before: dict[str, int] = {}  # of these, those before the present connection
        self._sizes: dict[str, int] = {}
        self._refs: dict[str, AdapterRef] = {}  # the latest request's last
        self._loads = FleetLoadTimes()
        self.backlogs: dict[str, float] = {}

    def join(self, address: str) -> None:
        """Begin a new connection: its first beat has all tiers."""
        self._before[address] = self._sent.get(address, 0)

    def take(self, address: str, beat: HostBeat, *, is_whole: bool) -> None:
        """Take the beat of a replica. `is_whole`: it is the first one of its connection."""
        epoch = self._epochs[address] = self._epochs.get(address, 0) + 1
        self._sizes |= beat.sizes
        self._loads.put(address, beat.load_s)
        backlog = self.backlogs[address] = _within(beat.backlog_tokens, 0.0)
        for key, (requests, tokens) in beat.arrivals.items():
            arrivals = Arrivals(requests=requests, tokens=tokens, num_bytes=self._sizes.get(key, USUAL_BYTES))
            self._steering.arrived(Digest(key), arrivals)
        self._steering.take(
            Heartbeat(
                replica=ReplicaId(address),
                epoch=epoch,
                since=0 if is_whole else epoch - 1,
                backlog_tokens=backlog,
                tokens_per_s=_within(beat.tokens_per_s, LEAST_SPEED),
                tiers={Digest(key): Tier(tier) for key, tier in beat.tiers.items() if 0 <= tier <= Tier.STORE},
                received={self._edge: self._before.get(address, 0) + beat.received},
                is_draining=not beat.is_open,
                bank_bytes=max(0, beat.bank_bytes),
                disk_bytes=max(0, beat.disk_bytes),
            )
        )

    def leave(self, address: str) -> None:
        """Send a replica nothing more until its next beat."""
        if address in self._epochs:
            self._steering.close(ReplicaId(address))
        self.backlogs.pop(address, None)

    def forget(self, address: str) -> None:
        """Drop a replica that does not come back."""
        if self._epochs.pop(address, None) is not None:
            self._steering.forget(ReplicaId(address))
        self._loads.drop(address)
        for known in (self._sent, self._before, self.backlogs):
            known.pop(address, None)

    def order(self, want: Want, but: Collection[str] = ()) -> Iterator[str]:
        """Yield the addresses of the open replicas, the one that can begin first in front, without those of `but`.

        The whole order is made only if the first few replicas have refused.
        """
        rates = self._loads.rates()
        first = self._steering.order(want, rates, FEW)
        yield from (each for each in first if each not in but)
        if len(first) == FEW:
            seen = {*first, *but}
            yield from (each for each in self._steering.order(want, rates) if each not in seen)

    def want_for(self, request: Request) -> Want:
        """Return the needs of a request."""
        tokens = float(len(request.tokens))
        name = "" if request.adapter is None else str(request.adapter)
        prefixes = prefix_keys(name, request.salt, request.tokens)
        self._keep(request.adapter)
        return replace(self.want_of(request.adapter), tokens=tokens, prompt_tokens=tokens, prefixes=prefixes)

    def want_of(self, adapter: AdapterRef | None) -> Want:
        """Return the needs of a question about an adapter, or about the base."""
        if adapter is None:
            return Want(digest=None, num_bytes=0, tokens=0.0)
        key = adapter_key(adapter)
        return Want(digest=Digest(key), num_bytes=self._sizes.get(key, USUAL_BYTES), tokens=0.0)

    def sent(self, address: str, want: Want) -> ReplicaRoute:
        """Count a request as sent."""
        self._sent[address] = self._sent.get(address, 0) + 1
        return ReplicaRoute(address, self._steering.sent(ReplicaId(address), want))

    def drop(self, adapter: AdapterRef) -> None:
        """Forget an adapter that is evicted or deleted on every replica."""
        self._steering.drop(Digest(adapter_key(adapter)))
        self._sizes.pop(adapter_key(adapter), None)

    def new_places(self) -> list[tuple[str, AdapterRef]]:
        """Return the addresses that are to have an adapter on the device, as the demand asks for it now."""
        places = self._steering.tend()
        return [(each.replica, self._refs[each.digest]) for each in places if each.digest in self._refs]

    def prefetches(self) -> list[tuple[str, AdapterRef]]:
        """Return the addresses that are to have an adapter on the disk, as `Steering.prefetches`."""
        found = self._steering.prefetches()
        return [(each.replica, self._refs[each.digest]) for each in found if each.digest in self._refs]

    def _keep(self, adapter: AdapterRef | None) -> None:
        """Keep the reference of an adapter that may be loaded ahead: not with a caller's token, and not of several."""
        if adapter is None or adapter.token or adapter.merge or adapter.mix:
            return
        key = adapter_key(adapter)
        self._refs.pop(key, None)
        self._refs[key] = adapter
        if len(self._refs) > MOST_NAMES:
            del self._refs[next(iter(self._refs))]

    def settle(self, route: ReplicaRoute) -> None:
        """Take a request out of its replica's queue."""
        self._steering.view.settle(ReplicaId(route.address), route.number)


def adapter_key(adapter: AdapterRef) -> str:
    """Return the name of an adapter in beats, as `host.load.residency_key`."""
    return f"{adapter.source}:{adapter.full_id}"


def _within(value: float, least: float) -> float:
    """Return a number of a beat that a view accepts."""
    return least if math.isnan(value) else min(max(value, least), MOST_TOKENS)
