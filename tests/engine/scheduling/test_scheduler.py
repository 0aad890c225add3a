"""What the scheduler decides, in plain integers."""

import dataclasses
import itertools
import json
import subprocess
import sys
from collections import Counter
from fractions import Fraction

from hypothesis import example, given
from hypothesis import strategies as st

from manylora.engine.scheduling.fairness import (
    COMPLETION_WEIGHT,
    LOAD_BYTES_PER_TOKEN,
    PROMPT_WEIGHT,
    SERVICE_UNITS,
    VirtualTokenCounter,
)
from manylora.engine.scheduling.scheduler import PATIENCE_STEPS
from manylora.engine.scheduling.sequence import Sequence
from manylora.ids import Flow, RequestId
from tests.engine.simulation.store import SimulatedStore
from tests.engine.simulation.world import World


def test_the_scheduler_imports_no_torch() -> None:
    code = "import sys, manylora.engine.scheduling.scheduler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_plan_is_data() -> None:
    world = World()
    world.submit(range(5))
    world.step()
    plan = world.executor.plans[0]
    assert json.loads(json.dumps(dataclasses.asdict(plan))) == {
        "number": 1,
        "chunks": [
            {"request_id": "r1", "start": 0, "stop": 5, "is_sampled": True, "draft_tokens": [], "scored": [0, 0]}
        ],
        "admitted": ["r1"],
        "preempted": [],
    }


def test_a_long_prompt_is_cut_into_chunks_and_streams_keep_moving() -> None:
    world = World(max_rows=8, num_blocks=64)
    reader = world.submit([1], budget=20)
    world.step()
    world.submit(range(60), budget=1)
    for _ in range(8):
        before = len(world.tokens[reader])
        world.step()
        assert len(world.tokens[reader]) == before + 1
        assert world.executor.plans[-1].num_rows <= 8
    world.run()


def test_any_mix_of_adapters_and_base_rows_shares_a_step() -> None:
    world = World(store=SimulatedStore(capacity=3, polls_to_load=1))
    for adapter in (None, "one", "two", "three"):
        world.submit(range(3), adapter=adapter, budget=10)
    for _ in range(5):
        world.step()
    assert len(world.executor.plans[-1].chunks) == 4


def test_a_request_whose_adapter_is_loading_holds_nobody_up() -> None:
    world = World(store=SimulatedStore(polls_to_load=50))
    slow = world.submit([1], adapter="slow")
    quick = world.submit([1], budget=3)
    for _ in range(6):
        world.step()
    assert quick in world.finished
    assert slow not in world.finished
    world.run()
    assert len(world.tokens[slow]) == 4


def test_a_full_bank_is_back_pressure_not_an_error() -> None:
    world = World(max_running=8, store=SimulatedStore(capacity=2, polls_to_load=1))
    requests = [world.submit(range(3), adapter=f"adapter-{index}") for index in range(7)]
    requests += [world.submit(range(3)) for _ in range(2)]
    world.run()
    assert all(len(world.tokens[request]) == 4 for request in requests)


def test_a_newcomer_is_not_starved_by_a_stream_of_requests_for_resident_adapters() -> None:
    world = World(num_blocks=256, max_running=4, store=SimulatedStore(capacity=1, polls_to_load=1))
    world.submit([1], adapter="old", budget=50)
    for _ in range(3):
        world.step()
    newcomer = world.submit([1], adapter="new", flow="quiet")
    for _ in range(PATIENCE_STEPS + 120):
        world.submit([1], adapter="old", budget=50, flow="loud")  # the old adapter never loses its last pin by itself
        world.step()
    assert newcomer in world.finished


def test_the_newest_sequence_gives_up_its_blocks_first() -> None:
    world = World(num_blocks=10, max_running=4)
    oldest = world.submit(range(8), budget=30)
    world.step()
    newest = world.submit(range(8), budget=24)
    while not world.engine.stats().preemptions:
        world.step()
    assert world.executor.plans[-1].preempted == (newest,)
    assert oldest in world.scheduler.running
    world.run()


@dataclasses.dataclass(frozen=True)
class Wish:
    """A request of a random load over flows."""

    step: int
    flow: str
    length: int
    budget: int
    leaves_after: int | None = None


LONGEST, BUDGET = 24, 20
wishes = st.builds(
    Wish,
    step=st.integers(0, 60),
    flow=st.sampled_from("ab"),
    length=st.integers(1, LONGEST),
    budget=st.integers(1, BUDGET),
    leaves_after=st.none() | st.none() | st.integers(0, 40),
)
TALKERS_AND_READERS = [Wish(0, "a", 2, 20) for _ in range(60)] + [Wish(0, "b", 20, 2) for _ in range(60)]
"""Charged by prompts alone, or by requests, or not at all, these two would be served very unlike each other."""


@given(
    st.lists(wishes, min_size=30, max_size=80).map(lambda load: sorted(load, key=lambda wish: wish.step)),
    st.sampled_from([0, 4]),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
@example(TALKERS_AND_READERS, 0, (1, 1))
@example([dataclasses.replace(wish, flow="ba"[wish.flow == "b"]) for wish in TALKERS_AND_READERS], 4, (1, 1))
@example(TALKERS_AND_READERS, 0, (1, 5))
@example(TALKERS_AND_READERS, 4, (5, 1))
def test_no_flow_waits_longer_than_its_bound(load: list[Wish], guess_tokens: int, weights: tuple[int, int]) -> None:
    """In any time in which both of two flows have requests waiting, their service ÷ weight differs by a bound that
    depends on the weights, the sizes of one request and of the memory alone: with the most that one flow can have
    under way, U = max(w_p · longest prompt, w_q · KV positions), it is U ÷ weight of the one + U ÷ weight of the other;
    arXiv 2401.00588, theorem 4.4, where both weights are 1. Charging in chunks adds at most one step's rows. So a flow
    that waits is passed by at most that much.

    Service is counted here from the plans and from what was generated, not read from the scheduler's own counter.
    """
    world = World(num_blocks=12, max_rows=16, max_running=4, prefix_cache=False, guess_tokens=guess_tokens)
    weight_of = dict(zip("ab", weights, strict=True))
    most = max(PROMPT_WEIGHT * LONGEST, COMPLETION_WEIGHT * world.pool.num_blocks * world.pool.block_size)
    bound = Fraction(most, weights[0]) + Fraction(most, weights[1]) + Fraction(16, min(weights))
    flow_of: dict[RequestId, str] = {}
    leaving: dict[RequestId, int] = {}
    prompt_done: Counter[RequestId] = Counter()
    served: Counter[str] = Counter()
    gaps: list[Fraction] = []  # since both flows have been waiting
    pending = list(load)
    for step in itertools.count():
        while pending and pending[0].step <= step:
            wish = pending.pop(0)
            request = world.submit(range(wish.length), flow=wish.flow, budget=wish.budget, weight=weight_of[wish.flow])
            flow_of[request] = wish.flow
            prompt_done[request] = 0
            if wish.leaves_after is not None:
                leaving[request] = step + wish.leaves_after
        for request in [request for request, last in leaving.items() if last <= step]:
            del leaving[request]
            world.abort(request)
        if not pending and not world.engine.has_work:
            break
        sizes = {request: sequence.num_prompt for request, sequence in _under_way(world).items()}
        num_plans = len(world.executor.plans)
        events = world.step()
        for chunk in (chunk for plan in world.executor.plans[num_plans:] for chunk in plan.chunks):
            prompt_stop = min(chunk.stop, sizes[chunk.request_id])
            new = max(0, prompt_stop - prompt_done[chunk.request_id])
            prompt_done[chunk.request_id] += new
            served[flow_of[chunk.request_id]] += PROMPT_WEIGHT * new
        for token in events.tokens:
            served[flow_of[token.request_id]] += COMPLETION_WEIGHT
        waiting = {sequence.request.flow for sequence in world.scheduler.waiting()}
        gap = Fraction(served["a"], weights[0]) - Fraction(served["b"], weights[1])
        gaps = [*gaps, gap] if waiting == {Flow("a"), Flow("b")} else []
        assert not gaps or max(gaps) - min(gaps) <= bound


def _under_way(world: World) -> dict[RequestId, Sequence]:
    queued = {sequence.request.id: sequence for sequence in world.scheduler.waiting()}
    return queued | world.scheduler.running


def test_a_flood_does_not_push_a_quiet_flow_to_the_end_of_the_queue() -> None:
    world = World(max_rows=16, max_running=2)
    for _ in range(100):
        world.submit(range(8), flow="flood", budget=4)
    for _ in range(10):
        world.step()
    victim = world.submit(range(8), flow="quiet", budget=4)
    for _ in range(12):
        world.step()
    assert victim in world.finished


def service_while_both_wait(world: World, flows: tuple[str, str], *, steps: int) -> dict[str, int]:
    """Tokens generated for each flow in so many steps, in which both have requests waiting all the time."""
    flow_of = {request: sequence.request.flow for request, sequence in _under_way(world).items()}
    served: Counter[str] = Counter()
    for _ in range(steps):
        for token in world.step().tokens:
            served[flow_of[token.request_id]] += 1
        assert {sequence.request.flow for sequence in world.scheduler.waiting()} == set(flows)
    return dict(served)


def test_two_flows_that_wait_are_served_in_proportion_to_their_weights() -> None:
    world = World(max_rows=16, max_running=4)
    for _ in range(300):
        world.submit(range(2), flow="small", budget=8)
        world.submit(range(2), flow="large", budget=8, weight=3)
    served = service_while_both_wait(world, ("small", "large"), steps=400)
    assert abs(served["large"] - 3 * served["small"]) <= 4 * 8  # what four slots of the wrong flow generate


def test_a_new_weight_of_a_flow_counts_from_its_next_request() -> None:
    world = World(max_rows=16, max_running=4)
    for _ in range(100):
        world.submit(range(2), flow="steady", budget=8)
        world.submit(range(2), flow="upgraded", budget=8)
    before = service_while_both_wait(world, ("steady", "upgraded"), steps=100)
    assert abs(before["upgraded"] - before["steady"]) <= 4 * 8
    for request in [one for one in world.scheduler.waiting() if one.request.flow == "upgraded"]:
        world.abort(request.request.id)
    for _ in range(300):
        world.submit(range(2), flow="steady", budget=8)
        world.submit(range(2), flow="upgraded", budget=8, weight=3)
    after = service_while_both_wait(world, ("steady", "upgraded"), steps=400)
    assert abs(after["upgraded"] - 3 * after["steady"]) <= 4 * 4 * 8


def test_work_and_loads_are_charged_by_the_weight_and_never_free() -> None:
    counter = VirtualTokenCounter()
    heavy, light, vast = Flow("heavy"), Flow("light"), Flow("vast")
    for flow, weight in ((heavy, 3), (light, 1), (vast, 10**9)):
        counter.charge(flow, weight=weight, prompt_tokens=4, completion_tokens=1, load_bytes=6 * LOAD_BYTES_PER_TOKEN)
    assert counter.served(light) == 12 * SERVICE_UNITS
    assert counter.served(heavy) == 4 * SERVICE_UNITS
    assert counter.served(vast) == 1


def test_idling_banks_no_credit() -> None:
    counter = VirtualTokenCounter()
    busy, idler = Flow("busy"), Flow("idler")
    counter.arrive(busy, [])
    counter.charge(busy, prompt_tokens=1000)
    counter.arrive(idler, [busy])
    assert counter.served(idler) == counter.served(busy)


def test_debt_is_kept_and_an_empty_queue_lifts_to_the_last_that_left() -> None:
    counter = VirtualTokenCounter()
    rich, poor = Flow("rich"), Flow("poor")
    counter.charge(rich, completion_tokens=500)
    counter.leave(rich)
    counter.arrive(poor, [])
    assert counter.served(poor) == 1000 * SERVICE_UNITS
    counter.arrive(rich, [poor])
    assert counter.served(rich) == 1000 * SERVICE_UNITS


def test_an_empty_queue_lifts_to_what_the_last_that_left_has_been_served_by_now() -> None:
    counter = VirtualTokenCounter()
    busy, idler = Flow("busy"), Flow("idler")
    counter.arrive(busy, [])
    counter.leave(busy)
    counter.charge(busy, prompt_tokens=2500)
    counter.prune({busy})
    counter.arrive(idler, [])
    assert counter.served(idler) == 2500 * SERVICE_UNITS
    counter.prune({idler})
    assert counter.served(busy) == 2500 * SERVICE_UNITS


def test_a_preempted_flow_keeps_its_place_in_the_fair_order() -> None:
    world = World(num_blocks=10, max_running=4)
    world.submit(range(8), flow="rival", budget=30)
    world.step()
    world.submit(range(8), flow="victim", budget=24)
    while not world.engine.stats().preemptions:
        world.step()
        before = world.scheduler.counter().served(Flow("victim"))
        world.scheduler.counter().charge(Flow("rival"), prompt_tokens=1000)
        world.submit(range(8), flow="rival", budget=1)
    assert world.scheduler.counter().served(Flow("victim")) == before
    world.run()


def test_counters_do_not_grow_with_the_number_of_flows_seen() -> None:
    counter = VirtualTokenCounter()
    for index in range(10_000):
        counter.arrive(Flow(str(index)), [])
        counter.leave(Flow(str(index)))
    active = Flow("active")
    counter.charge(active, prompt_tokens=5)
    counter.prune({active})
    assert counter.served(active) == 5 * SERVICE_UNITS
    assert len(counter) == 2  # it, and the flow that left the queue last
