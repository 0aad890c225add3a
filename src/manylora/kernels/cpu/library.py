"""The compiled C++ functions and the threads they run on."""

import weakref
from pathlib import Path
from typing import cast

import torch

from manylora.config.groups.model import DEFAULT_SPIN_US
from manylora.kernels.cpu.native.build import load_library
from manylora.kernels.cpu.native.headers import made_headers
from manylora.kernels.operation import Operation
from manylora.kernels.table_of_operations import OPERATIONS


class NativeLibrary:
    """The loaded C++ functions and one pool of threads, which all parts of one back end share.

    Thread: the pool serves one caller at a time; a second one at the same moment computes on its own thread alone.
    """

    def __init__(
        self,
        threads: int,
        *,
        spin_us: int = DEFAULT_SPIN_US,
        cache_dir: Path | None = None,
        compiler: str | None = None,
        operations: tuple[Operation, ...] = OPERATIONS,
    ) -> None:
        """Load the functions of the operations that are no collectives. Raises: NativeBuildFailed."""
        assert threads >= 1
        self.operations = tuple(row for row in operations if not row.result.is_collective)
        self.functions = load_library(cache_dir, compiler=compiler, headers=made_headers(operations))
        self.threads = threads
        self.pool: int = self.functions.ml_pool_new(threads, spin_us)
        weakref.finalize(self, self.functions.ml_pool_free, self.pool)

    @property
    def isa(self) -> str:
        """Name of the vector code: avx512-bf16 (with products of bfloat16), avx512, avx2 or portable."""
        return cast(bytes, self.functions.ml_isa()).decode()

    def measure_bandwidth(self, *, megabytes: int = 256, repeats: int = 10) -> float:
        """Return the memory bytes per second that the pool reads: the best of `repeats` passes over a new buffer."""
        data = torch.empty(megabytes << 18, dtype=torch.float32)
        self.functions.ml_advise_huge(data.data_ptr(), data.numel() * 4)
        data.fill_(1.0)
        return cast(float, self.functions.ml_measure_bandwidth(self.pool, data.data_ptr(), data.numel(), repeats))

    def measure_flops(self, *, repeats: int = 10) -> float:
        """Return the float32 operations per second of the pool, on multiply-adds in registers."""
        return cast(float, self.functions.ml_measure_flops(self.pool, repeats))
