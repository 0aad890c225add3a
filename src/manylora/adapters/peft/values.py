"""The values of weights files: read in one spelling, widened to float32, cast to the served dtype. Without torch."""

from typing import Any

import numpy as np

Float = np.ndarray[Any, np.dtype[np.float32]]
Values = np.ndarray[Any, Any]
"""An array of float32, or of uint16 with the bits of bfloat16; those of a served image may be float16, too."""
SPELLINGS = {"bfloat16": np.uint16, "float32": np.float32, "float16": np.float16}
"""numpy's dtype of values by the served dtype."""


def read_values(raw: memoryview, dtype: str, shape: tuple[int, ...]) -> Values:
    """Return a tensor's values: uint16 (the bits of bfloat16) if that holds them exactly, else float32.

    `dtype` is the file's: BF16, F16 or F32. Equal values have one spelling, independent of the dtype of the file.
    """
    if dtype == "BF16":
        return np.frombuffer(raw, dtype="<u2").reshape(shape)
    wide = _half_to_float32(np.frombuffer(raw, dtype="<u2")) if dtype == "F16" else np.frombuffer(raw, dtype="<f4")
    return narrowed(wide).reshape(shape)


def narrowed(wide: Float) -> Values:
    """Return float32 values as the bits of bfloat16 if that holds them exactly, else unchanged."""
    bits = wide.view(np.uint32)
    return wide if (bits & 0xFFFF).any() else (bits >> 16).astype(np.uint16)


def widened(values: Values) -> Float:
    return values if values.dtype == np.float32 else (values.astype(np.uint32) << 16).view(np.float32)


def cast_into(target: Values, values: Values) -> bool:
    """Write `values` in the target's dtype (uint16 holds bfloat16). Return whether all are finite in both dtypes.

    Values beyond the range of float16 are not finite in it.
    """
    if target.dtype == values.dtype == np.uint16:
        target[:] = values
    elif target.dtype == np.uint16:
        if not np.isfinite(values).all():
            return False  # rounding would carry some NaNs over into other numbers
        bits = values.view(np.uint32)
        target[:] = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    else:
        with np.errstate(over="ignore"):  # the check below finds infinities
            target[:] = widened(values)
        return bool(np.isfinite(target).all())
    return not ((target & 0x7F80) == 0x7F80).any()


def _half_to_float32(half: np.ndarray[Any, np.dtype[np.uint16]]) -> Float:
    """Return float16 values as float32, computed from their bits, exactly; NaN for Inf and NaN.

    numpy's own conversion takes four times as long.
    """
    wide = half.astype(np.uint32)
    values = ((wide & 0x7FFF) << 13).view(np.float32) * np.float32(2.0**112)  # the exponents' biases differ by 112
    values.view(np.uint32)[:] |= (wide & 0x8000) << 16
    if not ((half & 0x7C00) == 0x7C00).any():
        return values
    return np.where((half & 0x7C00) == 0x7C00, np.float32(np.nan), values)
