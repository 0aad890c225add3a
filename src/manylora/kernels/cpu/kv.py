"""Keys and values of the CPU back end, in pages that `discard` returns to the system."""

import ctypes
import mmap
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def untouched_zeros(count: int, dtype: torch.dtype) -> Tensor:
    """Return (count,) zeros in pages of their own, which the system provides as they are written.

    So memory that no sequence uses costs nothing, and advice on the size of pages comes before the pages: `torch.zeros`
    writes all of them. Zeros make an unwritten lane a number.
    """
    # Private: shared pages, Python's default, are no large ones.
    memory = mmap.mmap(-1, max(1, count * dtype.itemsize), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype, count=count)


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
