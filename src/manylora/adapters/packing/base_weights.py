"""The base's own weights, read in the ingest process where an adapter cannot be packed without them. Without torch."""

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
        """Rows `[first, stop)` as float32."""


class FileMatrix:
    """A matrix in a safetensors file. Read, not mapped: what is read counts as the process's memory, and is bounded."""

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
        self._is_tied = is_tied  # a tied model's files may carry the head a second time

    def matrix(self, module: Module) -> Matrix:
        """(out, in) of a linear layer; of the embedding and of the head (vocabulary, hidden)."""
        if module == EMBED_MODULE or (module == HEAD_MODULE and self._is_tied):
            return FileMatrix(self._entries[EMBED])
        if module == HEAD_MODULE:
            return FileMatrix(self._entries[HEAD])
        return FileMatrix(self._entries[f"{module_path(module)}.weight"])


def pieces(matrix: Matrix) -> Iterator[tuple[int, Float]]:
    """The matrix from its first row to its last, some rows at a time, each piece with the number of its first row."""
    rows, columns = matrix.shape
    count = rows_a_piece(columns)
    for first in range(0, rows, count):
        yield first, matrix.rows(first, min(rows, first + count))


def changed_rows(own: Matrix, base: Matrix) -> Numbers:
    """The rows in which two tables differ, and those that `own` has beyond the base's: ascending row numbers."""
    found = [
        first + np.flatnonzero((own.rows(first, first + len(piece)) != piece).any(axis=1))
        for first, piece in pieces(base)
    ]
    return np.concatenate([*found, np.arange(base.shape[0], own.shape[0])])
