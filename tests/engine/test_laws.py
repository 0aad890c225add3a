"""The laws of batching, as properties over random traffic. Their names are the specification."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manylora.engine.events import FinishReason
from manylora.ids import RequestId
from tests.engine.simulation import VOCAB, SimulatedStore, World, alone

ADAPTERS = (None, "one", "two", "three", "broken")


@dataclass(frozen=True)
class Arrival:
    """One request of a random load: it comes before step `step`, and its client hangs up at `abort_at` if not None."""

    step: int
    prompt: tuple[int, ...]
    adapter: str | None
    flow: str
    salt: str
    budget: int
    abort_at: int | None


prompts = st.one_of(
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40).map(tuple),
    # Prompts that begin alike, so that the prefix cache has something to find.
    st.builds(lambda length, tail: tuple(range(length)) + tuple(tail), st.integers(1, 30), st.lists(st.integers(0, 9))),
)
arrivals = st.builds(
    Arrival,
    step=st.integers(0, 20),
    prompt=prompts,
    adapter=st.sampled_from(ADAPTERS),
    flow=st.sampled_from("abc"),
    salt=st.sampled_from(["x", "y"]),
    budget=st.integers(1, 12),
    abort_at=st.none() | st.integers(0, 30),
)
loads = st.lists(arrivals, min_size=1, max_size=14).map(lambda load: sorted(load, key=lambda arrival: arrival.step))
worlds = st.builds(
    lambda blocks, rows, running, capacity, polls: World(
        num_blocks=blocks,
        max_rows=rows,
        max_running=running,
        store=SimulatedStore(capacity=capacity, polls_to_load=polls, failing={"broken"}),
    ),
    blocks=st.integers(18, 40),  # of 4 positions each: barely enough for the longest, so that preemption happens
    rows=st.integers(1, 24),
    running=st.integers(1, 6),
    capacity=st.integers(1, 3),
    polls=st.integers(1, 5),
)


def play(world: World, load: list[Arrival]) -> dict[RequestId, Arrival]:
    """Run a load to its end and return who asked for what."""
    asked: dict[RequestId, Arrival] = {}
    pending = list(load)
    for step in range(40):
        while pending and pending[0].step <= step:
            arrival = pending.pop(0)
            request_id = world.submit(
                arrival.prompt, adapter=arrival.adapter, flow=arrival.flow, salt=arrival.salt, budget=arrival.budget
            )
            asked[request_id] = arrival
        for request_id, arrival in asked.items():
            if arrival.abort_at is not None and step == arrival.step + arrival.abort_at:
                world.abort(request_id)
        world.step()
    world.run()
    return asked


@given(worlds, loads)
def test_every_request_finishes_once(world: World, load: list[Arrival]) -> None:
    asked = play(world, load)
    assert set(world.finished) == set(asked)
    for request_id, end in world.finished.items():
        assert end.counts.completion_tokens == len(world.tokens.get(request_id, []))
        assert end.counts.prompt_tokens == len(asked[request_id].prompt)
        if asked[request_id].adapter == "broken":
            assert end.reason in (FinishReason.ADAPTER_FAILURE, FinishReason.DISCONNECT)


@given(worlds, loads)
def test_a_mixed_batch_equals_each_request_alone(world: World, load: list[Arrival]) -> None:
    asked = play(world, load)
    for request_id, arrival in asked.items():
        if arrival.adapter == "broken":
            assert request_id not in world.tokens
            continue
        identity = "" if arrival.adapter is None else f"{arrival.adapter}@0"
        expected = alone(arrival.prompt, identity, arrival.budget)
        got = world.tokens.get(request_id, [])
        assert got == expected[: len(got)]
        if world.finished[request_id].reason == FinishReason.LENGTH:
            assert len(got) == arrival.budget


@given(worlds, loads)
def test_blocks_are_conserved(world: World, load: list[Arrival]) -> None:
    play(world, load)  # checks the pool after every step
    assert world.pool.num_free == world.pool.num_blocks


@given(loads)
def test_preemption_changes_no_token(load: list[Arrival]) -> None:
    small, large = World(num_blocks=18, max_running=6), World(num_blocks=400, max_running=6)
    calm = [Arrival(**{**vars(arrival), "abort_at": None}) for arrival in load if arrival.adapter != "broken"]
    play(small, calm)
    play(large, calm)
    assert large.engine.stats().preemptions == 0
    assert small.tokens == large.tokens


def test_the_random_loads_do_preempt() -> None:
    world = World(num_blocks=18, max_running=6)
    for _ in range(6):
        world.submit(range(10), budget=30)
    world.run()
    assert world.engine.stats().preemptions > 0


@given(worlds, loads)
def test_prefix_cache_never_crosses_adapter_or_salt(world: World, load: list[Arrival]) -> None:
    # The simulated runner compares the root of every position it reads with the sequence's own.
    play(world, load)


@pytest.mark.parametrize(
    ("second", "is_shared"),
    [
        ({"adapter": "one", "salt": "x"}, True),
        ({"adapter": "two", "salt": "x"}, False),
        ({"adapter": None, "salt": "x"}, False),
        ({"adapter": "one", "salt": "y"}, False),
    ],
)
def test_only_the_same_adapter_and_salt_share_a_prefix(second: dict[str, str | None], is_shared: bool) -> None:
    world = World()
    world.submit(range(20), adapter="one", salt="x")
    world.run()
    again = world.submit(range(20), adapter=second["adapter"], salt=second["salt"] or "")
    world.run()
    assert world.finished[again].counts.cached_tokens == (16 if is_shared else 0)


def test_new_weights_under_an_old_name_never_meet_old_keys_and_values() -> None:
    world = World()
    world.submit(range(20), adapter="one")
    world.run()
    world.store.version += 1
    world.store.resident.clear()
    again = world.submit(range(20), adapter="one")
    world.run()
    assert world.finished[again].counts.cached_tokens == 0
    assert world.tokens[again] == alone(range(20), "one@1", 4)


@given(worlds, loads)
@settings(max_examples=30)
def test_equal_histories_give_equal_plans(world: World, load: list[Arrival]) -> None:
    play(world, load)
    twin = World(
        num_blocks=world.pool.num_blocks,
        max_rows=world.scheduler.limits.max_rows,
        max_running=world.scheduler.limits.max_running,
        store=SimulatedStore(
            capacity=world.store.capacity, polls_to_load=world.store.polls_to_load, failing={"broken"}
        ),
    )
    play(twin, load)
    assert twin.runner.plans == world.runner.plans
