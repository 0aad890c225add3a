"""Differences from a result in float32, and how large they may be: at most twice those of torch in the same dtype."""

import torch
from torch import Tensor

FLOAT32_DIFFERENCE = 1e-5


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference ÷ the largest value; infinite if a value is none."""
    if not found.isfinite().all():
        return float("inf")
    return ((found - expected).abs().max() / expected.abs().max()).item()


def of_tolerance(difference: float, of_torch: float, dtype: torch.dtype) -> float:
    """Return a difference ÷ the tolerance: twice that of torch, or the last bit of the dtype if that is larger."""
    return difference / max(FLOAT32_DIFFERENCE, torch.finfo(dtype).eps, 2 * of_torch)
