"""Reads of the base's own weights in the ingest process, for adapters that cannot be packed without them.

The module imports no torch.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from manylora.adapters.base_shape import EMBED_MODULE, HEAD_MODULE, Module, module_path
from manylora.adapters.peft.tensors import Numbers, rows_a_piece
from manylora.adapters.peft.values import Float
from manylora.models.checkpoint_files import EMBED, HEAD, read_entries
from manylora.models.checkpoints.stored import StoredTensor, widened


class Matrix(Protocol):
    """A weight matrix (rows, columns) that is read piece by piece."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def rows(self, first: int, stop: int) -> Float:
        """Return rows `[first, stop)` as float32."""


class FileMatrix:
    """A matrix in the base's files."""

    def __init__(self, stored: StoredTensor) -> None:
        self._stored = stored

    @property
    def shape(self) -> tuple[int, int]:
        return self._stored.shape[0], self._stored.shape[1]

    def rows(self, first: int, stop: int) -> Float:
        return widened(self._stored.rows(first, stop))


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

    def bias(self, module: Module) -> Float:
        """Return the bias (out,) of a linear layer."""
        stored = self._entries[f"{module_path(module)}.bias"]
        return widened(stored.rows(0, stored.shape[0]))


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
