"""A tensor of a checkpoint as every reader gives it: its file, storage format, shape and rows. Without torch."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from manylora.errors import ModelUnsupported

StoredValues = np.ndarray[Any, Any]
"""An array of float32, of float16, or of uint16 with the bits of bfloat16."""
FLOATS = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}
"""numpy's spelling of the dtypes that hold weights, by the name in safetensors."""


class StoredTensor(Protocol):
    """One tensor of a checkpoint, which is read some rows at a time.

    file       the file that has it
    dtype      its storage format: a dtype as safetensors spells it, or the name of a quantised form
    shape      (out, in) of a matrix, (elements,) of a vector
    num_bytes  size of the stored tensor
    """

    @property
    def file(self) -> Path: ...

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def num_bytes(self) -> int: ...

    def rows(self, first: int, stop: int) -> StoredValues:
        """Read rows `[first, stop)`: (stop - first, in) of a matrix, (stop - first,) of a vector.

        Raises `ModelUnsupported` if the file ends before them, `OSError` if it cannot be read.
        """


@dataclass(frozen=True, slots=True)
class DenseTensor:
    """A `StoredTensor` whose values lie in the file one after the other, from its byte `start`; dtype as safetensors'.

    The rows are read, not mapped: mapped pages would count as memory of the process until they are released.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int

    def rows(self, first: int, stop: int) -> StoredValues:
        return self.read_rows(first, stop, FLOATS[self.dtype])

    def read_rows(self, first: int, stop: int, item: str) -> StoredValues:
        """Read rows `[first, stop)` as elements of numpy's dtype `item`, also integers."""
        inner = self.shape[1:]
        values = np.empty((stop - first, *inner), dtype=item)
        read_into(self.file, values, self.start + first * math.prod(inner) * values.itemsize)
        return values


def read_into(file: Path, target: StoredValues, start: int) -> None:
    """Fill a contiguous array from a file's byte `start` on. Raises `ModelUnsupported` if the file ends before."""
    left = target.reshape(-1).view(np.uint8).data
    with file.open("rb", buffering=0) as stream:
        while left:
            count = os.preadv(stream.fileno(), [left], start)
            if not count:
                raise ModelUnsupported(f"{file} ends at byte {start}, inside a tensor; fetch the model again")
            left, start = left[count:], start + count


def widened(values: StoredValues) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return stored values as float32, exactly."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)
