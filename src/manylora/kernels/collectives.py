"""The exchange of rows between the ranks of a tensor-parallel model."""

from typing import Protocol

from torch import Tensor


class Collectives(Protocol):
    """The operations that all ranks of a model call in the same order, each with its own tensor.

    rank  number of this rank, from 0
    size  number of ranks
    """

    rank: int
    size: int

    def gather(self, x: Tensor) -> list[Tensor]:
        """Return the tensors of all ranks, in their order; x is contiguous, and has one shape on all ranks.

        Raises: CollectiveFailed if a rank is gone or does not answer within the time limit; no call is of use then
        """

    def collect(self, x: Tensor) -> list[Tensor]:
        """As `gather` on rank 0; the others send their tensor alone, and get an empty list."""


class CollectiveFailed(RuntimeError):
    """An error for a rank that is gone or silent."""


def sum_over(ranks: Collectives, y: Tensor) -> None:
    """Replace y by the sum of all ranks' tensors, in place.

    The terms are added in the order of the ranks: every rank gets the same bits, and an element's sum depends on no
    other element. A ring sums each part of a buffer in another order (Patarasuk and Yuan, 2009), so that a row's bits
    would depend on the rows beside it.
    """
    first, *others = ranks.gather(y)
    y.copy_(first)
    for other in others:
        y += other


def join_columns(ranks: Collectives, x: Tensor, columns: int, width: int, reuse: Tensor | None = None) -> Tensor | None:
    """Return on rank 0 the matrix whose columns the ranks have side by side, and None on the others.

    Args:     x  (rows, own): of each rank the first columns count, as many as bring the matrix to `columns`; the last
                 column of each rank is no part of it
              reuse  memory of the result, if it has its shape
    Returns:  (rows, width) float32, -Inf in the columns from `columns` on
    """
    parts = ranks.collect(x)
    if ranks.rank:
        return None
    shape = len(x), width
    joined = reuse if reuse is not None and reuse.shape == shape else x.new_empty(shape)
    joined[:, columns:] = float("-inf")
    own = x.shape[1] - 1
    for rank, part in enumerate(parts):
        count = max(0, min(own, columns - rank * own))
        joined[:, rank * own : rank * own + count] = part[:, :count]
    return joined
