"""Keys and values of the CPU back end, in pages that `discard` returns to the system."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class CpuKv:
    """Paged bfloat16 keys and values of all layers; `native/include/kv.h` describes the layout inside a block."""

    num_blocks: int
    block_size: int
    num_bytes: int
    num_layers: int
    keys: Tensor
    values: Tensor
    layout: ctypes.Structure
    address: int
    free_pages: Callable[[int, int], int]
    """The native `ml_discard`: it takes an address and a number of bytes."""

    def discard(self, first: int, stop: int) -> bool:
        """Free the pages of blocks `[first, stop)` in each layer, but for those that other blocks share."""
        is_able = True
        for part in (self.keys, self.values):
            layers = part.view(-1, self.num_blocks, part.numel() // self.num_layers // self.num_blocks)
            for layer in layers:
                stretch = layer[first:stop]
                is_able = is_able and bool(self.free_pages(stretch.data_ptr(), stretch.nbytes))
        return is_able
