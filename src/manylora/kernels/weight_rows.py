"""A weight matrix as packing reads it: by ranges of rows, so that its dense form need never be in memory whole."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

PIECE_BYTES = 2 << 20
"""Bound on the bytes of a piece in float32."""
_PANELS = 64  # rows; a multiple of the panels of every packed form, which keep 16 or 32 outputs together


class WeightRows(Protocol):
    """A matrix (out, in) of any float dtype that is read by slices of rows. A tensor is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


def row_pieces(weight: WeightRows) -> Iterator[tuple[int, Tensor]]:
    """Yield the rows from the first to the last, each piece with the number of its first row, a multiple of 64."""
    for rows in row_ranges(weight.shape):
        yield rows.start, weight[rows].detach()


def row_ranges(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield the ranges of rows of a matrix's pieces, each from a multiple of 64 on."""
    outputs, inputs = shape
    count = max(_PANELS, PIECE_BYTES // (4 * inputs) // _PANELS * _PANELS)
    for first in range(0, outputs, count):
        yield slice(first, min(outputs, first + count))
