"""Captures as CUDA graphs, with the calls of torch played: a failed one leaves the steps' stream the current one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from manylora.kernels.cuda.graphs import CudaGraphs


class FakeStream:
    """A stream, by identity."""

    def wait_stream(self, other: "FakeStream") -> None:
        assert other is not self


class FakeGraph:
    """A graph, whose replay is counted."""

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


class FakeGraphs:
    """The calls of `torch.cuda` that captures use, whose `graph` leaves its stream as torch's does.

    current     the current stream
    is_invalid  an operation has ended the capture
    """

    def __init__(self) -> None:
        self.steps = self.current = FakeStream()
        self.capturing = FakeStream()
        self.is_invalid = False

    def graph_pool_handle(self) -> int:
        return 1

    def current_stream(self) -> FakeStream:
        return self.current

    def Stream(self) -> FakeStream:  # noqa: N802 - torch's name
        return FakeStream()

    def CUDAGraph(self) -> FakeGraph:  # noqa: N802 - torch's name
        return FakeGraph()

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: FakeGraph, pool: int, capture_error_mode: str) -> Iterator[None]:
        before, self.current = self.current, self.capturing
        try:
            yield
        finally:
            if self.is_invalid:
                raise RuntimeError("operation failed due to a previous error during capture")
            self.current = before


@pytest.fixture
def cuda() -> FakeGraphs:
    return FakeGraphs()


def failing(cuda: FakeGraphs) -> Callable[[], None]:
    """A function with an operation that cannot be recorded."""

    def run() -> None:
        if cuda.current is cuda.capturing:
            cuda.is_invalid = True
            raise RuntimeError("operation not permitted when stream is capturing")

    return run


def test_a_capture_that_fails_leaves_the_current_stream_as_it_was(cuda: FakeGraphs) -> None:
    with pytest.raises(RuntimeError, match="previous error during capture"):
        CudaGraphs(cuda).capture(failing(cuda))
    assert cuda.current is cuda.steps


def test_a_function_is_called_beside_the_steps_and_then_recorded(cuda: FakeGraphs) -> None:
    streams: list[FakeStream] = []
    replay = CudaGraphs(cuda).capture(lambda: streams.append(cuda.current))
    replay()
    assert len(streams) == 2
    assert streams[0] not in (cuda.steps, cuda.capturing)
    assert streams[1] is cuda.capturing
    assert cuda.current is cuda.steps
