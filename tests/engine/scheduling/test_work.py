"""Rows of a step end where its work does: attention counts by the positions that it reads."""

from hypothesis import given
from hypothesis import strategies as st

from manylora.config.settings import load_config
from manylora.engine.scheduling.work import LEAST_ROWS, RowWork, StepWork
from manylora.kernels.reference import ReferenceKernels
from manylora.models.experts import ExpertSpec
from manylora.models.spec import ModelSpec, parse_spec
from manylora.wiring.step_limits import row_work, step_limits
from tests.engine.simulation.model import VOCAB
from tests.engine.simulation.world import World

MAX_ROWS = 32
"""So many rows have a work of 64 together."""


def world_with(work: RowWork) -> World:
    return World(num_blocks=600, max_rows=MAX_ROWS, row_work=work, sliding_window=work.window or None)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return [(seed + 31 * position * position) % VOCAB for position in range(length)]


def rows_of(world: World, request: str) -> list[int]:
    """Rows of the request in each step that has some of it."""
    plans = world.executor.plans
    return [chunk.stop - chunk.start for plan in plans for chunk in plan.chunks if chunk.request_id == request]


@given(
    start=st.integers(0, 60),
    count=st.integers(0, 30),
    window=st.integers(0, 40),
    full=st.sampled_from([0, 1, 4]),
    windowed=st.sampled_from([0, 2]),
)
def test_work_is_the_sum_over_what_each_row_sees(start: int, count: int, window: int, full: int, windowed: int) -> None:
    work = RowWork(full=full, windowed=windowed, window=window)
    seen = range(start + 1, start + count + 1)
    expected = sum(1 + full * positions + windowed * min(positions, window) for positions in seen)
    assert work.of(start, start + count) == expected


@given(start=st.integers(0, 500), most=st.integers(0, 64), full=st.floats(0, 2), spent=st.floats(0, 200))
def test_the_rows_that_fit_are_the_most_that_do(start: int, most: int, full: float, spent: float) -> None:
    work = RowWork(full=full)
    step, left = StepWork(work, MAX_ROWS), 2 * MAX_ROWS - spent
    step._left = left
    rows = step.rows(start, most)
    assert rows == 0 or work.of(start, start + rows) <= left
    assert rows == most or work.of(start, start + rows + 1) > left


def test_chunks_of_a_long_prompt_shrink_and_streams_go_on() -> None:
    world = world_with(RowWork(full=1 / 400))
    stream = world.submit([1], budget=200)
    long = world.submit(prompt_of(1900), budget=1)
    world.run()
    rows = rows_of(world, long)
    assert rows[0] == MAX_ROWS - 1
    assert rows[-2] == 10  # beside the row of the stream
    both = [plan for plan in world.executor.plans if long in {chunk.request_id for chunk in plan.chunks}]
    assert all(len(plan.chunks) == 2 for plan in both[1:200])
    works = [sum(RowWork(full=1 / 400).of(chunk.start, chunk.stop) for chunk in plan.chunks) for plan in both]
    assert max(works) < 2 * MAX_ROWS + 1
    assert len(world.tokens[stream]) == 200


def test_behind_a_window_chunks_keep_their_size() -> None:
    world = world_with(RowWork(windowed=1 / 400, window=90))
    long = world.submit(prompt_of(1900), budget=1)
    world.run()
    assert set(rows_of(world, long)[:-1]) == {MAX_ROWS}


def test_what_the_prefix_cache_holds_is_context_and_no_work_of_its_own() -> None:
    world = world_with(RowWork(full=1 / 400))
    prompt = prompt_of(1000)
    world.submit([*prompt, 1], budget=1)
    world.run()
    again = world.submit([*prompt, *prompt_of(60, 1)], budget=1)
    world.run()
    assert world.finished[again].counts.cached_tokens == 1000
    assert rows_of(world, again)[0] == 18  # a row sees 1,000 positions, a work of 3.5 in 64


def test_a_prompt_goes_on_beside_sequences_that_decode_behind_long_contexts() -> None:
    world = world_with(RowWork(full=1 / 10))
    for seed in range(4):
        world.submit(prompt_of(300, seed), budget=300)
    while any(sequence.computed < 300 for sequence in world.scheduler.running.values()) or not world.executor.plans:
        world.step()
    late = world.submit(prompt_of(60, 9), budget=1)
    while late not in world.finished:
        world.step()
    rows = rows_of(world, late)
    assert set(rows[:-1]) == {LEAST_ROWS}


def spec_of(**changes: object) -> ModelSpec:
    fields = {
        "architectures": ["MixtralForCausalLM" if "num_local_experts" in changes else "Qwen2ForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 100,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
    }
    return parse_spec(fields | changes, {})


def test_the_work_of_a_row_comes_from_the_base_s_shape() -> None:
    block = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96
    assert row_work(spec_of()) == RowWork(full=2 * 64 / block, windowed=0, window=0)
    windows = {"use_sliding_window": True, "sliding_window": 50, "max_window_layers": 1}
    found = row_work(spec_of(**windows))
    assert (found.full, found.windowed, found.window) == (2 * 64 / block / 4, 2 * 64 / block / 4 * 3, 50)
    mixture = spec_of(num_local_experts=8, num_experts_per_tok=2)
    assert mixture.experts == ExpertSpec(count=8, chosen=2, is_normed=True)
    assert row_work(mixture).full == 2 * 64 / (block + 3 * 64 * 96 + 8 * 64)


def test_the_engine_counts_the_work_of_its_base() -> None:
    spec = spec_of()
    assert step_limits(load_config(environ={}).engine, spec, ReferenceKernels(), None).row_work == row_work(spec)


@given(position=st.integers(0, 500), window=st.integers(0, 40))
def test_the_work_of_one_row_is_that_of_a_range_of_one(position: int, window: int) -> None:
    work = RowWork(full=0.25, windowed=0.5, window=window)
    assert work.of_row(position) == work.of(position, position + 1)
