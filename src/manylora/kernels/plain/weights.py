"""Weights as plain tensors of one dtype on one device."""

import torch
from torch import Tensor

from manylora.kernels.operands import Packed
from manylora.kernels.weight_groups import WeightGroups, check_group_size
from manylora.kernels.weight_rows import WeightRows, row_pieces, row_ranges


class PlainWeights:
    """Packs weights into tensors (out, in) of `dtype` on `device`, piece by piece."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device

    def pack(self, weight: WeightRows) -> Packed:
        packed = torch.empty(tuple(weight.shape), dtype=self._dtype, device=self._device)
        for first, rows in row_pieces(weight):
            packed[first : first + len(rows)] = rows
        return Packed(packed)

    def pack_groups(self, weight: WeightGroups) -> Packed:
        outputs, inputs = weight.shape
        check_group_size(weight.group_size, inputs)
        packed = torch.empty((outputs, inputs), dtype=self._dtype, device=self._device)
        for rows in row_ranges(weight.shape):
            packed[rows] = weight[rows].wide(inputs, weight.group_size)
        return Packed(packed)


def plain(weight: Packed) -> Tensor:
    """Return a weight that `PlainWeights` has packed: (out, in)."""
    assert isinstance(weight, Tensor)
    return weight
