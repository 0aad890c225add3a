"""The tensors of a weights file, read piece by piece: packing holds the file, the image and little else at once.

A whole table, or an adapter on the output head alone, is one tensor of nearly the file's size.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from manylora.adapters.base_shape import Module
from manylora.adapters.peft.safetensors_header import HeaderEntry
from manylora.adapters.peft.values import Float, Values, read_values, widened

PIECE_BYTES = 1 << 20
"""Size of a piece in float32, in bytes. A tensor of at most this size is one piece, read once."""

Numbers = np.ndarray[Any, np.dtype[np.int64]]
_RAW = {"BF16": "<u2", "F16": "<u2", "F32": "<f4"}


class Pieces(Protocol):
    """A matrix that is read some rows at a time."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def pieces(self) -> Iterator[tuple[int, Values]]:
        """Yield the matrix from its first row to its last, each piece with the number of its first row."""


class HeldTensor:
    """A matrix in memory."""

    def __init__(self, values: Values) -> None:
        self._values = values

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._values.shape)

    def pieces(self) -> Iterator[tuple[int, Values]]:
        yield 0, self._values


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """A part of one expert's matrix in the tensor of all experts.

    shape          of the tensor as it is read, three dimensions of as many elements as the file says
    axis, expert   the dimension of the experts, and the place in it; the other two are the matrix
    rows, columns  half-open ranges of the matrix
    """

    entry: HeaderEntry
    shape: tuple[int, int, int]
    axis: int
    expert: int
    rows: tuple[int, int]
    columns: tuple[int, int]

    def part(self, *, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None) -> "TensorSlice":
        """Return the same with other ranges."""
        return replace(self, rows=rows or self.rows, columns=columns or self.columns)

    def of(self, tensor: Values) -> Values:
        """Return the part as a view of the tensor (`shape`)."""
        matrix: Values = np.moveaxis(tensor, self.axis, 0)[self.expert]
        return matrix[slice(*self.rows), slice(*self.columns)]


@dataclass(frozen=True, slots=True)
class LoraModule:
    """One layer's LoRA as the file has it: A (rank, in), B (out, rank), bias and magnitude (out,).

    names      the names of the module that the config's patterns of ranks and strengths may have
    stack      the module of the tensors of all experts that A and B are parts of, or None
    base_bias  (out,), in place of the base's own bias; None: the base's
    """

    module: Module
    a: HeaderEntry | TensorSlice
    b: HeaderEntry | TensorSlice
    rank: int
    scale: float
    bias: HeaderEntry | None = None
    magnitude: HeaderEntry | None = None
    names: tuple[str, ...] = ()
    stack: Module | None = None
    base_bias: HeaderEntry | None = None


class FileTensor:
    """A tensor of a weights file in memory. `dtype` is the file's."""

    def __init__(self, raw: memoryview, dtype: str, shape: tuple[int, ...]) -> None:
        self._file = np.frombuffer(raw, dtype=_RAW[dtype]).reshape(shape)
        self._dtype = dtype

    @classmethod
    def of(cls, weights: memoryview, part: HeaderEntry | TensorSlice) -> "FileTensor":
        """Return a tensor of the file `weights`, or a part of one."""
        entry = part.entry if isinstance(part, TensorSlice) else part
        tensor = cls(weights[entry.start : entry.stop], entry.dtype, part.shape)
        if isinstance(part, TensorSlice):
            tensor._file = part.of(tensor._file)
        return tensor

    @property
    def whole(self) -> Values:
        """All values at once."""
        return self._whole

    @property
    def raw(self) -> Values:
        """The elements as the file has them: float32, or the bits of two bytes."""
        return self._file

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of a matrix: (rows, columns)."""
        return self._file.shape[0], self._file.shape[1]

    @cached_property
    def spelling(self) -> str:
        """The dtype in which `pieces` yields the values: bfloat16's bits if they hold all values, else float32."""
        if self._is_small:
            return str(self._whole.dtype.str)
        return "<u2" if all(self._read(part).dtype == np.uint16 for _, part in self._parts()) else "<f4"

    def pieces(self) -> Iterator[tuple[int, Values]]:
        """Yield the pieces in one spelling: equal values have the same bytes."""
        if self._is_small:
            yield 0, self._whole
            return
        is_wide = self.spelling == "<f4"
        for first, part in self._parts():
            values = self._read(part)
            yield first, widened(values) if is_wide else values

    def rows(self, first: int, stop: int) -> Float:
        """Return rows `[first, stop)` of a matrix as float32."""
        return widened(self._whole[first:stop] if self._is_small else self._read(self._file[first:stop]))

    def columns(self, first: int, stop: int) -> Float:
        """Return columns `[first, stop)` of a matrix as float32."""
        return widened(self._whole[:, first:stop] if self._is_small else self._read(self._file[:, first:stop]))

    def take(self, rows: Numbers) -> Float:
        """Return the rows of these numbers as float32."""
        return widened(self._read(self._file[rows]))

    @property
    def _is_small(self) -> bool:
        return self._file.size * 4 <= PIECE_BYTES

    @cached_property
    def _whole(self) -> Values:
        return self._read(self._file)

    def _parts(self) -> Iterator[tuple[int, Values]]:
        count = rows_a_piece(self._file[0].size)
        return ((first, self._file[first : first + count]) for first in range(0, len(self._file), count))

    def _read(self, part: Values) -> Values:
        return read_values(np.ascontiguousarray(part).data.cast("B"), self._dtype, part.shape)


class OwnRows:
    """An end's own rows: token ids (count,) int32 ascending, and one row (hidden,) for each id."""

    def __init__(self, *sources: tuple[FileTensor, Numbers, Numbers]) -> None:
        """Combine sources: for each source the tensor, the token ids, and the tensor's row of each id.

        The rows of a later source replace those of the sources before it.
        """
        self._tensors = [tensor for tensor, _, _ in sources]
        every = np.concatenate([np.empty(0, dtype=np.int64), *(ids for _, ids, _ in sources)])
        ids, last = np.unique(every[::-1], return_index=True)
        chosen = len(every) - 1 - last
        self.ids = ids.astype(np.int32)
        self._source = np.concatenate(
            [np.full(len(own), index) for index, (_, own, _) in enumerate(sources)] or [every]
        )[chosen]
        self._row = np.concatenate([np.empty(0, dtype=np.int64), *(rows for _, _, rows in sources)])[chosen]

    def pieces(self) -> Iterator[tuple[int, Float]]:
        """Yield the rows in the order of their ids, each piece with the place of its first row in that order."""
        if not len(self.ids):
            return
        width = self._tensors[0].shape[1]
        count = rows_a_piece(width)
        for first in range(0, len(self.ids), count):
            piece = slice(first, first + count)
            values = np.empty((len(self.ids[piece]), width), dtype=np.float32)
            for index, tensor in enumerate(self._tensors):
                here = self._source[piece] == index
                if here.any():
                    values[here] = tensor.take(self._row[piece][here])
            yield first, values


def rows_a_piece(columns: int) -> int:
    return max(1, PIECE_BYTES // (4 * columns))
