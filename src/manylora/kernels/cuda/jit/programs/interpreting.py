"""Triton's interpreter, which runs kernels on tensors in host memory: whether it is on, and what it cannot do."""

import torch
import triton


def is_interpreting() -> bool:
    """Return whether kernels run in the interpreter: `TRITON_INTERPRET=1` was set when Triton was imported."""
    return bool(triton.knobs.runtime.interpret)


def is_wide(dtype: torch.dtype) -> bool:
    """Return whether operands of this dtype go into products as float32.

    The interpreter of Triton 3.7 and earlier multiplies the bits of bfloat16 (triton#11584).
    """
    return dtype is torch.float32 or (dtype is torch.bfloat16 and is_interpreting())
