"""The compiled C++ functions and the threads they run on."""

import weakref
from pathlib import Path
from typing import cast

import torch

from manylora.config.groups.model import DEFAULT_SPIN_US
from manylora.kernels.cpu.native.build import load_library


class NativeLibrary:
    """The loaded C++ functions and one pool of threads, shared by everything of one back end.

    Thread: one caller at a time gets the pool; a second one at the same moment is served by its own thread alone.
    """

    def __init__(
        self,
        threads: int,
        *,
        spin_us: int = DEFAULT_SPIN_US,
        cache_dir: Path | None = None,
        compiler: str | None = None,
    ) -> None:
        assert threads >= 1
        self.functions = load_library(cache_dir, compiler=compiler)
        self.threads = threads
        self.pool: int = self.functions.ml_pool_new(threads, spin_us)
        weakref.finalize(self, self.functions.ml_pool_free, self.pool)

    @property
    def isa(self) -> str:
        """Which vector code was compiled: avx512-bf16 (with products of bfloat16), avx512, avx2 or portable."""
        return cast(bytes, self.functions.ml_isa()).decode()

    def measure_bandwidth(self, *, megabytes: int = 256, repeats: int = 10) -> float:
        """Bytes per second at which the pool reads memory, the best of `repeats` passes over a fresh buffer."""
        data = torch.empty(megabytes << 18, dtype=torch.float32)
        self.functions.ml_advise_huge(data.data_ptr(), data.numel() * 4)
        data.fill_(1.0)
        return cast(float, self.functions.ml_measure_bandwidth(self.pool, data.data_ptr(), data.numel(), repeats))

    def measure_flops(self, *, repeats: int = 10) -> float:
        """Float32 operations per second of the pool on multiply-adds that touch no memory."""
        return cast(float, self.functions.ml_measure_flops(self.pool, repeats))
