"""The loop of a rank behind the first: it carries out commands in their order, and computes its share of each step."""

from torch import Tensor

from manylora.engine.execution.batch import BatchBuilder
from manylora.engine.execution.ranks.commands import CommandKind, CommandSocket
from manylora.engine.execution.ranks.mirror import Mirror
from manylora.engine.execution.ranks.placements import RankPlacements
from manylora.engine.execution.runner import Model
from manylora.kernels.operands import KvCache


class RankWorker:
    """One rank: a model's share, its keys and values, and its adapters."""

    def __init__(self, model: Model, kv: KvCache, builder: BatchBuilder, adapters: RankPlacements) -> None:
        self._model = model
        self._kv = kv
        self._builder = builder
        self._adapters = adapters
        self._mirror = Mirror()
        self._result: Tensor | None = None

    def run(self, commands: CommandSocket) -> None:
        """Carry out commands until STOP, or until rank 0 is gone. Raises the exception of a step."""
        while (command := commands.receive()) is not None:
            match command.kind:
                case CommandKind.STEP:
                    plan, running = self._mirror.decode(command.numbers)
                    step = self._builder.build(plan, running).step
                    self._result = self._model.forward(step, self._kv, self._result)
                case CommandKind.PLACE | CommandKind.ERASE:
                    self._adapters.apply(command)
                case CommandKind.BEAT:
                    commands.send(command)
                case CommandKind.DISCARD:
                    self._kv.discard(*command.numbers.tolist())
                case CommandKind.RELEASE:
                    self._builder.release()
                case CommandKind.STOP:
                    return
                case _:
                    raise AssertionError(f"not a command for a rank that runs: {command.kind!r}")
