"""CUDA graphs played in host memory: the operations and launches of a function recorded once, and replayed as they are.

A replay repeats the recorded calls with the recorded tensors, and leaves each result in the memory that it had at the
capture. So a value that the capture has read on the host, and memory that is not the captured one, show in the result.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpretedFunction

from manylora.kernels.cuda.graphs import Replay

WAITS = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "is_nonzero", "equal")
"""Operations whose result the host reads, or whose shape follows from values: a card would wait for it."""
ALLOCATES = ("empty", "new_empty", "empty_like", "empty_strided")


class Launch(NamedTuple):
    """A launch of a kernel."""

    kernel: str
    grid: tuple[int, ...]


class RecordedGraphs:
    """A `StepCapture`: its captures' launches, and the number of replays."""

    def __init__(self) -> None:
        self.captures: list[list[Launch]] = []
        self.replays = 0

    def capture(self, run: Callable[[], object]) -> Replay:
        run()
        record = _Record()
        with record, record.launches():
            run()
        self.captures.append(record.launched)

        def replay() -> None:
            self.replays += 1
            for call in record.calls:
                call()

        return replay


class _Record(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch types no modes
    """Records each operation of torch as a call that writes its results where they are now."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.calls: list[Callable[[], None]] = []
        self.launched: list[Launch] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        kwargs = kwargs or {}
        is_by_mask = name.startswith("index") and any(
            isinstance(leaf, Tensor) and leaf.dtype is torch.bool for leaf in tree_leaves(args[1])
        )
        if name in WAITS or is_by_mask:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        found = func(*args, **kwargs)
        known = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        results = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        own = [each.untyped_storage().data_ptr() not in known for each in results]

        def call() -> None:
            again = [leaf for leaf in tree_leaves(func(*args, **kwargs)) if isinstance(leaf, Tensor)]
            for result, is_new, value in zip(results, own, again, strict=True):
                if is_new:
                    result.copy_(value)

        if name not in ALLOCATES:
            self.calls.append(call)
        return found

    @contextmanager
    def launches(self) -> Iterator[None]:
        """Record the launches of Triton's kernels as well."""
        launch = InterpretedFunction.run

        def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
            def call() -> None:
                launch(kernel, *args, grid=grid, warmup=warmup, **kwargs)

            with _disable_current_modes():
                call()
            self.calls.append(call)
            self.launched.append(Launch(kernel.__name__, tuple(grid)))

        with patch.object(InterpretedFunction, "run", run):
            yield
