"""Small fleets for the tests of routing and placement."""

from manylora.cluster.cost import CostRules, TierRates
from manylora.cluster.demand import Arrivals, DemandEstimate
from manylora.cluster.placement import Room
from manylora.cluster.views import FleetView, Heartbeat, Tier, Want
from manylora.ids import Digest, ReplicaId

RATES = TierRates(fixed_s=(0.001, 0.01, 0.1), bytes_per_s=(20e9, 2e9, 2e8))
RULES = CostRules(rates=RATES)
MEGABYTE = 1_000_000
EDGE = "edge"


def replica(number: int) -> ReplicaId:
    return ReplicaId(f"replica-{number}")


def adapter(number: int) -> Digest:
    return Digest(f"{number:064x}")


def want(number: int | None = 0, *, num_bytes: int = 40 * MEGABYTE, tokens: float = 100.0) -> Want:
    digest = None if number is None else adapter(number)
    return Want(digest=digest, num_bytes=num_bytes, tokens=tokens, prompt_tokens=tokens / 2)


def beat(
    number: int,
    *,
    epoch: int = 1,
    backlog: float = 0.0,
    speed: float = 100.0,
    tiers: dict[Digest, Tier] | None = None,
    since: int = 0,
    received: int = 0,
    is_draining: bool = False,
    prefixes: dict[int, int] | None = None,
) -> Heartbeat:
    return Heartbeat(
        replica=replica(number),
        epoch=epoch,
        since=since,
        backlog_tokens=backlog,
        tokens_per_s=speed,
        tiers=tiers or {},
        prefixes=prefixes or {},
        received={EDGE: received},
        is_draining=is_draining,
    )


def view_of(*beats: Heartbeat) -> FleetView:
    view = FleetView(EDGE)
    for each in beats:
        view.apply(each)
    return view


def rooms(count: int, num_bytes: int = 1000 * MEGABYTE, speed: float = 1000.0) -> list[Room]:
    return [Room(replica=replica(number), num_bytes=num_bytes, tokens_per_s=speed) for number in range(count)]


def demand_of(tokens_per_s: dict[int, float], num_bytes: int = 10 * MEGABYTE) -> DemandEstimate:
    """A long-observed demand, the same in every second."""
    demand = DemandEstimate()
    arrivals = {
        adapter(number): Arrivals(requests=max(1, int(tokens)), tokens=tokens, num_bytes=num_bytes)
        for number, tokens in tokens_per_s.items()
    }
    for _ in range(10):
        demand.observe(arrivals, 1.0)
    return demand
