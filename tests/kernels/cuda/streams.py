"""Streams and events of a card, played in host memory: a stream copies when a test runs it, and no earlier."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

OUT_OF_MEMORY = 2
"""The code `cudaErrorMemoryAllocation`."""


class FakeStream:
    """A stream by name, whose work waits for `run`."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.work: list[Callable[[], None]] = []
        self._log = log

    def run(self) -> None:
        """Do all work, in order."""
        for each in self.work:
            each()
        self.work.clear()

    def wait_event(self, event: "FakeEvent") -> None:
        self._log.append(f"{self.name} waits")


class FakeEvent:
    """An event, which its stream reaches when it runs."""

    def __init__(self, log: list[str]) -> None:
        self._log = log
        self._has_come = False

    def record(self, stream: FakeStream) -> None:
        self._stream = stream
        self._log.append(f"record on {stream.name}")
        stream.work.append(self._come)

    def _come(self) -> None:
        self._has_come = True

    def query(self) -> bool:
        return self._has_come

    def synchronize(self) -> None:
        self._log.append(f"host waits for {self._stream.name}")
        self._stream.run()


class FakeCuda:
    """The calls of `torch.cuda` that copies use. Its one call that waits is in the log.

    locked    addresses of locked pages with their bytes
    refusals  how many further calls to lock pages are refused; each leaves an error to the next operation
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.locked: dict[int, int] = {}
        self.refusals = 0
        self.last_error = 0
        self.steps = FakeStream("steps", self.log)
        self.streams: list[FakeStream] = []

    def Stream(self, device: torch.device) -> FakeStream:  # noqa: N802 - torch's name
        self.streams.append(FakeStream("copies", self.log))
        return self.streams[-1]

    def Event(self) -> FakeEvent:  # noqa: N802 - torch's name
        return FakeEvent(self.log)

    def current_stream(self, device: torch.device) -> FakeStream:
        return self.steps

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        with _Deferring(stream, self):
            yield

    def cudart(self) -> "FakeCuda":
        return self

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:  # noqa: N802 - the library's name
        assert address not in self.locked
        if self.refusals:
            self.refusals -= 1
            self.last_error = OUT_OF_MEMORY
            return OUT_OF_MEMORY
        self.locked[address] = num_bytes
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802 - the library's name
        del self.locked[address]
        self.log.append("unlock")
        return 0


class _Deferring(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch types no modes
    """Puts copies into a stream, and NaN into new memory, which a reader that is too early meets."""

    def __init__(self, stream: FakeStream, cuda: FakeCuda) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self._stream = stream
        self._cuda = cuda

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if self._cuda.last_error:
            code, self._cuda.last_error = self._cuda.last_error, 0
            raise RuntimeError(f"CUDA error {code}")
        if name == "copy_":

            def copy(into: torch.Tensor = args[0], source: torch.Tensor = args[1]) -> None:
                with _disable_current_modes():
                    into.copy_(source)

            self._cuda.log.append(f"copy on {self._stream.name}")
            self._stream.work.append(copy)
            return args[0]
        found = func(*args, **(kwargs or {}))
        if name.startswith("empty"):
            with _disable_current_modes():
                found.fill_(float("nan"))
        return found
