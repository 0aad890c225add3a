"""The definitions of quantised rows and of int4 products, in float64."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from manylora.kernels.weight_groups import GroupedWeight

BLOCK = 32


def same(actual: Tensor, wanted: Tensor) -> bool:
    return actual.dtype == wanted.dtype and torch.equal(actual.nan_to_num(7e30), wanted.nan_to_num(7e30))


def in_groups(x: Tensor, group: int) -> Tensor:
    """(rows, groups, group), with zeros after the last input."""
    return F.pad(x, (0, -x.shape[1] % group)).reshape(len(x), -(-x.shape[1] // group), group)


def quantised_groups(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """The levels of each group, (rows, groups, group) float64, and what one is worth, (rows, groups) float32."""
    parts = in_groups(x, group)
    levels, worth = quantised(parts.flatten(0, 1))
    return levels.reshape(parts.shape), worth.reshape(parts.shape[:2])


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """The levels of each row as float64, and what one is worth as float32."""
    largest = x.abs().amax(dim=1, keepdim=True)
    counts = largest >= 1e-30
    # A number divided by a tensor is its reciprocal times the number in torch: two roundings.
    factor = torch.where(counts, torch.full_like(largest, 127) / largest, 0.0)
    worth = torch.where(counts, largest / 127, 0.0)
    is_finite = x.isfinite().all(dim=1, keepdim=True)
    found = torch.where(is_finite, (x * factor).round(), 0.0)
    return found.double(), torch.where(is_finite, worth, float("nan"))


@dataclass(frozen=True, slots=True)
class Grouped:
    """A weight of four bits: integers (out, in) uint8, scales and zeros (out, groups); no zeros: they are 8."""

    integers: Tensor
    scales: Tensor
    zeros: Tensor | None
    group: int

    @classmethod
    def random(cls, seed: int, outputs: int, inputs: int, group: int, *, has_zeros: bool) -> "Grouped":
        """Scales are float16; zeros are integers, as checkpoints have them."""
        source = torch.Generator().manual_seed(seed)
        groups = -(-inputs // group)
        integers = torch.randint(0, 16, (outputs, inputs), generator=source, dtype=torch.uint8)
        scales = (torch.rand((outputs, groups), generator=source) * 0.02 + 1e-3).half().float()
        zeros = torch.randint(0, 17, (outputs, groups), generator=source).float() if has_zeros else None
        return cls(integers, scales, zeros, group)

    @property
    def stored(self) -> GroupedWeight:
        minima = None if self.zeros is None else -(self.scales * self.zeros)
        return GroupedWeight(self.integers, self.scales, minima, self.group)

    @property
    def wide(self) -> Tensor:
        """(out, in) float64."""
        scales, zeros = (self._by_input(part) for part in (self.scales, self.zeros))
        return scales * (self.integers.double() - zeros)

    def _by_input(self, part: Tensor | None) -> Tensor:
        found = torch.full_like(self.scales, 8.0) if part is None else part
        return found.double().repeat_interleave(self.group, 1)[:, : self.integers.shape[1]]

    def product(self, x: Tensor) -> Tensor:
        """The definition: block by block `sums += (s * scale + t * minimum) * worth`.

        s is the exact sum of the products of levels, t the one of the row's levels. The minimum is `-scale * zero`,
        rounded to float16 in units of a power of two; without zeros s is the sum of the products with `level - 8`.
        """
        rows, worth = quantised_groups(x, BLOCK)
        levels = in_groups(self.integers, BLOCK).double()
        sums = torch.zeros(len(x), len(self.integers))
        for block in range(levels.shape[1]):
            own, index = rows[:, block], block * BLOCK // self.group
            scale, total = self.scales[:, index].double(), own.sum(1, keepdim=True)
            if self.zeros is None:
                part = ((own @ levels[:, block].T - 8 * total) * scale).float()
            else:
                minimum = rounded_to_float16(-(self.scales * self.zeros)[:, index]).double()
                part = (own @ levels[:, block].T * scale + (total * minimum).float().double()).float()
            sums = (part.double() * worth[:, block, None] + sums.double()).float()
        return sums


def rounded_to_float16(x: Tensor) -> Tensor:
    """Eleven bits of mantissa, whatever the exponent."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2048).round() / 2048, exponent)
