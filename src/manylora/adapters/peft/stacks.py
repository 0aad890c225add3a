"""Tensors that hold a LoRA of all experts, divided over the experts.

PEFT's wrapper of a parameter has A (E·rank, in) with the experts one after the other, and B (out, rank·E) with them
interleaved. Other tools write the same elements with three dimensions, A (E, rank, in) and B (out, rank, E), or a stack
of matrices: A (E, rank, in), B (E, out, rank), where the first dimension of one of them may be 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from manylora.adapters.peft.safetensors_header import HeaderEntry
from manylora.adapters.peft.tensors import FileTensor, TensorSlice

_ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Pair:
    """A (rank, in) and B (out, rank) of one expert."""

    a: TensorSlice
    b: TensorSlice

    @property
    def rank(self) -> int:
        return self.a.rows[1] - self.a.rows[0]

    def by_rows(self, outs: Sequence[int]) -> Iterator["Pair"]:
        """Yield the factors of matrices that lie one after the other in B, of `outs` rows each; all have the same A."""
        row = 0
        for out in outs:
            yield Pair(self.a, self.b.part(rows=(row, row + out)))
            row += out

    def block(self, place: int, out: int) -> "Pair":
        """Return one of the two blocks of a block-diagonal B (2 * out, rank), and its half of A."""
        half = self.rank // 2
        ranks = (place * half, (place + 1) * half)
        return Pair(self.a.part(rows=ranks), self.b.part(rows=(place * out, (place + 1) * out), columns=ranks))


def divided(
    a: HeaderEntry, b: HeaderEntry, sizes: tuple[int, int], experts: int, is_wrapped: bool
) -> list[Pair] | None:
    """Return the factors of each expert's matrix (out, in), or None if the tensors do not divide.

    is_wrapped  whether the tensors are those of PEFT's wrapper of a parameter, else a stack of matrices
    """
    return _interleaved(a, b, sizes, experts) if is_wrapped else _stacked(a, b, sizes, experts)


def is_block_diagonal(entry: HeaderEntry, first: TensorSlice, out: int, weights: memoryview) -> bool:
    """Return whether B (2 * out, rank) of every expert is zero outside of two blocks (out, rank / 2).

    PEFT writes such a B where it makes one parameter of w1 and w3. first: B of the first expert
    """
    _, rank, _ = first.shape
    if rank % 2:
        return False
    whole = FileTensor.of(weights, entry).raw.reshape(first.shape)
    for row in range(0, out, _ROWS_AT_ONCE):
        stop = min(out, row + _ROWS_AT_ONCE)
        if whole[row:stop, rank // 2 :].any() or whole[out + row : out + stop, : rank // 2].any():
            return False
    return True


def _interleaved(a: HeaderEntry, b: HeaderEntry, sizes: tuple[int, int], experts: int) -> list[Pair] | None:
    out, inputs = sizes
    rows = a.shape[0] if len(a.shape) == 2 else a.shape[0] * a.shape[1] if len(a.shape) == 3 else 0
    rank = rows // experts
    if rank == 0 or rows % experts:
        return None
    if a.shape not in ((rows, inputs), (experts, rank, inputs)) or b.shape not in ((out, rows), (out, rank, experts)):
        return None
    return [
        Pair(
            TensorSlice(a, (experts, rank, inputs), 0, expert, (0, rank), (0, inputs)),
            TensorSlice(b, (out, rank, experts), 2, expert, (0, out), (0, rank)),
        )
        for expert in range(experts)
    ]


def _stacked(a: HeaderEntry, b: HeaderEntry, sizes: tuple[int, int], experts: int) -> list[Pair] | None:
    out, inputs = sizes
    if len(a.shape) != 3 or len(b.shape) != 3:
        return None
    num_a, rank, _ = a.shape
    num_b, _, _ = b.shape
    fits = a.shape == (num_a, rank, inputs) and b.shape == (num_b, out, rank)
    if rank == 0 or not fits or not {num_a, num_b} <= {1, experts}:
        return None
    return [
        Pair(
            TensorSlice(a, (num_a, rank, inputs), 0, expert % num_a, (0, rank), (0, inputs)),
            TensorSlice(b, (num_b, out, rank), 0, expert % num_b, (0, out), (0, rank)),
        )
        for expert in range(experts)
    ]
