"""The laws of batching, as properties over random traffic. Their names are the specification."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manylora.engine.events import FinishReason
from manylora.engine.execution.executor import Executor
from manylora.engine.request import Priority, SamplingParams
from manylora.engine.scheduling.retention import Retention
from manylora.engine.scheduling.work import LEAST_ROWS, WORK_A_ROW, RowWork
from manylora.ids import RequestId
from tests.engine.simulation.executor import SimulatedExecutor
from tests.engine.simulation.model import VOCAB, alone, logits_of, next_token
from tests.engine.simulation.store import SimulatedStore
from tests.engine.simulation.times import seconds_of
from tests.engine.simulation.world import World

HISTORY = Path(__file__).parent / "recorded_history.json"
ADAPTERS = (None, "one", "two", "three", "broken")


@dataclass(frozen=True)
class RequestState:
    """One request of a random load: it comes before step `step`, and its client hangs up at `abort_at` if not None."""

    step: int
    prompt: tuple[int, ...]
    adapter: str | None
    flow: str
    salt: str
    budget: int
    abort_at: int | None
    stop_tokens: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    priority: Priority = Priority.INTERACTIVE


def _prompt(length: int, seed: int) -> tuple[int, ...]:
    return tuple((seed + 31 * position * position) % VOCAB for position in range(length))


prompts = st.one_of(
    st.builds(_prompt, st.integers(1, 40), st.integers(0, VOCAB - 1)),
    # Prompts that begin alike, so that the prefix cache has something to find.
    st.builds(
        lambda length, tail: tuple(range(length)) + tuple(tail),
        st.integers(1, 30),
        st.lists(st.integers(0, 9), max_size=10),
    ),
)
arrivals = st.builds(
    RequestState,
    step=st.integers(0, 12) | st.just(0),
    prompt=prompts,
    adapter=st.sampled_from(ADAPTERS),
    flow=st.sampled_from("abc"),
    salt=st.sampled_from(["x", "y"]),
    budget=st.integers(1, 30) | st.integers(20, 30),
    abort_at=st.none() | st.none() | st.integers(0, 30),
    stop_tokens=st.just(()) | st.tuples(st.integers(0, VOCAB - 1)),
    stop_strings=st.just(()) | st.tuples(st.sampled_from(["><10", "<21>", "87><"])),
    priority=st.sampled_from(Priority),
)
loads = st.lists(arrivals, min_size=1, max_size=24).map(lambda load: sorted(load, key=lambda arrival: arrival.step))


@dataclass(frozen=True)
class Shape:
    """The sizes of a random world. Blocks have 4 positions and the longest request has 70: memory is short.

    `num_blocks` are those of a world without a sliding window; one with it has fewer by as many as a request may hold.
    `attention` is the work of a position that a row sees, in rows without attention.
    """

    num_blocks: int
    max_rows: int
    max_running: int
    capacity: int
    polls_to_load: int
    guess_tokens: int = 0
    guess_width: int = 0
    sliding_window: int | None = None
    attention: float = 0.0
    max_gap_steps: float = inf

    @property
    def row_work(self) -> RowWork:
        if self.sliding_window is None:
            return RowWork(full=self.attention)
        return RowWork(windowed=self.attention, window=self.sliding_window)

    def world(self, open_executor: Callable[[SimulatedExecutor], Executor] | None = None) -> World:
        store = SimulatedStore(capacity=self.capacity, polls_to_load=self.polls_to_load, failing={"broken"})
        retention = Retention(block_size=4, max_rows=self.max_rows, window=self.sliding_window)
        return World(
            num_blocks=self.num_blocks - 18 + retention.most_blocks(70),
            max_rows=self.max_rows,
            max_running=self.max_running,
            store=store,
            guess_tokens=self.guess_tokens,
            guess_width=self.guess_width,
            sliding_window=self.sliding_window,
            row_work=self.row_work,
            max_gap_steps=self.max_gap_steps,
            seconds_of=seconds_of(self.row_work),
            open_executor=open_executor,
        )


shapes = st.builds(
    Shape,
    num_blocks=st.integers(18, 24),
    max_rows=st.integers(6, 24),
    max_running=st.integers(2, 6),
    capacity=st.integers(1, 3),
    polls_to_load=st.integers(1, 5),
    guess_tokens=st.integers(0, 8),
    guess_width=st.integers(1, 6),
    sliding_window=st.none() | st.none() | st.none() | st.integers(1, 24),
    attention=st.just(0.0) | st.just(0.0) | st.sampled_from([0.02, 0.3]),
    max_gap_steps=st.just(inf) | st.sampled_from([2.0, 3.0]),
)
worlds = shapes.map(lambda shape: shape.world())


def play(world: World, load: list[RequestState]) -> dict[RequestId, RequestState]:
    """Run a load to its end and return who asked for what."""
    asked: dict[RequestId, RequestState] = {}
    pending = list(load)
    for step in range(40):
        while pending and pending[0].step <= step:
            arrival = pending.pop(0)
            request_id = world.submit(
                arrival.prompt,
                adapter=arrival.adapter,
                flow=arrival.flow,
                salt=arrival.salt,
                budget=arrival.budget,
                stop_tokens=arrival.stop_tokens,
                stop_strings=arrival.stop_strings,
                priority=arrival.priority,
            )
            asked[request_id] = arrival
        for request_id, arrival in asked.items():
            if arrival.abort_at is not None and step == arrival.step + arrival.abort_at:
                world.abort(request_id)
        world.step()
    world.run()
    return asked


@given(worlds, loads)
def test_every_request_finishes_once(world: World, load: list[RequestState]) -> None:
    asked = play(world, load)
    assert set(world.finished) == set(asked)
    for request_id, end in world.finished.items():
        assert end.counts.completion_tokens == len(world.tokens.get(request_id, []))
        assert end.counts.prompt_tokens == len(asked[request_id].prompt)
        if asked[request_id].adapter == "broken":
            assert end.reason in (FinishReason.ADAPTER_FAILURE, FinishReason.DISCONNECT)


@given(worlds, loads)
def test_computed_positions_are_counted_once(world: World, load: list[RequestState]) -> None:
    """What the runner was given of each prompt, however often after preemptions and whenever its caller left."""
    asked = play(world, load)
    reached = dict.fromkeys(asked, 0)
    for plan in world.executor.plans:
        for chunk in plan.chunks:
            stop = min(chunk.stop, len(asked[chunk.request_id].prompt))
            reached[chunk.request_id] = max(reached[chunk.request_id], stop)
    for request_id, end in world.finished.items():
        counts = end.counts
        assert counts.computed_tokens == reached[request_id]
        assert counts.cached_tokens <= counts.computed_tokens <= counts.prompt_tokens
        if counts.completion_tokens:
            assert counts.computed_tokens == counts.prompt_tokens


@given(worlds, loads)
def test_a_mixed_batch_equals_each_request_alone(world: World, load: list[RequestState]) -> None:
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
def test_blocks_are_conserved(world: World, load: list[RequestState]) -> None:
    play(world, load)  # checks the pool after every step
    assert world.pool.num_free == world.pool.num_blocks


@given(shapes, loads)
def test_the_work_of_prompts_in_a_step_is_bounded(shape: Shape, load: list[RequestState]) -> None:
    """Beside the rows that decode: what the step may have, or the first prompts' least, and a row of one more."""
    world, work = shape.world(), shape.row_work
    play(world, load)
    for plan in world.executor.plans:
        prompts = [chunk for chunk in plan.chunks if chunk.stop - chunk.start > 1]
        least = 2 * work.of(70 - LEAST_ROWS, 70)  # of both priorities
        found = sum(work.of(chunk.start, chunk.stop) for chunk in prompts)
        assert found <= max(WORK_A_ROW * shape.max_rows, least) + work.of(69, 70)


@given(loads)
def test_preemption_changes_no_token(load: list[RequestState]) -> None:
    small = World(num_blocks=18, max_running=6, guess_tokens=4)
    large = World(num_blocks=800, max_running=24, guess_tokens=4)  # every load fits at once
    calm = [RequestState(**{**vars(arrival), "abort_at": None}) for arrival in load if arrival.adapter != "broken"]
    play(small, calm)
    play(large, calm)
    assert large.engine.stats().preemptions == 0
    assert small.tokens == large.tokens


@given(shapes.filter(lambda shape: shape.guess_tokens > 0), loads)
def test_speculation_changes_no_token(shape: Shape, load: list[RequestState]) -> None:
    calm = [dataclasses.replace(arrival, abort_at=None) for arrival in load]
    plain, speculating = dataclasses.replace(shape, guess_tokens=0).world(), shape.world()
    play(plain, calm)
    play(speculating, calm)
    assert speculating.tokens == plain.tokens
    for request_id, end in speculating.finished.items():
        other = plain.finished[request_id]
        assert (end.reason, end.stop_string) == (other.reason, other.stop_string)
        assert end.counts.prompt_tokens == other.counts.prompt_tokens
        assert end.counts.completion_tokens == other.counts.completion_tokens


@pytest.mark.long
def test_the_random_loads_do_preempt_and_speculate() -> None:
    """The laws above say little of preemption and speculation unless both happen in a good part of their examples."""
    preempted: list[bool] = []
    accepted: list[bool] = []
    rejected: list[bool] = []

    @given(worlds, loads)
    @settings(max_examples=70, derandomize=True, database=None)
    def count(world: World, load: list[RequestState]) -> None:
        play(world, load)
        stats = world.engine.stats()
        preempted.append(stats.preemptions > 0)
        accepted.append(stats.accepted_tokens > 0)
        rejected.append(stats.accepted_tokens < stats.draft_tokens)

    count()
    for happened in (preempted, accepted, rejected):
        assert sum(happened) >= 0.25 * len(happened)


@dataclass(frozen=True)
class Ruled:
    """A request with logits rules."""

    prompt: tuple[int, ...]
    adapter: str | None
    budget: int
    bad_words: tuple[tuple[int, ...], ...]
    allowed: tuple[int, ...] | None
    bias: float
    frequency: float
    least: int
    stop_tokens: tuple[int, ...]

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(
            temperature=0.0,
            bad_words=self.bad_words,
            allowed_token_ids=self.allowed,
            logit_bias=((self.prompt[0], self.bias),) if self.bias else (),
            frequency_penalty=self.frequency,
        )

    def reply(self) -> list[int]:
        """The reply by the words of the rules, without any state: each token from the whole sequence before it."""
        tokens, identity = list(self.prompt), "" if self.adapter is None else f"{self.adapter}@0"
        while (count := len(tokens) - len(self.prompt)) < self.budget:
            generated = tokens[len(self.prompt) :]
            logits = logits_of(next_token(identity, tokens))
            for token in range(VOCAB):
                logits[token] -= np.float32(self.frequency) * generated.count(token)
            logits[self.prompt[0]] += self.bias
            barred = {word[-1] for word in self.bad_words if tokens[len(tokens) - len(word) + 1 :] == list(word[:-1])}
            if count < self.least:
                barred |= set(self.stop_tokens)
            if self.allowed is not None:
                barred |= set(range(VOCAB)) - set(self.allowed)
            logits[list(barred)] = -np.inf
            tokens.append(int(logits.argmax()))
            if tokens[-1] in self.stop_tokens:
                break
        return tokens[len(self.prompt) :]


small_ids = st.integers(0, 12)
ruled = st.builds(
    Ruled,
    prompt=st.lists(small_ids, min_size=1, max_size=30).map(tuple),
    adapter=st.sampled_from((None, "one", "two")),
    budget=st.integers(8, 30),
    bad_words=st.lists(st.lists(small_ids, min_size=1, max_size=3).map(tuple), max_size=4).map(tuple),
    allowed=st.sampled_from([None, tuple(range(40)), (1, 2, 13, 14)]),
    bias=st.sampled_from([0.0, 30.0]),
    frequency=st.sampled_from([0.0, 0.0, 1.5]),
    least=st.integers(0, 12),
    stop_tokens=st.lists(small_ids, max_size=3).map(tuple),
)


@given(shapes, st.lists(ruled, min_size=1, max_size=8))
def test_logits_rules_hold_in_any_batch_with_drafts_and_after_preemptions(shape: Shape, load: list[Ruled]) -> None:
    world = shape.world()
    asked = {
        world.submit(
            one.prompt,
            adapter=one.adapter,
            budget=one.budget,
            sampling=one.sampling,
            least=one.least,
            stop_tokens=one.stop_tokens,
        ): one
        for one in load
    }
    world.run()
    assert world.tokens == {request_id: one.reply() for request_id, one in asked.items()}


@pytest.mark.long
def test_the_loads_with_rules_do_preempt_and_speculate() -> None:
    """The law above says little of preemption and speculation unless both happen in a good part of its examples."""
    happened: list[tuple[bool, bool]] = []

    @given(shapes, st.lists(ruled, min_size=1, max_size=8))
    @settings(max_examples=50, derandomize=True, database=None)
    def count(shape: Shape, load: list[Ruled]) -> None:
        world = shape.world()
        for one in load:
            world.submit(one.prompt, adapter=one.adapter, budget=one.budget, sampling=one.sampling, least=one.least)
        world.run()
        stats = world.engine.stats()
        happened.append((stats.preemptions > 0, 0 < stats.accepted_tokens < stats.draft_tokens))

    count()
    for each in zip(*happened, strict=True):
        assert sum(each) >= 0.1 * len(happened)


def test_a_reply_whose_rules_leave_no_token_ends_with_the_reason() -> None:
    world = World()
    barred = SamplingParams(temperature=0.0, allowed_token_ids=(5,), bad_words=((5, 5, 5),))
    request, other = world.submit([1], budget=9, sampling=barred), world.submit([1], budget=9)
    world.run()
    assert (world.tokens[request], len(world.tokens[other])) == ([5, 5], 9)
    end = world.finished[request]
    assert (end.reason, end.counts.completion_tokens) == (FinishReason.REJECTED, 2)
    assert end.failure is not None
    assert "leave no token" in end.failure.message


look_alikes = st.builds(
    RequestState,
    step=st.integers(0, 20),
    prompt=st.integers(8, 30).map(lambda length: tuple(range(length))),
    adapter=st.sampled_from((None, "one", "two")),
    flow=st.sampled_from("ab"),
    salt=st.sampled_from(["x", "y"]),
    budget=st.integers(1, 6),
    abort_at=st.none(),
)


@given(worlds, st.lists(look_alikes, min_size=4, max_size=10).map(lambda load: sorted(load, key=lambda one: one.step)))
def test_prefix_cache_never_crosses_adapter_or_salt(world: World, load: list[RequestState]) -> None:
    # The simulated runner compares who wrote each position it reads (adapter version, salt) with the reader.
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
    store = SimulatedStore()
    world = World(store=store)
    world.submit(range(20), adapter="one")
    world.run()
    store.version += 1
    store.resident.clear()
    again = world.submit(range(20), adapter="one")
    world.run()
    assert world.finished[again].counts.cached_tokens == 0
    assert world.tokens[again] == alone(range(20), "one@1", 4)


@given(shapes, loads)
@settings(max_examples=30)
def test_equal_histories_give_equal_plans(shape: Shape, load: list[RequestState]) -> None:
    first, twin = shape.world(), shape.world()
    play(first, load)
    play(twin, load)
    assert twin.executor.plans == first.executor.plans


def recorded_arrival(fields: dict[str, Any]) -> RequestState:
    """JSON has lists where an arrival has tuples."""
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    values["priority"] = Priority(values.get("priority", Priority.INTERACTIVE))
    return RequestState(**values)


def test_a_recorded_history_still_gives_its_recorded_plans() -> None:
    """`recorded_history.json` holds a load and what was planned for it. A change of policy changes it on purpose:
    `python -m tests.engine.record_history` writes it anew, for a reviewer to see the difference."""
    recorded = json.loads(HISTORY.read_text(encoding="utf-8"))
    world = Shape(**recorded["shape"]).world()
    play(world, [recorded_arrival(arrival) for arrival in recorded["load"]])
    plans = [list(dataclasses.astuple(plan)) for plan in world.executor.plans]
    assert json.loads(json.dumps(plans)) == recorded["plans"]
