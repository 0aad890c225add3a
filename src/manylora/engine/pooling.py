"""The result of a request that generates nothing, gathered from the rows of its prompt as chunks compute them.

The rows of a prompt are summed one after the other, so that the result does not depend on the cuts between chunks.
"""

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from manylora.engine.events import PooledValues

Floats = NDArray[np.float32]
"""(rows, width) float32: for each wanted row of a chunk its final hidden state, or the logits of the adapter's head."""


class Pooling(StrEnum):
    """The form of the result.

    MEAN           the mean of the final hidden states of all positions, of length 1
    LAST           the final hidden state of the last position, of length 1
    CLASSES        the logits of the adapter's head at the last position: (1, labels)
    TOKEN_CLASSES  for each position the likeliest label of the adapter's head and its probability: (positions, 2)
    """

    MEAN = "mean"
    LAST = "last"
    CLASSES = "classes"
    TOKEN_CLASSES = "token_classes"

    @property
    def needs_head(self) -> bool:
        """Return whether the result comes from an adapter's classification head."""
        return self in (Pooling.CLASSES, Pooling.TOKEN_CLASSES)

    @property
    def needs_every_row(self) -> bool:
        """Return whether each position of the prompt takes part, so that none may come from the prefix cache."""
        return self in (Pooling.MEAN, Pooling.TOKEN_CLASSES)


class PooledRows:
    """The part of one request's result that is computed.

    num_taken  positions [0, num_taken) are in the result; 0 until the last one where only that counts
    """

    __slots__ = ("_sum", "_taken", "num_taken", "pooling")

    def __init__(self, pooling: Pooling) -> None:
        self.pooling = pooling
        self.num_taken = 0
        self._sum: NDArray[np.float64] | None = None
        self._taken: list[Floats] = []

    def wanted_from(self, start: int, stop: int, length: int) -> int:
        """Return the first position of a chunk `[start, stop)` whose row the result needs; `stop` if it needs none.

        A preempted request computes again positions that are in the result already.
        """
        if self.pooling.needs_every_row:
            return min(max(start, self.num_taken), stop)
        return stop - 1 if stop == length else stop

    def take(self, rows: Floats) -> None:
        """Add the rows of the next positions."""
        if self.pooling is Pooling.MEAN:
            total = np.zeros(rows.shape[1]) if self._sum is None else self._sum
            for row in rows:
                total += row
            self._sum = total
        else:
            self._taken.append(_likeliest(rows) if self.pooling is Pooling.TOKEN_CLASSES else rows)
        self.num_taken += len(rows)

    def result(self) -> PooledValues:
        """Return the whole result; call it after the last position."""
        if self._sum is not None:
            values = _of_length_one(self._sum[None] / self.num_taken)
        else:
            values = np.concatenate(self._taken)
            if self.pooling is Pooling.LAST:
                values = _of_length_one(values)
        return PooledValues(values.astype("<f4").tobytes(), values.shape[1])


def _of_length_one(rows: "NDArray[np.floating]") -> "NDArray[np.floating]":
    """Divide each row by its Euclidean length; a row of zeros stays."""
    wide = rows.astype(np.float64)
    lengths = np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
    return wide / np.where(lengths > 0, lengths, 1.0)


def _likeliest(logits: Floats) -> Floats:
    """Return each row's likeliest label, the first of equal ones, and its softmax probability: (rows, 2)."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    labels = logits.argmax(axis=1)
    return np.stack([labels, 1.0 / np.exp(wide).sum(axis=1)], axis=1).astype(np.float32)
