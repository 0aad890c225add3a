"""The seam to CUDA graphs: launches recorded once, and their replay on the same memory."""

from collections.abc import Callable
from typing import Any, Protocol

import torch

Replay = Callable[[], None]


class StepCapture(Protocol):
    """Records the launches of a function that reads and writes tensors which stay where they are."""

    def capture(self, run: Callable[[], None]) -> Replay:
        """Call `run` once as a warm-up and once to record it; return the function that repeats its launches.

        A replay allocates nothing, waits for nothing, and reads the tensors' values at its own time. Replays and other
        launches of the calling thread run one after another.
        Raises: whatever `run` raises, and RuntimeError for a call that the device cannot record
        """


class CudaGraphs:
    """`StepCapture` by CUDA graphs, whose tensors have one pool of memory together: one replay runs at a time.

    Args:  cuda  the calls of `torch.cuda`
    Source: CUDA C++ Programming Guide, section CUDA Graphs.
    """

    def __init__(self, cuda: Any = torch.cuda) -> None:  # torch gives streams and graphs no types
        self._cuda = cuda
        self._pool = self._cuda.graph_pool_handle()

    def capture(self, run: Callable[[], None]) -> Replay:
        cuda = self._cuda
        current, own = cuda.current_stream(), cuda.Stream()
        own.wait_stream(current)
        with cuda.stream(own):
            run()  # compiles kernels and opens libraries, which a capture cannot
        current.wait_stream(own)
        graph = cuda.CUDAGraph()
        # The end of a capture that has failed raises before torch leaves the stream of the capture.
        with cuda.stream(current), cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            run()
        replay: Replay = graph.replay
        return replay
