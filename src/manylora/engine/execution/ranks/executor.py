"""The executor of rank 0: it sends each plan to the other ranks, and computes its own share beside them."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from manylora.engine.execution.executor import RankNumbers, Results
from manylora.engine.execution.ranks.commands import Command, CommandKind
from manylora.engine.execution.ranks.group import ProcessGroupRanks
from manylora.engine.execution.ranks.heartbeat import RankHeartbeat
from manylora.engine.execution.ranks.mirror import StepEncoder
from manylora.engine.execution.ranks.processes import RankProcesses
from manylora.engine.execution.runner import Model, Runner
from manylora.engine.scheduling.plan import Plan
from manylora.engine.scheduling.sequence import Sequence
from manylora.ids import RequestId
from manylora.kernels.interface import Profile
from manylora.kernels.operands import KvCache, StepInput


class RanksExecutor:
    """An `Executor` over several ranks. A loss of one ends every later step, until the engine's process starts anew.

    Args:  runner     of rank 0, whose model is `model`
           group      the collectives of rank 0
           heartbeat  of the ranks while none computes
    """

    def __init__(
        self,
        runner: Runner,
        model: "FirstRank",
        ranks: RankProcesses,
        group: ProcessGroupRanks,
        heartbeat: RankHeartbeat,
    ) -> None:
        self._runner = runner
        self._heartbeat = heartbeat
        self._group = group
        self._model = model
        self._ranks = ranks
        self._steps = StepEncoder()
        self._is_released = True
        self.kv: KvCache = RankedKv(runner.kv, ranks)

    def execute(self, plan: Plan, running: Mapping[RequestId, Sequence]) -> Results:
        """As `Executor.execute`. Raises: `RankLost` if a rank is gone, silent, or has another state than this one."""
        self._ranks.check()
        self._is_released = False
        self._model.has_run = False
        try:
            # An encoder that fails has noted parts which the ranks were not sent, so that they are of no use after it.
            self._ranks.send(Command(CommandKind.STEP, self._steps.encode(plan, running)))
            return self._runner.execute(plan, running)
        except Exception as error:
            if self._model.has_run:
                raise  # the ranks are at the end of the same step: the error is that of a draw
            raise self._ranks.lose(str(error)) from error

    def release(self) -> None:
        """As `Executor.release`. Raises: `RankLost`"""
        self._ranks.check()
        self._runner.release()
        if not self._is_released:
            self._is_released = True
            self._ranks.send(Command(CommandKind.RELEASE))
        self._heartbeat.tend()

    def numbers(self) -> RankNumbers:
        """Return the ranks that live, this one counted, and the seconds that it spent in sums."""
        return RankNumbers(up=1 + self._ranks.num_up, collective_s=self._group.spent_s)

    def start_profile(self) -> Profile | None:
        return self._runner.start_profile()

    def close(self) -> None:
        self._runner.close()
        self._ranks.close()


class FirstRank:
    """A `Model` that notes whether its forward pass has ended."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.has_run = False

    def forward(self, step: StepInput, kv: KvCache, reuse: Tensor | None = None) -> Tensor:
        logits = self._model.forward(step, kv, reuse)
        self.has_run = True
        return logits

    def start_profile(self) -> Profile | None:
        return self._model.start_profile()


class RankedKv:
    """The `KvCache` of a rank, whose blocks are discarded on all ranks at once. Sizes are those of one rank."""

    def __init__(self, own: KvCache, ranks: RankProcesses) -> None:
        self.num_blocks, self.block_size, self.num_bytes = own.num_blocks, own.block_size, own.num_bytes
        self._own = own
        self._ranks = ranks

    def discard(self, first: int, stop: int) -> bool:
        if not self._own.discard(first, stop):
            return False
        self._ranks.send(Command(CommandKind.DISCARD, np.array([first, stop], dtype=np.int64)))
        return True
