"""Speculation: the draft tokens of a step, their acceptance, and when a step has none."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.engine.events import FinishReason
from manylora.engine.scheduling.fairness import COMPLETION_WEIGHT, SERVICE_UNITS
from manylora.engine.scheduling.plan import Plan
from manylora.ids import Flow, RequestId
from tests.engine.simulation import model
from tests.engine.simulation.model import alone
from tests.engine.simulation.world import World

LOOP = (1, 2, 3) * 4


@pytest.fixture
def _loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that counts 1, 2, 3 without end, whoever asks: after a loop every draft is accepted."""

    def counted(identity: str, tokens: Sequence[int]) -> int:
        return tokens[-1] % 3 + 1

    monkeypatch.setattr(model, "next_token", counted)


@pytest.fixture
def _never_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that never says what it or its prompt said before: every draft is rejected, and looks likely."""

    def new(identity: str, tokens: Sequence[int]) -> int:
        return len(tokens) + 10

    monkeypatch.setattr(model, "next_token", new)


def drafts(plans: Sequence[Plan]) -> list[int]:
    """The length of every draft planned, in order."""
    return [len(chunk.draft_tokens) for plan in plans for chunk in plan.chunks if chunk.draft_tokens]


@pytest.mark.usefixtures("_loops")
def test_a_loop_comes_several_tokens_a_step() -> None:
    world = World(guess_tokens=8)
    request = world.submit(LOOP, budget=30)
    world.run()
    assert world.tokens[request] == [1, 2, 3] * 10
    assert drafts(world.executor.plans) == [1, 2, 4, 8, 8, 1]
    stats = world.engine.stats()
    assert (stats.steps, stats.draft_tokens, stats.accepted_tokens) == (6, 24, 24)
    assert stats.completion_tokens == 30


@pytest.mark.usefixtures("_loops")
@pytest.mark.parametrize("budget", range(1, 12))
def test_a_draft_never_passes_the_budget(budget: int) -> None:
    world = World(guess_tokens=8)
    request = world.submit(LOOP, budget=budget)
    world.run()
    assert len(world.tokens[request]) == budget
    assert world.finished[request].reason == FinishReason.LENGTH
    assert world.engine.stats().draft_tokens == world.engine.stats().accepted_tokens


@pytest.mark.usefixtures("_loops")
@pytest.mark.parametrize("end", range(1, 9))
def test_tokens_after_a_stop_inside_an_accepted_draft_are_neither_told_nor_counted(end: int) -> None:
    world = World(guess_tokens=8)
    text = "".join(f"<{token}>" for token in ([1, 2, 3] * 10)[:end])
    request = world.submit(LOOP, budget=30, stop_strings=(text,))
    world.run()
    finished = world.finished[request]
    assert world.tokens[request] == ([1, 2, 3] * 10)[:end]
    assert (finished.reason, finished.stop_string) == (FinishReason.STOP_STRING, text)
    assert finished.counts.completion_tokens == end
    assert world.engine.stats().completion_tokens == end
    assert world.scheduler.counter().served(Flow("a")) == SERVICE_UNITS * (len(LOOP) + COMPLETION_WEIGHT * end)


@pytest.mark.usefixtures("_never_again")
def test_a_rejected_draft_is_charged_to_nobody_and_leaves_no_block() -> None:
    world = World(guess_tokens=8, block_size=1)
    request = world.submit([10, 11, 5, 10, 11], budget=2)
    world.step()
    assert drafts(world.executor.plans) == [1]
    sequence = world.scheduler.running[request]
    assert len(sequence.blocks) == sequence.computed + 1 == 6
    world.run()
    assert world.scheduler.counter().served(Flow("a")) == SERVICE_UNITS * (5 + COMPLETION_WEIGHT * 2)


@pytest.mark.usefixtures("_loops")
def test_a_request_may_forbid_it() -> None:
    world = World(guess_tokens=8)
    world.submit(LOOP, budget=9, speculation=False)
    world.run()
    assert drafts(world.executor.plans) == []


@pytest.mark.usefixtures("_loops")
def test_a_wide_batch_has_no_drafts_until_it_is_narrow_again() -> None:
    world = World(guess_tokens=2, guess_width=2, num_blocks=100)
    for budget in (4, 30, 30):
        world.submit(LOOP, budget=budget)
    world.run()
    wide = [plan for plan in world.executor.plans if len(plan.chunks) > 2]
    assert drafts(wide) == []
    assert len(drafts(world.executor.plans)) > 4


@pytest.mark.usefixtures("_loops")
def test_a_draft_uses_only_rows_and_blocks_left_over() -> None:
    world = World(guess_tokens=8, max_rows=13, num_blocks=7)
    world.submit(LOOP, budget=16)
    world.run()
    assert max(plan.num_rows for plan in world.executor.plans) <= 13
    crowded = World(guess_tokens=8, max_rows=16, num_blocks=8, prefix_cache=False)
    first, second = crowded.submit(LOOP, budget=20), crowded.submit(LOOP, budget=20)
    crowded.run()
    assert crowded.tokens[first] == crowded.tokens[second] == ([1, 2, 3] * 7)[:20]


@pytest.mark.usefixtures("_loops")
def test_a_row_that_is_not_finite_counts_only_on_the_accepted_path() -> None:
    world = World(guess_tokens=8)
    request = world.submit(LOOP, budget=30)
    world.executor.poisoned[request] = len(LOOP) + 5
    world.run()
    assert world.finished[request].reason == FinishReason.ENGINE_FAILURE
    assert world.tokens[request] == [1, 2, 3, 1, 2]
    again = world.submit((*LOOP, 1, 2, 3, 1, 2, 3, 1), budget=1)
    world.run()
    # Positions up to the broken row are good; the block that holds it never became findable.
    assert world.finished[again].counts.cached_tokens == 16


@given(st.integers(1, 20), st.integers(1, 8))
def test_a_block_that_a_draft_filled_is_found_only_as_far_as_it_was_accepted(length: int, guess_tokens: int) -> None:
    world = World(guess_tokens=guess_tokens, block_size=2)
    prompt = [7, 8, 9] * length
    first = world.submit(prompt, budget=20)
    world.run()
    said = prompt + world.tokens[first]
    again = world.submit(said, budget=20)  # reads every cached block back
    world.run()
    assert world.tokens[again] == alone(said, "", 20)
    assert world.finished[again].counts.cached_tokens == (len(said) - 1) // 2 * 2


@pytest.mark.usefixtures("_loops")
def test_a_step_that_fails_logs_its_plan_without_a_token(caplog: pytest.LogCaptureFixture) -> None:
    world = World(guess_tokens=4)
    world.submit([1, 2, 77, 88, 1, 2, 77, 88, 1, 2, 77], budget=9)
    world.executor.fail_next = True
    world.run()
    assert drafts(world.executor.plans) == [1]
    plan = caplog.messages[0].partition("plan=")[2]
    assert "'draft_tokens': 1" in plan
    assert "88" not in plan


def test_tokens_of_one_step_are_told_in_order_before_the_end() -> None:
    world = World(guess_tokens=4)
    told: list[RequestId] = []
    request = world.submit(LOOP, budget=30)
    while world.engine.has_work:
        events = world.step()
        told += [token.request_id for token in events.tokens]
        first_ones = [token for token in events.tokens if token.queue_ms is not None]
        assert len(first_ones) == (len(told) == len(events.tokens) and bool(events.tokens))
    assert told == [request] * 30
