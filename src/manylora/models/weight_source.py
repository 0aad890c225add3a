"""The tensors of a checkpoint as the kernels pack them: fused matrices, vectors, and groups of integers."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from manylora.kernels.interface import Kernels
from manylora.kernels.operands import Packed
from manylora.kernels.weight_groups import GROUP
from manylora.kernels.weight_rows import PIECE_BYTES, WeightRows
from manylora.models.checkpoints.quantized import QuantizedGroups, QuantizedMatrix
from manylora.models.checkpoints.stored import StoredTensor

_GROUP_BITS = 4  # of the integers that `Kernels.pack_groups` takes


class WeightSource:
    """The tensors that a model needs, with a count of the bytes read.

    Args:  names     of the tensors that will be read
           progress  called with (stored bytes that are read, stored bytes of those tensors)
    """

    def __init__(
        self,
        entries: Mapping[str, StoredTensor],
        names: Iterable[str],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._entries = entries
        self._progress = progress
        self._read = 0.0
        self._total = sum(entries[name].num_bytes for name in names)

    def packed(self, kernels: Kernels, *names: str) -> Packed:
        """Return matrices of equal width, one below the other, as one that is packed.

        Integers of four bits stay as they are where the kernels hold weights in four bits and the groups lie side by
        side; all others are widened, piece by piece.
        """
        parts = [self._entries[name] for name in names]
        if kernels.weight_bits < 2 * _GROUP_BITS and (groups := self._groups(parts)) is not None:
            zeros = None if (groups.zeros == 1 << _GROUP_BITS - 1).all() else torch.from_numpy(groups.zeros)
            levels, scales = torch.from_numpy(groups.levels), torch.from_numpy(groups.scales)
            return kernels.pack_groups(levels, scales, zeros, groups.group_size)
        return kernels.pack(self.matrix(*names))

    def matrix(self, *names: str) -> WeightRows:
        """Return matrices of equal width, one below the other, as one."""
        return _StackedRows(self, [self._entries[name] for name in names])

    def vector(self, *names: str) -> Tensor:
        """Return vectors, one after the other, as one of float32."""
        found = [self.rows(self._entries[name], 0, self._entries[name].shape[0]).float() for name in names]
        return found[0] if len(found) == 1 else torch.cat(found)

    def rows(self, stored: StoredTensor, first: int, stop: int) -> Tensor:
        """Read rows `[first, stop)` in their own dtype."""
        values = stored.rows(first, stop)
        self._note(stored, stop - first)
        if values.dtype == np.uint16:
            return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(values)

    def _note(self, stored: StoredTensor, rows: int) -> None:
        self._read += stored.num_bytes * rows / stored.shape[0]
        if self._progress is not None:
            self._progress(round(self._read), self._total)

    def _groups(self, parts: Sequence[StoredTensor]) -> QuantizedGroups | None:
        """Return quantised parts as one matrix; None if `Kernels.pack_groups` does not take them."""
        inputs = parts[0].shape[1]
        matrices = [part for part in parts if isinstance(part, QuantizedMatrix) and part.bits == _GROUP_BITS]
        sizes = {part.group_size for part in matrices}
        size = next(iter(sizes), 0)
        if len(matrices) < len(parts) or len(sizes) > 1 or (size % GROUP and size < inputs):
            return None
        levels = np.empty((sum(part.shape[0] for part in parts), inputs), dtype=np.uint8)
        pieces: list[QuantizedGroups] = []
        row = 0
        for matrix, first, stop in _pieces(matrices):
            piece = matrix.quantized(first, stop)
            if piece.groups is not None:
                return None
            levels[row : row + stop - first] = piece.levels
            row += stop - first
            pieces.append(piece)
        for part in parts:
            self._note(part, part.shape[0])
        scales, zeros = (np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("scales", "zeros"))
        return QuantizedGroups(bits=_GROUP_BITS, levels=levels, scales=scales, zeros=zeros, group_size=size)


def _pieces(matrices: Sequence[QuantizedMatrix]) -> Iterable[tuple[QuantizedMatrix, int, int]]:
    """Yield each matrix with ranges of its rows, whose integers take `PIECE_BYTES` at most."""
    for matrix in matrices:
        count = max(GROUP, PIECE_BYTES // matrix.shape[1])
        for first in range(0, matrix.shape[0], count):
            yield matrix, first, min(matrix.shape[0], first + count)


class _StackedRows:
    """`WeightRows` of stored matrices, one below the other: a fused product is one matrix, so that it is one GEMM."""

    def __init__(self, source: WeightSource, parts: Sequence[StoredTensor]) -> None:
        self._source = source
        self._parts = parts
        self.shape = (sum(part.shape[0] for part in parts), parts[0].shape[1])

    def __getitem__(self, rows: slice, /) -> Tensor:
        first, stop, _ = rows.indices(self.shape[0])
        found = []
        for part in self._parts:
            low, high = max(first, 0), min(stop, part.shape[0])
            if low < high:
                found.append(self._source.rows(part, low, high))
            first, stop = first - part.shape[0], stop - part.shape[0]
        return found[0] if len(found) == 1 else torch.cat(found)
