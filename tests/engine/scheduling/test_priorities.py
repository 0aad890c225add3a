"""Interactive requests beside batch requests: who goes first, who gives way, and who never starves."""

import pytest

from manylora.engine.events import FinishReason
from manylora.engine.request import Priority
from manylora.engine.scheduling.scheduler import BATCH_PATIENCE_STEPS, PATIENCE_STEPS
from manylora.ids import Flow, RequestId
from tests.engine.simulation.model import alone
from tests.engine.simulation.store import SimulatedStore
from tests.engine.simulation.world import World

BATCH = Priority.BATCH


def rows_of(world: World, request: RequestId) -> list[int]:
    """The rows of a request in each step so far."""
    return [
        sum(chunk.num_rows for chunk in plan.chunks if chunk.request_id == request) for plan in world.executor.plans
    ]


def test_a_step_with_an_interactive_prompt_has_no_batch_row() -> None:
    world = World(max_rows=8)
    batch = world.submit(range(4), priority=BATCH, budget=20)
    world.step()
    world.submit(range(24), budget=8)
    for _ in range(5):
        world.step()
    assert rows_of(world, batch) == [4, 0, 0, 0, 1, 1]


def test_batch_rows_of_a_step_are_bounded_and_fewer_beside_interactive_rows() -> None:
    world = World(max_rows=64, batch_rows=8)
    batch = world.submit(range(40), priority=BATCH, budget=2)
    world.step()
    interactive = world.submit(range(3), budget=20)
    for _ in range(3):
        world.step()
    assert rows_of(world, batch) == [8, 0, 2, 2]
    assert rows_of(world, interactive) == [0, 3, 1, 1]


@pytest.mark.parametrize(
    "world",
    [World(max_running=2, num_blocks=64), World(max_running=8, num_blocks=12)],
    ids=["places", "blocks"],
)
def test_an_interactive_request_takes_the_place_of_the_newest_batch_request(world: World) -> None:
    batch = [world.submit(range(start, start + 12), priority=BATCH, budget=8) for start in (0, 40)]
    for _ in range(3):
        world.step()
    assert list(world.scheduler.running) == batch
    interactive = world.submit(range(60, 80), budget=4)
    world.step()
    assert list(world.scheduler.running) == [batch[0], interactive]
    assert world.executor.plans[-1].preempted == (batch[1],)
    world.run()
    for request, start in zip(batch, (0, 40), strict=True):
        assert world.tokens[request] == alone(range(start, start + 12), "", 8)


def test_no_batch_request_is_admitted_while_an_interactive_one_waits_for_blocks() -> None:
    world = World(num_blocks=12, max_running=8)
    world.submit(range(30), budget=8)
    world.step()
    waiting = world.submit(range(40, 70), budget=4)
    batch = world.submit(range(4), priority=BATCH)
    world.step()
    assert waiting not in world.scheduler.running
    assert batch not in world.scheduler.running
    world.run()
    assert set(world.finished) >= {waiting, batch}


def steps_beside(world: World, request: RequestId, most: int) -> int:
    """The steps until a request ends while a new interactive prompt comes with every step."""
    for step in range(most):
        if request in world.finished:
            return step
        for number in range(2):
            world.submit((step % 90, number, 3, 4, 5, 6), flow=f"i{number}", budget=3)
        world.step()
    raise AssertionError(f"not finished within {most} steps")


def test_a_running_batch_request_never_starves() -> None:
    world = World(max_rows=16)
    batch = world.submit(range(4), priority=BATCH, budget=6)
    world.step()
    assert batch in world.scheduler.running
    steps = steps_beside(world, batch, 8 * (BATCH_PATIENCE_STEPS + 1))
    assert steps > 4 * BATCH_PATIENCE_STEPS  # and it has a small share only


@pytest.mark.parametrize("adapter", [None, "cold"])
def test_a_waiting_batch_request_never_starves(adapter: str | None) -> None:
    """Interactive requests fill every place, and those with adapters all room for adapters."""
    world = World(max_rows=16, max_running=3, store=SimulatedStore(capacity=1))
    for number in range(6):
        world.submit((number, 2), adapter="hot", flow="i", budget=9)
    world.step()
    batch = world.submit(range(4), adapter=adapter, priority=BATCH, budget=4)
    for step in range(4 * PATIENCE_STEPS):
        world.submit((step % 90, 2), adapter="hot", flow="i", budget=9)
        world.step()
        if batch in world.finished:
            break
    assert world.finished[batch].reason is FinishReason.LENGTH


def test_a_batch_request_that_had_starved_keeps_its_place() -> None:
    world = World(max_rows=16, max_running=2)
    for number in range(3):
        world.submit((number, 2), budget=2000 if number < 1 else 3)
    batch = world.submit(range(4), priority=BATCH, budget=4)
    for step in range(PATIENCE_STEPS + 8):
        world.submit((step % 90, 2, 3), budget=3)
        world.step()
    assert batch in world.finished or batch in world.scheduler.running
    assert not any(batch in plan.preempted for plan in world.executor.plans)


def test_a_flow_s_batch_work_costs_its_interactive_requests_no_share() -> None:
    world = World()
    world.submit(range(30), flow="a", priority=BATCH)
    world.run()
    assert world.scheduler.counter().served(Flow("a")) == 0
    assert world.scheduler.counter(BATCH).served(Flow("a")) > 0


def test_a_batch_request_waits_longer_than_an_interactive_one_may() -> None:
    world = World(max_running=1)
    world.engine.limits = world.engine.limits.__class__(max_model_len=4096, vocab=97, max_waiting=99, max_queue_s=1.0)
    world.submit(range(4), budget=40)
    world.step()
    interactive, batch = world.submit(range(4)), world.submit(range(4), priority=BATCH)
    world.clock.advance(2.0)
    world.step()
    assert world.finished[interactive].reason is FinishReason.QUEUE_TIMEOUT
    world.run()
    assert world.finished[batch].reason is FinishReason.LENGTH
