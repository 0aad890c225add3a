"""Choose the back end a machine gets: by name, or the one whose answers do not depend on the load."""

import logging
from pathlib import Path

from manylora.config.groups.model import DEFAULT_SPIN_US
from manylora.errors import NativeBuildFailed
from manylora.kernels.cpu.backend import CpuKernels
from manylora.kernels.cpu.int8 import Int8Linear
from manylora.kernels.cpu.library import NativeLibrary
from manylora.kernels.cpu.linear import Bf16Linear, LinearOperator, NativeLinear, why_not_bf16
from manylora.kernels.cpu.onednn import OneDnnLinear, why_not_onednn
from manylora.kernels.interface import Kernels
from manylora.kernels.reference import ReferenceKernels

BACK_ENDS = ("auto", "native", "native-bf16", "onednn", "reference")

log = logging.getLogger(__name__)


def select_kernels(
    name: str,
    threads: int,
    *,
    quantize: str = "none",
    spin_us: int = DEFAULT_SPIN_US,
    cache_dir: Path | None = None,
    compiler: str | None = None,
) -> Kernels:
    """Return the back end `name`, one of `BACK_ENDS`; what cannot work here falls back with one warning.

    native       own C++, bfloat16 weights, float32 activations, bit-identical rows
    native-bf16  the same with activations rounded to bfloat16 in linear layers: for processors with AVX512_BF16
    onednn       native with linear layers by oneDNN: for processors with AVX512_BF16 or AMX
    reference    torch only, float32: slow, exact, needs no compiler
    auto         native-bf16 where the processor and the compiler have it, else native; reference where no compiler is
                 installed. Never a choice by timing: equal machines, and the same machine after its engine began anew,
                 have to give the same tokens. Never onednn either: see there
    With `quantize` int8 the native kernels hold the linear layers and the embedding in int8, whatever `name` prefers;
    the reference, where nothing else works, does not quantise.
    `threads` is the size of the native pool, whose workers spin for `spin_us` microseconds before they sleep; oneDNN's
    products use torch's own threads.
    """
    if name not in BACK_ENDS:
        raise ValueError(f"unknown kernels {name!r}: choose one of {', '.join(BACK_ENDS)}")
    if name == "reference":
        return ReferenceKernels()
    try:
        native = NativeLibrary(threads, spin_us=spin_us, cache_dir=cache_dir, compiler=compiler)
    except NativeBuildFailed as error:
        log.warning("kernels.fallback to=reference reason=%s", error)
        return ReferenceKernels()
    kernels = CpuKernels(native, Int8Linear(native) if quantize == "int8" else _choose_operator(name, native))
    log.debug(
        "kernels.chosen name=%s isa=%s threads=%d row_independent=%s",
        kernels.name,
        native.isa,
        threads,
        kernels.is_row_independent,
    )
    return kernels


def _choose_operator(name: str, native: NativeLibrary) -> LinearOperator:
    if name == "native":
        return NativeLinear(native)
    reason = why_not_onednn() if name == "onednn" else why_not_bf16(native)
    if reason is None:
        return OneDnnLinear() if name == "onednn" else Bf16Linear(native)
    if name != "auto":
        log.warning("kernels.fallback to=native reason=%s", reason)
    return NativeLinear(native)
