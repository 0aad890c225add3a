"""Keys and values of the CPU back end, in pages that can be given back to the system."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from torch import Tensor


class KvLayout(ctypes.Structure):
    """The C++ `Kv` struct of `native/attend.cpp`, field by field."""

    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("num_blocks", ctypes.c_int64),
        ("block_size", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
    )


@dataclass(slots=True)
class CpuKv:
    """Paged bfloat16 keys and values of all layers; `native/attend.cpp` describes the layout inside a block."""

    num_blocks: int
    block_size: int
    num_bytes: int
    num_layers: int
    keys: Tensor
    values: Tensor
    layout: KvLayout
    address: int
    free_pages: Callable[[int, int], int]
    """The native `ml_discard`: an address and a number of bytes."""

    @property
    def head_dim(self) -> int:
        return cast(int, self.layout.head_dim)

    def discard(self, first: int, stop: int) -> bool:
        """The blocks are one stretch of memory in each layer; a page shared with a block outside is kept."""
        is_able = True
        for part in (self.keys, self.values):
            layers = part.view(-1, self.num_blocks, part.numel() // self.num_layers // self.num_blocks)
            for layer in layers:
                stretch = layer[first:stop]
                is_able = is_able and bool(self.free_pages(stretch.data_ptr(), stretch.nbytes))
        return is_able
