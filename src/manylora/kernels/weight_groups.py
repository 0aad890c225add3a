"""The rules of weights that are stored in four bits, with a scale for each group of inputs."""

import torch
from torch import Tensor

GROUP = 32
"""Inputs of the smallest group; every group is a multiple of it."""
LARGEST = 15
"""The largest integer of four bits."""


def check_groups(integers: Tensor, scales: Tensor, zeros: Tensor | None, group: int) -> None:
    """Raise ValueError for arguments that `Kernels.pack_groups` does not take."""
    outputs, inputs = integers.shape
    if group < 1 or (group % GROUP and group < inputs):
        raise ValueError(f"a group of {group} inputs: groups are multiples of {GROUP}")
    shape = outputs, -(-inputs // group)
    for name, found in (("scales", scales), ("zeros", zeros)):
        if found is not None and tuple(found.shape) != shape:
            raise ValueError(
                f"{name} of shape {tuple(found.shape)}: {outputs} outputs in groups of {group} have {shape}"
            )
    if integers.dtype is not torch.uint8:
        raise ValueError(f"integers of {integers.dtype}: they are uint8")
    if integers.numel() and int(integers.max()) > LARGEST:
        raise ValueError(f"an integer of {int(integers.max())}: the largest of four bits is {LARGEST}")
