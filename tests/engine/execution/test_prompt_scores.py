"""Scores of prompts' tokens: each one once, in any batch, whatever the prefix cache has and after preemptions."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from manylora.engine.events import FinishReason
from tests.engine.simulation.model import identity_of, score_of
from tests.engine.simulation.world import World
from tests.engine.test_laws import ADAPTERS, Shape, prompts, shapes

PROMPT = tuple(range(20))

wishes = st.builds(
    lambda prompt, adapter, budget, is_scored: (prompt, adapter, budget, is_scored),
    prompts,
    st.sampled_from(ADAPTERS[:-1]),
    st.integers(0, 20),
    st.booleans() | st.just(True),
)


def expected_scores(prompt: tuple[int, ...], identity: str) -> list[float]:
    return [score_of(identity, prompt[:index], prompt[index]) for index in range(1, len(prompt))]


@given(shapes, st.lists(wishes, min_size=1, max_size=16), st.integers(1, 6))
def test_every_token_of_a_prompt_is_scored_once(
    shape: Shape, load: list[tuple[tuple[int, ...], str | None, int, bool]], max_scored_rows: int
) -> None:
    world = shape.world()
    world.scheduler.limits = dataclasses.replace(world.scheduler.limits, max_scored_rows=max_scored_rows)
    asked = {
        world.submit(prompt, adapter=adapter, budget=budget, prompt_logprobs=0 if is_scored else None): (
            prompt,
            identity_of(adapter),
            is_scored,
        )
        for prompt, adapter, budget, is_scored in load
    }
    world.run()
    assert world.scores == {
        request_id: expected_scores(prompt, identity)
        for request_id, (prompt, identity, is_scored) in asked.items()
        if is_scored
    }
    for plan in world.executor.plans:
        assert sum(chunk.num_scored for chunk in plan.chunks) <= max_scored_rows


def test_the_law_above_meets_preemptions_and_cached_prefixes() -> None:
    world = Shape(num_blocks=24, max_rows=24, max_running=6, capacity=3, polls_to_load=1).world()
    for turn in range(6):
        world.submit((*PROMPT, turn, *PROMPT), budget=20, prompt_logprobs=0)
    world.run()
    stats = world.engine.stats()
    assert stats.preemptions > 0
    assert stats.cached_tokens == 0
    assert [len(scores) for scores in world.scores.values()] == [40] * 6


def test_a_scored_prompt_leaves_its_blocks_in_the_cache_and_takes_none() -> None:
    world = World()
    for prompt_logprobs, cached_tokens in ((None, 0), (3, 0), (None, 16)):
        request_id = world.submit(PROMPT, prompt_logprobs=prompt_logprobs)
        world.run()
        assert world.finished[request_id].counts.cached_tokens == cached_tokens


def test_scoring_delays_no_other_row() -> None:
    world = World(max_scored_rows=2)
    world.submit(PROMPT, prompt_logprobs=0)
    plain = world.submit(PROMPT[1:], budget=1)
    world.step()
    assert world.finished[plain].reason is FinishReason.LENGTH


def test_a_score_that_is_not_finite_ends_its_request_alone() -> None:
    world = World()
    poisoned, sound = (world.submit((first, *PROMPT), prompt_logprobs=0) for first in (1, 2))
    world.executor.poisoned[poisoned] = 3
    world.run()
    assert world.finished[poisoned].reason is FinishReason.ENGINE_FAILURE
    assert world.finished[sound].reason is FinishReason.LENGTH
    assert list(world.scores) == [sound]
