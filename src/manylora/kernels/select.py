"""Choose the back end of a machine: by name, or the one that this machine always gets."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from manylora.config.groups.model import CARD_KERNELS, DEFAULT_SPIN_US, KERNELS
from manylora.errors import ConfigInvalid, NativeBuildFailed
from manylora.kernels.cpu.backend import CpuKernels
from manylora.kernels.cpu.int4 import Int4Linear
from manylora.kernels.cpu.int8 import Int8Linear
from manylora.kernels.cpu.library import NativeLibrary
from manylora.kernels.cpu.linear import Bf16Linear, NativeLinear, WeightFormat, why_not_bf16
from manylora.kernels.cuda.backend import TorchKernels
from manylora.kernels.cuda.device import dtype_of, free_bytes, resolve
from manylora.kernels.cuda.graphs import CudaGraphs
from manylora.kernels.interface import Kernels
from manylora.kernels.reference import ReferenceKernels

log = logging.getLogger(__name__)

_QUANTISED: dict[str, Callable[[NativeLibrary], WeightFormat]] = {"int8": Int8Linear, "int4": Int4Linear}


def select_kernels(
    name: str,
    threads: int,
    *,
    device: str = "cpu",
    quantize: str = "none",
    spin_us: int = DEFAULT_SPIN_US,
    cache_dir: Path | None = None,
    compiler: str | None = None,
) -> Kernels:
    """Return the back end `name`, one of `KERNELS`. A back end that cannot work here is replaced, with one warning.

    native       own C++, bfloat16 weights, float32 activations, bit-identical rows
    native-bf16  the same with activations rounded to bfloat16 in linear layers and in attention: for processors with
                 AVX512_BF16
    reference    torch only, float32: slow, exact, needs no compiler
    torch        torch only, on the CPU in float32 and on a card in bfloat16, before compute capability 8.0 in float16
    triton       own kernels in Triton, and torch for products, on a card
    auto         triton on a card, torch where it is not installed.
                 On a CPU native-bf16 where the processor and the compiler have it, else native;
                 reference where no compiler is installed. The choice never depends on a timing: equal machines, and
                 one machine before and after a restart, give the same tokens

    Args:
        device    `auto`, `cpu`, `cuda` or `cuda:n`; `auto` is a card only for `kernels` of one
        quantize  `int8`, `int4`: the form in which the kernels hold the linear layers, and the embedding and the head
                  in int8; the reference kernels ignore it
        threads   size of the native pool
        cache_dir of compiled kernels, and of the choice between products of one row
        spin_us   microseconds for which a worker of the pool spins before it sleeps
    Raises: ValueError for an unknown name; `ConfigInvalid` for a card that torch does not find, and for `triton`
            where it is not installed
    """
    if name not in KERNELS:
        raise ValueError(f"unknown kernels {name!r}: choose one of {', '.join(KERNELS)}")
    if name in CARD_KERNELS:
        found = resolve(device)
        if found.type != "cpu" or name != "auto":
            return _card_kernels(name, found, quantize, cache_dir)
    if name == "reference":
        return ReferenceKernels()
    try:
        native = NativeLibrary(threads, spin_us=spin_us, cache_dir=cache_dir, compiler=compiler)
    except NativeBuildFailed as error:
        log.warning("kernels.fallback to=reference reason=%s", error)
        return ReferenceKernels()
    quantised = _QUANTISED.get(quantize)
    kernels = CpuKernels(native, quantised(native) if quantised else _choose_format(name, native))
    log.debug("kernels.chosen name=%s isa=%s threads=%d", kernels.name, native.isa, threads)
    return kernels


def _card_kernels(name: str, device: torch.device, quantize: str, cache_dir: Path | None) -> Kernels:
    """Return the kernels of a card, or the same of the CPU.

    Without Triton `auto` is torch alone, with one warning. Raises: `ConfigInvalid` where `triton` cannot be had.
    """
    dtype = dtype_of(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Triton launches, and streams are made, on the current one
    if name == "torch":
        return TorchKernels(device, dtype, free_bytes(device), quantize)
    try:
        from manylora.kernels.cuda.jit.backend import TritonKernels
        from manylora.kernels.cuda.jit.one_row import one_row_products
        from manylora.kernels.cuda.jit.programs.interpreting import is_interpreting
    except ImportError as error:
        if name == "auto":
            log.warning("kernels.fallback to=torch reason=%s; install triton for kernels of its own", error)
            return TorchKernels(device, dtype, free_bytes(device), quantize)
        raise ConfigInvalid(f"model.kernels {name}: {error}; install triton, or use model.kernels torch") from error
    if device.type == "cpu" and not is_interpreting():
        raise ConfigInvalid(
            "model.kernels triton computes on a card: with model.device cpu it takes Triton's interpreter, for tests "
            "alone (TRITON_INTERPRET=1)"
        )
    capture = CudaGraphs() if device.type == "cuda" else None
    one_row = one_row_products(device, cache_dir) if cache_dir is not None and capture is not None else None
    return TritonKernels(device, dtype, free_bytes(device), quantize, capture=capture, one_row=one_row)


def _choose_format(name: str, native: NativeLibrary) -> WeightFormat:
    if name == "native":
        return NativeLinear(native)
    reason = why_not_bf16(native)
    if reason is None:
        return Bf16Linear(native)
    if name != "auto":
        log.warning("kernels.fallback to=native reason=%s", reason)
    return NativeLinear(native)
