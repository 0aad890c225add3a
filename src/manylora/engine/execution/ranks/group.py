"""The collectives of ranks in processes of one machine, over torch's process groups."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore, GatherOptions, Store, Work

from manylora.clock import SystemClock
from manylora.kernels.collectives import CollectiveFailed

LOOPBACK = "127.0.0.1"


class _Group(Protocol):
    """A back end of torch. Its own stub lacks the method."""

    def allgather(self, parts: list[list[Tensor]], own: list[Tensor], /) -> Work: ...
    def gather(self, parts: list[list[Tensor]], own: list[Tensor], /, opts: GatherOptions) -> Work: ...


class ProcessGroupRanks:
    """`Collectives` over one process group. `device`: where the group exchanges tensors; results lie in host memory.

    spent_s  seconds in the exchanges so far, the waits for the other ranks included
    Thread:  one at a time
    """

    def __init__(self, group: _Group, rank: int, size: int, device: str = "cpu") -> None:
        self.rank = rank
        self.size = size
        self.spent_s = 0.0
        self._group = group
        self._device = device
        self._clock = SystemClock()

    def gather(self, x: Tensor) -> list[Tensor]:
        return self._exchange(x, self.size, lambda parts, own: self._group.allgather([parts], [own]))

    def collect(self, x: Tensor) -> list[Tensor]:
        options = GatherOptions()
        options.rootRank = 0
        count = 0 if self.rank else self.size
        return self._exchange(x, count, lambda parts, own: self._group.gather([parts] if parts else [], [own], options))

    def _exchange(self, x: Tensor, count: int, begin: Callable[[list[Tensor], Tensor], Work]) -> list[Tensor]:
        """Begin an exchange with memory for `count` parts, and return them when it has ended."""
        begun_s = self._clock.monotonic_s()
        own = x.to(self._device)
        parts = [torch.empty_like(own) for _ in range(count)]
        try:
            begin(parts, own).wait()
        except RuntimeError as error:
            raise CollectiveFailed(f"rank {self.rank} of {self.size} has lost the others: {error}") from error
        found = [part.to(x.device) for part in parts]
        self.spent_s += self._clock.monotonic_s() - begun_s
        return found


def join_group(backend: str, meeting: Store, rank: int, size: int, timeout_s: float) -> ProcessGroupRanks:
    """Return the collectives of one rank, after all ranks have joined and none of them needs the meeting any more.

    Args:    backend    `gloo` or `nccl`; with the latter rank i exchanges rows on the CUDA device i
             meeting    the store in which the ranks exchange their addresses
             timeout_s  longest wait for the others, here and in each collective
    Raises:  CollectiveFailed if they do not join, or if torch lacks the back end
    """
    timeout = timedelta(seconds=timeout_s)
    try:
        if backend == "nccl":
            found = ProcessGroupRanks(_nccl(meeting, rank, size, timeout), rank, size, f"cuda:{rank}")
        else:
            found = ProcessGroupRanks(_gloo(meeting, rank, size, timeout), rank, size)
        found.gather(torch.zeros(1))
        return found
    except (AttributeError, RuntimeError) as error:
        raise CollectiveFailed(f"rank {rank} of {size} cannot join the others by {backend}: {error}") from error


def new_meeting() -> int:
    """Return the number of a file in memory for `meeting_in`. It is in no folder, so that a kill leaves nothing behind.

    The file stays open as long as the process: a group keeps its store, whose end opens the file by its number again,
    and would find another file under that number.
    """
    return os.memfd_create("manylora-ranks")


def meeting_in(file: int, size: int) -> Store:
    """Return the store in which `size` processes meet, over an open file that each of them has inherited.

    The store opens the file once more, for itself.
    """
    return FileStore(f"/proc/self/fd/{file}", size)


def _gloo(meeting: Store, rank: int, size: int, timeout: timedelta) -> _Group:
    """Return a group whose sockets listen on the loopback address alone; torch's default is the host's name."""
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # torch's stub lacks it
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=LOOPBACK)]
    options._timeout = timeout
    options._threads = 1
    return cast(_Group, dist.ProcessGroupGloo(meeting, rank, size, options))


def _nccl(meeting: Store, rank: int, size: int, timeout: timedelta) -> _Group:
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return cast(_Group, dist.ProcessGroupNCCL(meeting, rank, size, options))
