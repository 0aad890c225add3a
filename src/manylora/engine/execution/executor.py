"""The seam between the engine's loop and the processes that compute its plans."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from manylora.engine.execution.sampler import Drawn
from manylora.engine.pooling import Floats
from manylora.engine.scheduling.plan import Plan
from manylora.engine.scheduling.sequence import Sequence
from manylora.ids import RequestId
from manylora.kernels.interface import Profile
from manylora.kernels.operands import KvCache

Results = Mapping[RequestId, tuple[Drawn, ...] | Floats]
"""The results of a step's chunks by request. A chunk in the middle of a prompt may have none."""


@dataclass(frozen=True, slots=True)
class RankNumbers:
    """Ranks that take part in steps, and the seconds that the first one spent in sums over all of them."""

    up: int = 1
    collective_s: float = 0.0


def one_rank() -> RankNumbers:
    """Return the numbers of an executor in a single process."""
    return RankNumbers()


class Executor(Protocol):
    """Computes the engine's steps, on one device or on several. `runner.Runner` is the one of a single process.

    An executor over several ranks broadcasts the plan, which is ints and strings, with the tokens and block numbers
    that are new in the sequences since the last step; the ranks keep the rest. Cf. vLLM, `v1/executor`.
    """

    @property
    def kv(self) -> KvCache:
        """Return the size of the paged keys and values and the call that discards blocks, on all ranks at once."""

    def execute(self, plan: Plan, running: Mapping[RequestId, Sequence]) -> Results:
        """Compute every chunk of the plan; return scores and drawn tokens of scored or sampled ones, and pooled rows.

        Args:     running  the sequences of the plan's chunks; read here and not kept
        Returns:  for each such chunk, one entry for each scored position, whose token is the prompt's next one; then,
                  if it is sampled, at least one draw: all but the last are its accepted draft tokens.
                  For each chunk of a pooled request that has rows of its result, these rows
        Raises:   any exception; the engine then ends the requests of this plan and goes on
        """

    def release(self) -> None:
        """Drop what is kept from one step to the next of adapters; called when no step follows at once."""

    def start_profile(self) -> Profile | None:
        """Time the kernels of every step from now on, by kind; None if the back end cannot."""

    def close(self) -> None:
        """Free the device; the executor is not used afterwards."""
