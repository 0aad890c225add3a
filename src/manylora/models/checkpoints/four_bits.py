"""Matrices of a checkpoint that are stored in four bits, in the form that kernels of four bits take. Without torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from manylora.models.checkpoints.quantized import QuantizedMatrix
from manylora.models.checkpoints.stored import StoredTensor

BITS, BLOCK = 4, 32
_MIDDLE = 1 << BITS - 1


@dataclass(frozen=True, slots=True)
class FourBitRows:
    """Rows as `kernels.weight_groups.GroupedRows` describes: `scale * level + minimum`, or `scale * (level - 8)`.

    pairs   (rows, blocks, 16) uint8
    scales  (rows, groups) float32
    minima  (rows, groups) float32, or None
    """

    pairs: NDArray[np.uint8]
    scales: NDArray[np.float32]
    minima: NDArray[np.float32] | None

    def lows(self) -> NDArray[np.float32]:
        """Return the weights of level 0, (rows, groups)."""
        return -_MIDDLE * self.scales if self.minima is None else self.minima


@runtime_checkable
class FourBitMatrix(Protocol):
    """A stored matrix of four bits whose groups are inputs side by side.

    group_size  a multiple of 32, or at least the number of inputs
    has_minima  whether its rows have minima
    """

    @property
    def group_size(self) -> int: ...

    @property
    def has_minima(self) -> bool: ...

    def four_bits(self, first: int, stop: int) -> FourBitRows:
        """Read rows `[first, stop)`. Raises as `StoredTensor.rows`."""


@dataclass(frozen=True, slots=True)
class _FourBitQuantized:
    """A quantised matrix as `four_bits` has it.

    has_minima  whether its zero points differ from the middle level
    """

    matrix: QuantizedMatrix
    group_size: int
    has_minima: bool

    def four_bits(self, first: int, stop: int) -> FourBitRows:
        found = self.matrix.quantized(first, stop)
        minima = -(found.scales * found.zeros) if self.has_minima else None
        return FourBitRows(paired(found.levels), found.scales, minima)


def in_four_bits(stored: StoredTensor) -> FourBitMatrix | None:
    """Return a stored matrix in this form; None for one of other bits, group sizes, or orders of inputs."""
    if isinstance(stored, FourBitMatrix):
        return stored
    if not isinstance(stored, QuantizedMatrix) or stored.bits != BITS:
        return None
    size = stored.group_size
    has_other_groups = size % BLOCK and size < stored.shape[1]
    if has_other_groups or stored.quantized(0, 1).groups is not None:
        return None
    return _FourBitQuantized(stored, size, not stored.is_symmetric)


@dataclass(frozen=True, slots=True)
class StackedFourBits:
    """Matrices of equal width, one below the other, as one in four bits.

    parts  each matrix; None: it has another form, and is quantised in groups of `BLOCK`
    """

    parts: tuple[FourBitMatrix | None, ...]
    outputs: int
    inputs: int
    group_size: int

    @property
    def has_minima(self) -> bool:
        return any(part is None or part.has_minima for part in self.parts)

    @property
    def num_bytes(self) -> int:
        """Bytes of the levels, of the float16 scales and minima, and of a factor for each output."""
        blocks, groups = -(-self.inputs // BLOCK), -(-self.inputs // self.group_size)
        return self.outputs * (blocks * BLOCK // 2 + 2 * groups * (2 if self.has_minima else 1) + 4)


def stacked_four_bits(matrices: Sequence[StoredTensor], *, quantises: bool) -> StackedFourBits | None:
    """Return stored matrices of equal width as one; None if their groups differ in size.

    Args:  quantises  matrices of another form are quantised; else one of them makes the result None
    """
    parts = tuple(in_four_bits(matrix) for matrix in matrices)
    sizes = {BLOCK if part is None else part.group_size for part in parts}
    if len(sizes) > 1 or (not quantises and None in parts):
        return None
    return StackedFourBits(parts, sum(each.shape[0] for each in matrices), matrices[0].shape[1], sizes.pop())


def paired(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return levels (rows, in) as `FourBitRows.pairs`, with zeros after the last input."""
    missing = -levels.shape[1] % BLOCK
    whole = np.pad(levels, ((0, 0), (0, missing))) if missing else levels
    blocks = whole.reshape(len(levels), -1, 2, BLOCK // 2)
    found: NDArray[np.uint8] = blocks[:, :, 0] | blocks[:, :, 1] << np.uint8(4)
    return found
