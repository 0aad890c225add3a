"""The estimate of a step's time, and what plans make of it: running streams keep moving beside prompts."""

from collections.abc import Callable, Iterable
from math import inf, isfinite
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from manylora.engine.request import Priority
from manylora.engine.scheduling.plan import Chunk, Plan
from manylora.engine.scheduling.step_times import LEAST_STEPS, StepTimes
from manylora.engine.scheduling.work import LEAST_ROWS, RowWork, StepTime, StepWork
from manylora.ids import RequestId
from tests.engine.simulation.model import VOCAB
from tests.engine.simulation.times import ATTENTION_S, DECODE_ROW_S, PROMPT_ROW_S, READ_S, seconds_of
from tests.engine.simulation.world import World

WORK = RowWork(full=1 / 400)
TRUE = StepTime(step_s=READ_S, decode_row_s=DECODE_ROW_S, prompt_row_s=PROMPT_ROW_S, attention_s=ATTENTION_S)


def plan_of(decoding: int, *prompts: tuple[int, int]) -> Plan:
    """Return a plan of rows that decode and of prompts' ranges."""
    chunks = [Chunk(RequestId(f"d{row}"), 50, 51, is_sampled=True) for row in range(decoding)]
    chunks += [Chunk(RequestId(f"p{start}"), start, stop, is_sampled=False) for start, stop in prompts]
    return Plan(1, tuple(chunks), (), ())


plans = st.builds(
    lambda decoding, start, rows: plan_of(decoding, *([(start, start + rows)] if rows else [])),
    st.integers(1, 32),
    st.integers(0, 3000),
    st.just(0) | st.integers(2, 64),
)


@given(st.lists(plans, min_size=60, max_size=60), st.floats(0.01, 100))
@settings(max_examples=30)
def test_the_estimate_comes_near_the_true_time(load: list[Plan], speed: float) -> None:
    times, seconds = StepTimes(WORK), seconds_of(WORK)
    spread = [plan_of(rows) for rows in (1, 16, 32)] + [plan_of(8, (start, start + 40)) for start in (0, 900, 2000)]
    for plan in load + spread * (2 * LEAST_STEPS):
        times.note(plan, speed * seconds(plan))
    estimate = times.estimate()
    assert estimate is not None
    for rows in (1, 8, 32):
        assert estimate.of_decoding(rows) == pytest.approx(speed * TRUE.of_decoding(rows), rel=0.1)
    for start, stop in ((0, 40), (2000, 2032)):
        found = estimate.of_prompt(WORK, start, stop)
        assert found == pytest.approx(speed * TRUE.of_prompt(WORK, start, stop), rel=0.15)


@given(st.lists(st.tuples(plans, st.floats(0, 1e3)), min_size=20, max_size=60))
def test_no_part_of_the_estimate_is_negative(load: list[tuple[Plan, float]]) -> None:
    times = StepTimes(WORK)
    for plan, took_s in load:
        times.note(plan, took_s)
        if (estimate := times.estimate()) is not None:
            parts = (estimate.step_s, estimate.decode_row_s, estimate.prompt_row_s, estimate.attention_s)
            assert all(part >= 0 and isfinite(part) for part in parts)


def test_few_steps_give_no_estimate_and_a_clock_that_stands_still_gives_none() -> None:
    times, seconds = StepTimes(WORK), seconds_of(WORK)
    for _ in range(LEAST_STEPS - 1):
        times.note(plan_of(4), seconds(plan_of(4)))
        times.note(plan_of(0, (0, 30)), seconds(plan_of(0, (0, 30))))
    times.note(plan_of(4), 0.0)
    times.note(plan_of(0, (0, 30)), 0.0)
    assert times.estimate() is None


RECOVERY_STEPS = 128
"""Steps of each kind within which any change of speed is undone in the estimate, whatever came before."""


def error_of(times: StepTimes, speed: float = 1.0) -> float:
    """Return the largest relative error of the estimate over steps like those of `note_steps`."""
    estimate = times.estimate()
    assert estimate is not None
    found = [estimate.of_decoding(rows) / TRUE.of_decoding(rows) for rows in (4, 16)]
    for start, stop in ((0, 40), (1000, 1060)):
        beside = estimate.of_decoding(8) + estimate.of_prompt(WORK, start, stop)
        found.append(beside / (TRUE.of_decoding(8) + TRUE.of_prompt(WORK, start, stop)))
    return max(abs(ratio / speed - 1) for ratio in found)


def note_steps(times: StepTimes, factors: Iterable[float], *, rows: int = 40) -> None:
    """Note a step of each kind for each factor on its true time; `rows` is the length of prompts' chunks."""
    seconds = seconds_of(WORK)
    for number, factor in enumerate(factors):
        start = 200 * (number % 8)
        for plan in (plan_of(4 + number % 13), plan_of(8, (start, start + rows))):
            times.note(plan, factor * seconds(plan))


@given(
    before=st.lists(st.floats(0.5, 2), max_size=40),
    slow=st.floats(1 / 50, 50),
    slow_steps=st.integers(LEAST_STEPS, 60),
    slow_rows=st.integers(8, 256),
    rows=st.integers(20, 60),
)
@example(before=[], slow=20.0, slow_steps=8, slow_rows=256, rows=20)
@example(before=[1.0] * 8, slow=14.6, slow_steps=9, slow_rows=50, rows=60)
@settings(max_examples=40, deadline=None)
def test_any_change_of_speed_is_undone_within_the_recovery_steps(
    before: list[float], slow: float, slow_steps: int, slow_rows: int, rows: int
) -> None:
    times = StepTimes(WORK)
    note_steps(times, before)
    note_steps(times, [slow] * slow_steps, rows=slow_rows)
    note_steps(times, [1.0] * RECOVERY_STEPS, rows=rows)
    assert error_of(times) < 0.2


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_slow_steps_here_and_there_move_the_estimate_little(share: float) -> None:
    source = Random(7)
    times = StepTimes(WORK)
    for _ in range(10):
        factors = [source.uniform(3, 50) if source.random() < share else source.uniform(0.9, 1.1) for _ in range(100)]
        note_steps(times, factors)
        assert error_of(times) < 0.1 + 2.5 * share


@pytest.mark.parametrize("kind", [plan_of(8), plan_of(8, (0, 40))])
def test_one_slow_step_moves_the_estimate_little(kind: Plan) -> None:
    times = StepTimes(WORK)
    note_steps(times, [1.0] * 100)
    times.note(kind, 50.0 * seconds_of(WORK)(kind))
    assert error_of(times) < 0.1


@given(
    start=st.integers(0, 5000),
    most=st.integers(1, 64),
    limit_s=st.floats(-0.1, 0.1),
    times=st.builds(
        StepTime,
        step_s=st.floats(0, 0.1),
        decode_row_s=st.floats(0, 0.01),
        prompt_row_s=st.floats(0, 0.01),
        attention_s=st.floats(0, 0.01),
    ),
)
def test_rows_of_prompts_end_where_the_time_does(start: int, most: int, limit_s: float, times: StepTime) -> None:
    step = StepWork(WORK, 10_000)
    step.bound_time(times, limit_s)
    rows = step.fit(start, most)
    assert rows >= min(most, LEAST_ROWS)
    assert rows <= LEAST_ROWS or times.of_prompt(WORK, start, start + rows) <= limit_s
    assert rows == most or times.of_prompt(WORK, start, start + rows + 1) > limit_s


def world_with(bound: float, seconds: Callable[[Plan], float]) -> World:
    """Return a world with four streams, and with steps enough for an estimate."""
    world = World(num_blocks=500, max_rows=64, row_work=WORK, max_gap_steps=bound, seconds_of=seconds)
    for stream in range(4):
        world.submit([stream], budget=250)
    for _ in range(LEAST_STEPS + 1):
        world.step()
    gaps_beside(world, [prompt_of(62, seed) for seed in range(1, LEAST_STEPS + 1)])
    return world


def gaps_beside(world: World, prompts: list[list[int]]) -> list[float]:
    """Run prompts one after another; return the time of each step with rows of one beside all four streams."""
    found: list[float] = []
    for prompt in prompts:
        request = world.submit(prompt, budget=1)
        while request not in world.finished:
            begun_s = world.clock.monotonic_s()
            world.step()
            if len(world.executor.plans[-1].chunks) == 5:
                found.append(world.clock.monotonic_s() - begun_s)
    return found


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return [(seed + 31 * position * position) % VOCAB for position in range(length)]


@pytest.mark.parametrize("bound", [4.0, 6.0, inf])
def test_gaps_of_streams_beside_prompts_stay_within_the_bound(bound: float) -> None:
    world = world_with(bound, seconds_of(WORK))
    found = gaps_beside(world, [prompt_of(600), prompt_of(40, 9)])
    in_steps = [gap / TRUE.of_decoding(4) for gap in found]
    if bound == inf:
        assert max(in_steps) > 8
    else:
        assert max(in_steps) < 1.1 * bound
        assert sorted(in_steps)[len(in_steps) // 2] > 0.85 * bound, "the time allowed is used"


def test_a_prompt_goes_on_although_its_least_rows_take_longer_than_the_bound() -> None:
    world = world_with(2.0, lambda plan: 1.0 if plan.num_rows < 8 else 50.0 * plan.num_rows)
    number = len(world.executor.plans)
    gaps_beside(world, [prompt_of(60, 9)])
    rows = [plan.num_rows - 4 for plan in world.executor.plans[number:]]
    assert set(rows[:-1]) == {LEAST_ROWS}


def test_batch_streams_do_not_shorten_prompts() -> None:
    world = world_with(2.0, seconds_of(WORK))
    for request in list(world.scheduler.running):
        world.abort(request)
    for stream in range(3):
        world.submit([stream], budget=100, priority=Priority.BATCH)
    for _ in range(5):
        world.step()
    world.submit(prompt_of(200, 9), budget=1)
    world.step()
    assert [chunk.num_rows for chunk in world.executor.plans[-1].chunks] == [64]
