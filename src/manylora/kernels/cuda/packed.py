"""Weights of a card in four and in eight bits: they stay packed in its memory, and a product widens what it reads."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from manylora.kernels.operands import Packed
from manylora.kernels.plain.weights import PlainWeights
from manylora.kernels.weight_groups import GROUP, GroupedRows, HalfScales, WeightGroups, check_group_size, grouped
from manylora.kernels.weight_rows import WeightRows, row_pieces, row_ranges

PAIRS = GROUP // 2
LARGEST_LEVEL = 127
_WIDENED_TOGETHER = 1 << 23
"""Weights that operations of torch widen at once."""
_LEAST = 1e-30
"""An output whose largest weight is smaller has levels of 0, as on a CPU."""


@dataclass(frozen=True, slots=True)
class EightBits:
    """A weight (outputs, inputs) in eight bits: `level * scale`.

    levels  (outputs, inputs) int8 in [-127, 127]
    scales  (outputs,) float32, one for each output; NaN for an output that is not finite
    """

    levels: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.levels.shape[0], self.levels.shape[1]

    @property
    def num_bytes(self) -> int:
        return self.levels.nbytes + self.scales.nbytes

    def wide(self, dtype: torch.dtype) -> Tensor:
        """Return the weights, (outputs, inputs)."""
        out = torch.empty(self.shape, dtype=dtype, device=self.levels.device)
        for rows in _parts(self.shape):
            out[rows] = self.levels[rows] * self.scales[rows, None]
        return out

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the weights of some outputs, (ids, inputs). Raises: IndexError for an unknown id in host memory."""
        levels, scales = self.levels.index_select(0, ids), self.scales.index_select(0, ids)
        return (levels * scales[:, None]).to(dtype)


@dataclass(frozen=True, slots=True)
class FourBits:
    """A weight (outputs, inputs) in four bits, as `GroupedRows` lays out its levels.

    pairs    (outputs, blocks * 16) uint8
    scales   (outputs, groups) float16, and minima or None, in units of `factors`
    factors  (outputs,) float32, powers of two
    """

    inputs: int
    group_size: int
    pairs: Tensor
    scales: Tensor
    minima: Tensor | None
    factors: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.pairs), self.inputs

    @property
    def num_bytes(self) -> int:
        parts = self.pairs, self.scales, self.minima, self.factors
        return sum(part.nbytes for part in parts if part is not None)

    def wide(self, dtype: torch.dtype) -> Tensor:
        """Return the weights, (outputs, inputs)."""
        out = torch.empty(self.shape, dtype=dtype, device=self.pairs.device)
        for rows in _parts(self.shape):
            factors, pairs = self.factors[rows, None], self.pairs[rows]
            minima = None if self.minima is None else self.minima[rows].float() * factors
            part = GroupedRows(pairs.view(len(pairs), -1, PAIRS), self.scales[rows].float() * factors, minima)
            out[rows] = part.wide(self.inputs, self.group_size)
        return out


def _parts(shape: tuple[int, int]) -> Iterator[slice]:
    """Yield ranges of rows that are widened together, so that float32 values of a few of them are in memory at once."""
    count = max(1, _WIDENED_TOGETHER // shape[1])
    for first in range(0, shape[0], count):
        yield slice(first, first + count)


class CardWeights:
    """Packs weights on a device, piece by piece.

    Args:  dtype     of weights that are not quantised
           quantize  `int8` or `int4`, the form of linear layers, beside which embedding and head are int8; `none`:
                     weights of other forms have `dtype`, and those that are stored in four bits stay so
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, quantize: str) -> None:
        self._device = device
        wide = PlainWeights(dtype, device).pack
        packers: dict[str, Callable[[WeightRows], Packed]] = {
            "none": wide,
            "int8": self._in_eight_bits,
            "int4": self._in_four_bits,
        }
        self._pack = packers[quantize]
        self._pack_table = wide if quantize == "none" else self._in_eight_bits

    def pack(self, weight: WeightRows) -> Packed:
        """Return a weight of a linear layer."""
        return self._pack(weight)

    def pack_table(self, weight: WeightRows) -> Packed:
        """Return the embedding or the head."""
        return self._pack_table(weight)

    def pack_groups(self, weight: WeightGroups) -> Packed:
        """Return a weight as it is stored. Raises ValueError for a group size that is refused."""
        outputs, inputs = weight.shape
        check_group_size(weight.group_size, inputs)
        packed = self._empty(outputs, inputs, weight.group_size, has_minima=weight.has_minima)
        for rows in row_ranges(weight.shape):
            _fill(packed, rows, weight[rows])
        return Packed(packed)

    def _in_four_bits(self, weight: WeightRows) -> Packed:
        """Quantise as `weight_groups.grouped` does."""
        outputs, inputs = weight.shape
        packed = self._empty(outputs, inputs, GROUP, has_minima=True)
        for first, rows in row_pieces(weight):
            _fill(packed, slice(first, first + len(rows)), grouped(rows.float()))
        return Packed(packed)

    def _in_eight_bits(self, weight: WeightRows) -> Packed:
        """Quantise each output by its largest weight, to the levels that a CPU has."""
        outputs, inputs = weight.shape
        levels = torch.empty((outputs, inputs), dtype=torch.int8, device=self._device)
        scales = torch.empty(outputs, device=self._device)
        for first, rows in row_pieces(weight):
            own = slice(first, first + len(rows))
            levels[own], scales[own] = _quantised(rows.float())
        return Packed(EightBits(levels, scales))

    def _empty(self, outputs: int, inputs: int, group_size: int, *, has_minima: bool) -> FourBits:
        shape = outputs, -(-inputs // group_size)
        scales, minima = (torch.empty(shape, dtype=torch.float16, device=self._device) for _ in range(2))
        return FourBits(
            inputs=inputs,
            group_size=group_size,
            pairs=torch.empty((outputs, -(-inputs // GROUP) * PAIRS), dtype=torch.uint8, device=self._device),
            scales=scales,
            minima=minima if has_minima else None,
            factors=torch.empty(outputs, device=self._device),
        )


def _fill(packed: FourBits, rows: slice, part: GroupedRows) -> None:
    halves = HalfScales.of(part.scales, part.minima)
    packed.pairs[rows], packed.factors[rows], packed.scales[rows] = part.pairs.flatten(1), halves.factors, halves.scales
    if packed.minima is not None:
        assert halves.minima is not None  # `has_minima` says so of all rows
        packed.minima[rows] = halves.minima


def _quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return levels (rows, in) and scales (rows,) of float32 weights."""
    largest = rows.abs().amax(1)
    is_finite = rows.isfinite().all(1)
    counts = is_finite & (largest >= _LEAST)
    level = torch.full_like(largest, LARGEST_LEVEL)  # a number divided by a tensor would round twice
    factors = torch.where(counts, level / torch.where(counts, largest, 1.0), 0.0)
    scales = torch.where(counts, largest / LARGEST_LEVEL, 0.0).where(is_finite, torch.nan)
    return (rows.nan_to_num(0.0, 0.0, 0.0) * factors[:, None]).round().to(torch.int8), scales


def widened(weight: Packed, dtype: torch.dtype) -> Tensor:
    """Return a weight that `CardWeights` has packed, (outputs, inputs); one that is not quantised as it is."""
    if isinstance(weight, EightBits | FourBits):
        return weight.wide(dtype)
    assert isinstance(weight, Tensor)
    return weight
