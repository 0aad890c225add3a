"""Reads of the base's own weights in the ingest process, for adapters that cannot be packed without them.

The module imports no torch.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from manylora.adapters.base_shape import EMBED_MODULE, HEAD_MODULE, Module, module_path
from manylora.adapters.peft.tensors import Numbers, rows_a_piece
from manylora.adapters.peft.values import Float, read_values, widened
from manylora.models.checkpoint_files import EMBED, HEAD, CheckpointTensor, read_entries

_ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4}


class Matrix(Protocol):
    """A weight matrix (rows, columns) that is read piece by piece."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def rows(self, first: int, stop: int) -> Float:
        """Return rows `[first, stop)` as float32."""


class FileMatrix:
    """A matrix in a safetensors file. The rows are read, not mapped, so that they count as the process's memory."""

    def __init__(self, entry: CheckpointTensor) -> None:
        self._entry = entry

    @property
    def shape(self) -> tuple[int, int]:
        return self._entry.shape[0], self._entry.shape[1]

    def rows(self, first: int, stop: int) -> Float:
        entry = self._entry
        row_bytes = self.shape[1] * _ITEM_BYTES[entry.dtype]
        with entry.file.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), (stop - first) * row_bytes, entry.start + first * row_bytes)
        return widened(read_values(memoryview(data), entry.dtype, (stop - first, self.shape[1])))


class BaseWeights:
    """A base model's directory. Its files were checked against the spec when the server loaded them."""

    def __init__(self, directory: Path, *, is_tied: bool) -> None:
        self._entries = read_entries(directory)
        self._is_tied = is_tied  # the files of a tied model may have the head as a second copy

    def matrix(self, module: Module) -> Matrix:
        """Return a module's matrix: (out, in) of a linear layer, (vocabulary, hidden) of the embedding and the head."""
        if module == EMBED_MODULE or (module == HEAD_MODULE and self._is_tied):
            return FileMatrix(self._entries[EMBED])
        if module == HEAD_MODULE:
            return FileMatrix(self._entries[HEAD])
        return FileMatrix(self._entries[f"{module_path(module)}.weight"])


def pieces(matrix: Matrix) -> Iterator[tuple[int, Float]]:
    """Yield the matrix in pieces from its first row to its last, each with the number of the piece's first row."""
    rows, columns = matrix.shape
    count = rows_a_piece(columns)
    for first in range(0, rows, count):
        yield first, matrix.rows(first, min(rows, first + count))


def changed_rows(own: Matrix, base: Matrix) -> Numbers:
    """Return the numbers of the rows in which two tables differ, and of the rows that `own` has beyond the base's.

    The numbers ascend.
    """
    found = [
        first + np.flatnonzero((own.rows(first, first + len(piece)) != piece).any(axis=1))
        for first, piece in pieces(base)
    ]
    return np.concatenate([*found, np.arange(base.shape[0], own.shape[0])])
