"""What a caller of the engine sees when things go wrong, and when they go well."""

import pytest

from manylora.engine.events import FinishReason
from manylora.errors import RankLost
from tests.engine.simulation.model import alone
from tests.engine.simulation.store import SimulatedStore
from tests.engine.simulation.world import World


def test_tokens_come_in_order_and_the_end_comes_last() -> None:
    world = World()
    request = world.submit(range(5), budget=6)
    world.run()
    assert world.tokens[request] == alone(range(5), "", 6)
    assert world.finished[request].reason == FinishReason.LENGTH
    assert world.finished[request].counts.total_tokens == 11


def test_a_stop_token_ends_the_generation_and_is_counted() -> None:
    expected = alone(range(5), "", 6)
    world = World()
    request = world.submit(range(5), budget=6, stop_tokens=(expected[2],))
    world.run()
    first = expected.index(expected[2])
    assert world.tokens[request] == expected[: first + 1]
    assert world.finished[request].reason == FinishReason.STOP_TOKEN


def test_a_budget_of_nothing_computes_the_prompt_and_no_more() -> None:
    world = World()
    asked = [world.submit(range(size), adapter=name, budget=0) for size in (1, 5, 40) for name in (None, "x")]
    beside = world.submit(range(7), budget=5)
    world.run()
    assert world.tokens[beside] == alone(range(7), "", 5)
    assert set(world.tokens) == {beside}
    assert [world.finished[request].counts.total_tokens for request in asked] == [1, 1, 5, 5, 40, 40]
    assert {world.finished[request].reason for request in asked} == {FinishReason.LENGTH}


def test_a_failed_load_ends_its_requests_with_the_error_and_nobody_elses() -> None:
    world = World(store=SimulatedStore(failing={"broken"}))
    broken = [world.submit([1], adapter="broken") for _ in range(3)]
    good = world.submit([1], adapter="good")
    world.run()
    for request in broken:
        failure = world.finished[request].failure
        assert failure is not None
        assert (failure.error, failure.message) == (
            "AdapterCorrupt",
            "Adapter 'broken' cannot be read: it is broken",
        )
    assert world.finished[good].reason == FinishReason.LENGTH


def test_a_faulty_step_answers_everyone_in_it_and_the_engine_goes_on() -> None:
    world = World(max_running=2)
    hit = [world.submit([1], budget=5), world.submit([2], budget=5)]
    spared = world.submit([3], budget=5)
    world.executor.fail_next = True
    world.run()
    for request in hit:
        assert world.finished[request].reason == FinishReason.ENGINE_FAILURE
    assert world.tokens[spared] == alone([3], "", 5)


def test_a_lost_rank_ends_the_engine_and_not_the_requests_of_one_step_alone() -> None:
    world = World(max_running=1)
    for token in range(3):
        world.submit([token], budget=5)
    world.executor.lost = RankLost("rank 1 of 2 has ended")
    with pytest.raises(RankLost, match="rank 1 of 2"):
        world.run()
    assert world.finished == {}


def test_a_row_that_is_not_finite_ends_alone_and_leaves_nothing_to_be_found() -> None:
    world = World()
    poisoned = world.submit(range(20), adapter="bad")
    healthy = world.submit(range(20))
    world.executor.poisoned[poisoned] = 0
    world.run()
    assert world.finished[poisoned].reason == FinishReason.ENGINE_FAILURE
    assert world.tokens[healthy] == alone(range(20), "", 4)
    again = world.submit(range(20), adapter="bad")
    world.run()
    assert world.finished[again].counts.cached_tokens == 0


def test_a_prompt_over_the_window_is_refused_with_both_numbers() -> None:
    world = World(num_blocks=8, block_size=4)
    request = world.submit(range(30), budget=3)
    world.run()
    failure = world.finished[request].failure
    assert failure is not None
    assert failure.error == "ContextLengthExceeded"
    assert failure.message == (
        "`inputs` tokens + `max_new_tokens` must be <= 32. Given: 30 `inputs` tokens and 3 `max_new_tokens`"
    )


def test_bad_token_ids_and_an_empty_prompt_are_refused() -> None:
    world = World()
    refused = [world.submit([]), world.submit([-1]), world.submit([97])]
    world.run()
    assert [world.finished[request].reason for request in refused] == [FinishReason.REJECTED] * 3


def test_a_full_queue_is_overload() -> None:
    world = World(max_waiting=2)
    requests = [world.submit([1], adapter="slow") for _ in range(3)]
    world.run()
    failure = world.finished[requests[2]].failure
    assert failure is not None
    assert failure.error == "Overloaded"
    assert len(world.tokens) == 2


def test_no_flow_fills_the_queue_for_others() -> None:
    world = World(max_waiting=16, store=SimulatedStore(polls_to_load=1_000))
    flood = [world.submit([1], adapter="slow", flow="flood") for _ in range(40)]
    quiet = world.submit([1], adapter="slow", flow="quiet")
    world.step()
    refused = [request for request in flood if request in world.finished]
    assert refused == flood[16:]
    assert quiet not in world.finished


def test_a_request_that_waits_too_long_is_told_so() -> None:
    world = World(store=SimulatedStore(polls_to_load=1_000))
    world.engine.limits = world.engine.limits.__class__(max_model_len=64, vocab=97, max_waiting=9, max_queue_s=5.0)
    request = world.submit([1], adapter="slow")
    world.step()
    world.clock.advance(6.0)
    world.step()
    assert world.finished[request].reason == FinishReason.QUEUE_TIMEOUT


def test_an_abort_frees_everything_in_every_state() -> None:
    for steps in range(8):
        world = World(max_rows=4, store=SimulatedStore(polls_to_load=3))
        request = world.submit(range(12), adapter="one", budget=50)
        for _ in range(steps):
            world.step()
        world.abort(request)
        world.run(max_steps=1)
        assert world.finished[request].reason == FinishReason.DISCONNECT


def test_an_abort_counts_the_prompt_positions_computed_until_then() -> None:
    seen = []
    for steps in range(5):
        world = World(max_rows=4)
        request = world.submit(range(12), budget=50)
        for _ in range(steps):
            world.step()
        world.abort(request)
        world.run(max_steps=1)
        counts = world.finished[request].counts
        seen.append((counts.computed_tokens, counts.completion_tokens))
    assert seen == [(0, 0), (4, 0), (8, 0), (12, 1), (12, 2)]


def test_a_prompt_computed_again_after_a_preemption_counts_once() -> None:
    world = World(num_blocks=8, block_size=4, max_rows=32, prefix_cache=False)
    older, newer = world.submit(range(10), budget=20), world.submit(range(20, 30), budget=20)
    while not world.engine.stats().preemptions:
        world.step()
    world.abort(newer)
    world.run()
    assert world.finished[newer].counts.computed_tokens == 10
    assert world.finished[older].counts.computed_tokens == 10


def test_shutdown_ends_what_is_under_way_with_a_retryable_error() -> None:
    world = World()
    running = world.submit([1], budget=50)
    world.step()
    loading = world.submit([1], adapter="slow")
    ends = {end.request_id: end for end in world.engine.shutdown().finished}
    assert set(ends) == {running, loading}
    assert all(end.reason == FinishReason.SHUTDOWN for end in ends.values())
    world.engine.check()
