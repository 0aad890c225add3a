"""The start of a base on several ranks, as rank 0 leads it: order, agreement, sizes, group, weights."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from manylora.config.settings import Config
from manylora.engine.execution.ranks.commands import CommandKind
from manylora.engine.execution.ranks.group import ProcessGroupRanks, join_group, meeting_in, new_meeting
from manylora.engine.execution.ranks.processes import RankProcesses
from manylora.errors import ManyloraError, StartupError
from manylora.failure import Failure
from manylora.kernels.collectives import CollectiveFailed
from manylora.kernels.interface import Kernels
from manylora.models.checkpoint_files import checked_entries
from manylora.models.shares import share_entries
from manylora.models.spec import ModelSpec
from manylora.models.tensor_parallel import Share
from manylora.system.resources import has_cuda_device

PROGRAM = "manylora.wiring.rank_main"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankOrder:
    """The share that a rank builds."""

    config: Config
    base_dir: str
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFacts:
    """The facts that all ranks must agree on. `fingerprint`: of the base."""

    fingerprint: str
    degree: int
    kernels: str
    torch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSizes:
    """The sizes of the memory plan that each rank builds with."""

    kv_blocks: int
    block_size: int
    max_positions: int
    max_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankBegin:
    """The begin of a rank's build. `meeting`: the open file over which the ranks find each other."""

    sizes: RankSizes
    meeting: int


def rank_threads(config: Config, threads: int) -> int:
    """Return the threads of each rank, of the `threads` of all ranks together."""
    return max(1, threads // config.model.tensor_parallel)


def rank_device(config: Config, rank: int) -> str:
    """Return the device of a rank, as `model.device` names one: rank i of several has the card i."""
    device = config.model.device
    if config.model.tensor_parallel == 1 or device == "cpu" or (device == "auto" and not has_cuda_device()):
        return device
    return f"cuda:{rank}"


def rank_facts(config: Config, fingerprint: str, kernels: Kernels) -> RankFacts:
    return RankFacts(
        fingerprint=fingerprint,
        degree=config.model.tensor_parallel,
        kernels=f"{kernels.name} ({kernels.form.weights} weights)",
        torch=str(torch.__version__),
    )


class Ranks:
    """The ranks of a base during their start, and the part of rank 0.

    share        rank 0's part of the base
    processes    the other ranks
    group        rank 0's collectives, once it has joined
    """

    group: ProcessGroupRanks

    def __init__(self, config: Config, spec: ModelSpec, base_dir: Path, meeting: int) -> None:
        """Start the processes, which inherit the open file `meeting`.

        Raises: `ConfigInvalid` for a degree that does not divide the base, `StartupError`
        """
        self._config = config
        self._size = config.model.tensor_parallel
        self.share = Share(spec, self._size, 0)
        self._base_dir = base_dir
        self._meeting = meeting
        self.processes = RankProcesses(PROGRAM, self._size, config.model.rank_timeout_s, (meeting,))

    def join(self, facts: RankFacts, sizes: RankSizes) -> ProcessGroupRanks:
        """Have the ranks built up to their group, and return rank 0's collectives. They read their weights after that.

        Raises: `StartupError` that names a rank which fails, or does not agree with `facts`
        """
        self.processes.tell_each(CommandKind.ORDER, self._order)
        for number, text in enumerate(self.processes.replies(CommandKind.HELLO, start_failure), start=1):
            self._compare(number, facts, msgspec.json.decode(text, type=RankFacts))
        begin = RankBegin(sizes=sizes, meeting=self._meeting)
        self.processes.tell_each(CommandKind.BEGIN, lambda _: msgspec.json.encode(begin))
        self.processes.replies(CommandKind.FITS, start_failure)
        self.group = self._joined()
        return self.group

    def _joined(self) -> ProcessGroupRanks:
        model, meeting = self._config.model, meeting_in(self._meeting, self._size)
        try:
            return join_group(model.collectives, meeting, 0, self._size, model.rank_timeout_s)
        except CollectiveFailed as error:
            raise self.processes.failure(start_failure) or StartupError(str(error)) from error

    def await_weights(self) -> None:
        """Wait until every rank has its weights. Raises: `StartupError` that names one which fails."""
        self.processes.replies(CommandKind.READY, start_failure)

    def abandon(self) -> None:
        """End the ranks of a start that fails."""
        self.processes.end()

    def _order(self, rank: int) -> bytes:
        return msgspec.json.encode(RankOrder(config=self._config, base_dir=str(self._base_dir), rank=rank))

    def _compare(self, number: int, ours: RankFacts, theirs: RankFacts) -> None:
        for name, mine in dataclasses.asdict(ours).items():
            if (other := getattr(theirs, name)) != mine:
                raise StartupError(f"rank {number} of {self._size} has {name} {other}, and rank 0 has {mine}")


@contextmanager
def starting(config: Config, spec: ModelSpec, base_dir: Path, kernels: Kernels) -> "Iterator[Ranks | None]":
    """Start the ranks of a base, and end them if the block fails; None: it has one rank.

    Raises: `ModelUnsupported` before a process starts, for a group of four bits on two ranks
    """
    if config.model.tensor_parallel == 1:
        yield None
        return
    # Its inputs begin where the first part ends, and all are equal.
    second = Share(spec, config.model.tensor_parallel, 1)
    share_entries(checked_entries(base_dir, spec), second, keeps_four_bits=kernels.form.keeps_four_bits)
    ranks = Ranks(config, spec, base_dir, new_meeting())
    with contextlib.ExitStack() as undo:
        undo.callback(ranks.abandon)
        yield ranks
        undo.pop_all()


def start_failure(text: bytes) -> StartupError:
    """Return the failure of a rank's start; any other error is the text of a `StartupError`."""
    failure = Failure.from_json(json.loads(text))
    error: ManyloraError = failure.to_error()
    return error if isinstance(error, StartupError) else StartupError(error.message)
