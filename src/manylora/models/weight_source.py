"""The tensors of a checkpoint as the kernels pack them: fused matrices, vectors, and weights of four bits."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from manylora.kernels.interface import Kernels
from manylora.kernels.operands import Packed
from manylora.kernels.weight_groups import GroupedRows, grouped
from manylora.models.checkpoints.four_bits import StackedFourBits, stacked_four_bits
from manylora.models.checkpoints.stored import StoredTensor
from manylora.models.read_ahead import ReadAhead, Readers, Sliced, T


class WeightSource(AbstractContextManager["WeightSource"]):
    """The tensors that a model needs, with a count of the bytes read. Threads read ahead until its end.

    Args:  names     of the tensors that will be read
           progress  called with (stored bytes that are read, stored bytes of those tensors)
           threads   number of threads that read ahead
    """

    def __init__(
        self,
        entries: Mapping[str, StoredTensor],
        names: Iterable[str],
        progress: Callable[[int, int], None] | None,
        threads: int = 1,
    ) -> None:
        self._entries = entries
        self._progress = progress
        self._read = 0.0
        self._total = sum(entries[name].num_bytes for name in names)
        self._readers = Readers(threads)

    def __exit__(self, *error: object) -> None:
        self._readers.close()

    def packed(self, kernels: Kernels, *names: str) -> Packed:
        """Return matrices of equal width, one below the other, as one that is packed.

        Integers of four bits stay as they are where the kernels keep them and the groups lie side by side; all others
        are widened, piece by piece. The threads that read ahead quantise to four bits as well.
        """
        form, parts = kernels.form, self._parts(names)
        stacked = stacked_four_bits(parts, quantises=form.quantises_to_four_bits) if form.keeps_four_bits else None
        if stacked is not None:
            groups = _StackedGroups(parts, stacked)
            return kernels.pack_groups(_GroupsAhead(groups, self._ahead(groups, names)))
        return kernels.pack(self.matrix(*names))

    def matrix(self, *names: str) -> ReadAhead[Tensor]:
        """Return matrices of equal width, one below the other, as one."""
        return self._ahead(_StackedRows(self._parts(names)), names)

    def vector(self, *names: str) -> Tensor:
        """Return vectors, one after the other, as one of float32."""
        found = [_rows(self._entries[name], 0, self._entries[name].shape[0]).float() for name in names]
        for name in names:
            self._note(self._entries[name].num_bytes)
        return found[0] if len(found) == 1 else torch.cat(found)

    def _parts(self, names: Sequence[str]) -> list[StoredTensor]:
        return [self._entries[name] for name in names]

    def _ahead(self, matrix: Sliced[T], names: Sequence[str]) -> ReadAhead[T]:
        row_bytes = sum(part.num_bytes for part in self._parts(names)) / matrix.shape[0]
        return ReadAhead(matrix, self._readers, lambda rows: self._note(rows * row_bytes))

    def _note(self, num_bytes: float) -> None:
        self._read += num_bytes
        if self._progress is not None:
            self._progress(round(self._read), self._total)


def _rows(stored: StoredTensor, first: int, stop: int) -> Tensor:
    """Read rows `[first, stop)` in their own dtype."""
    values = stored.rows(first, stop)
    if values.dtype == np.uint16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def _parts_of(parts: Sequence[StoredTensor], rows: slice) -> Iterator[tuple[int, int, int]]:
    """Yield for each matrix that has some of these rows its index and the range of its own rows."""
    first, stop = rows.start, rows.stop
    for index, part in enumerate(parts):
        low, high = max(first, 0), min(stop, part.shape[0])
        if low < high:
            yield index, low, high
        first, stop = first - part.shape[0], stop - part.shape[0]


def _shape(parts: Sequence[StoredTensor]) -> tuple[int, int]:
    return sum(part.shape[0] for part in parts), parts[0].shape[1]


class _StackedRows:
    """`WeightRows` of stored matrices, one below the other: a fused product is one matrix, so that it is one GEMM."""

    def __init__(self, parts: Sequence[StoredTensor]) -> None:
        self._parts = parts
        self.shape = _shape(parts)

    def __getitem__(self, rows: slice, /) -> Tensor:
        found = [_rows(self._parts[index], low, high) for index, low, high in _parts_of(self._parts, rows)]
        return found[0] if len(found) == 1 else torch.cat(found)


class _StackedGroups:
    """`WeightGroups` of stored matrices, one below the other, of which some may have another form.

    Those are quantised in groups of 32, as a weight of another form is.
    """

    def __init__(self, parts: Sequence[StoredTensor], stacked: StackedFourBits) -> None:
        self._parts, self._groups = parts, stacked.parts
        self.shape = _shape(parts)
        self.group_size = stacked.group_size
        self.has_minima = stacked.has_minima

    def __getitem__(self, rows: slice, /) -> GroupedRows:
        found = [self._read(index, low, high) for index, low, high in _parts_of(self._parts, rows)]
        minima = [part.minima for part in found if part.minima is not None]
        return GroupedRows(
            torch.cat([part.pairs for part in found]),
            torch.cat([part.scales for part in found]),
            torch.cat(minima) if self.has_minima else None,
        )

    def _read(self, index: int, first: int, stop: int) -> GroupedRows:
        own = self._groups[index]
        if own is None:
            return grouped(_rows(self._parts[index], first, stop).float())
        found = own.four_bits(first, stop)
        minima = torch.from_numpy(found.lows()) if self.has_minima else None
        return GroupedRows(torch.from_numpy(found.pairs), torch.from_numpy(found.scales), minima)


class _GroupsAhead:
    """`WeightGroups` whose slices are read ahead."""

    def __init__(self, groups: _StackedGroups, ahead: ReadAhead[GroupedRows]) -> None:
        self.shape, self.group_size, self.has_minima = groups.shape, groups.group_size, groups.has_minima
        self._ahead = ahead

    def __getitem__(self, rows: slice, /) -> GroupedRows:
        return self._ahead[rows]
