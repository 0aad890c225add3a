"""The engine's loop knows an executor, and no process behind it."""

import dataclasses
import json
from collections.abc import Mapping

import pytest

from manylora.engine.execution.sampler import Drawn
from manylora.engine.scheduling.plan import Chunk, Plan
from manylora.engine.scheduling.sequence import Sequence
from manylora.ids import RequestId
from manylora.kernels.operands import KvCache
from tests.engine.simulation.executor import SimulatedExecutor
from tests.engine.simulation.world import World


class TwoRanks:
    """An executor that sends each plan as JSON to two ranks, and holds them to the same draws."""

    def __init__(self, first: SimulatedExecutor) -> None:
        self._ranks = first, SimulatedExecutor(first.kv.num_blocks, first.kv.block_size)

    @property
    def kv(self) -> KvCache:
        return self._ranks[0].kv

    def execute(self, plan: Plan, running: Mapping[RequestId, Sequence]) -> Mapping[RequestId, tuple[Drawn, ...]]:
        message = json.dumps(dataclasses.asdict(plan))
        first, second = (rank.execute(received(message), running) for rank in self._ranks)
        assert first == second
        assert not any(rank.mismatches for rank in self._ranks)
        return first

    def start_profile(self) -> None:
        return None

    def release(self) -> None:
        pass

    def close(self) -> None:
        for rank in self._ranks:
            rank.close()


def received(message: str) -> Plan:
    fields = json.loads(message)
    tuples = ("draft_tokens", "scored")
    chunks = tuple(Chunk(**{**chunk, **{name: tuple(chunk[name]) for name in tuples}}) for chunk in fields["chunks"])
    return Plan(fields["number"], chunks, tuple(fields["admitted"]), tuple(fields["preempted"]))


def replies(world: World) -> dict[RequestId, list[int]]:
    for length in range(1, 13):
        prompt_logprobs = 1 if length % 5 == 0 else None
        world.submit(
            [1, 2, 3] * length, budget=9, adapter=(None, "one", "two")[length % 3], prompt_logprobs=prompt_logprobs
        )
    world.run()
    assert world.engine.stats().draft_tokens
    assert world.engine.stats().preemptions
    return world.tokens


def test_an_executor_over_ranks_gives_the_same_replies() -> None:
    plain = World(guess_tokens=4, num_blocks=20)
    several = World(guess_tokens=4, num_blocks=20, open_executor=TwoRanks)
    assert replies(several) == replies(plain)
    assert several.executor.plans == plain.executor.plans


def test_the_engine_closes_its_executor() -> None:
    world = World()
    world.engine.shutdown()
    assert world.executor.is_closed


def test_the_engine_closes_its_executor_if_its_store_cannot_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError("no")

    world = World()
    monkeypatch.setattr(world.store, "close", refuse)
    with pytest.raises(OSError, match="no"):
        world.engine.close()
    assert world.executor.is_closed
