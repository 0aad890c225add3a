"""The executor of rank 0."""

from types import SimpleNamespace
from typing import cast

import pytest

from manylora.clock import ManualClock
from manylora.engine.execution.ranks.executor import FirstRank, RanksExecutor
from manylora.engine.execution.ranks.group import ProcessGroupRanks
from manylora.engine.execution.ranks.heartbeat import RankHeartbeat
from manylora.engine.execution.ranks.processes import RankProcesses
from manylora.engine.execution.runner import Runner
from manylora.engine.scheduling.plan import Chunk, Plan
from manylora.errors import RankLost
from manylora.ids import RequestId
from tests.engine.real_store import SimulatedKv


def test_a_plan_that_cannot_be_encoded_ends_all_ranks() -> None:
    runner = cast(Runner, SimpleNamespace(kv=SimulatedKv(1, 16, 0)))
    model = cast(FirstRank, SimpleNamespace(has_run=False))
    ranks = RankProcesses("manylora.no_such_module", 1, 10.0)
    executor = RanksExecutor(runner, model, ranks, cast(ProcessGroupRanks, None), RankHeartbeat(ranks, ManualClock()))
    plan = Plan(0, (Chunk(RequestId("unknown"), 0, 1, True, (), (0, 0)),), (), ())
    for _ in range(2):
        with pytest.raises(RankLost, match="all ranks start anew"):
            executor.execute(plan, {})
