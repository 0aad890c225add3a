"""The back ends under test, random inputs in their shapes, and how far from the reference each may be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from manylora.ids import Digest
from manylora.kernels.adapter_layout import (
    EMBED,
    EMBED_ROWS,
    EMBED_VECTORS,
    HEAD,
    HEAD_ROWS,
    HEAD_VECTORS,
    NONE,
    NORMS_AT,
    blank_extras,
    set_projection_vectors,
)
from manylora.kernels.cpu.library import NativeLibrary
from manylora.kernels.cuda.backend import TorchKernels
from manylora.kernels.lora_batch import PlacedAdapter
from manylora.kernels.operands import AttentionBatch, RopeTable
from manylora.kernels.projections import NUM_PROJECTIONS, LoraTarget
from manylora.kernels.reference import ReferenceKernels
from tests.kernels.eager import EagerKernels, eager

BLOCK_SIZE = 16


@cache
def native(threads: int) -> NativeLibrary:
    """One pool per thread count for the whole test run; compiles on first use."""
    return NativeLibrary(threads)


BACK_ENDS: dict[str, Callable[[], EagerKernels]] = {
    "reference": ReferenceKernels,
    "native-1": lambda: eager(native(1)),
    "native-2": lambda: eager(native(2)),
    "native-3-float32-adapters": lambda: eager(native(3), lora_dtype=torch.float32),
    "torch": lambda: TorchKernels(torch.device("cpu"), torch.float32),
}
NATIVE = ("native-1", "native-2")

# Largest |actual - reference| / largest |reference|. In brackets the worst that this suite measured on an AVX2 machine;
# the limit leaves a factor of three or more for other machines' orders of summation in torch.
TOLERANCE = {
    "linear": 1e-5,  # [2.9e-6] sums of 4,100 products; [3e-7] at 600
    "norm": 1e-6,  # [2.2e-7]
    "silu": 1e-6,  # [1.3e-8]
    "rotate": 1e-6,  # [0]
    "attend": 4e-6,  # [6.7e-7]
    "attend in pairs": 8e-3,  # queries and weights have eight bits
    "lora": 4e-6,  # [6.7e-7]
}


def oracle_of(kernels: EagerKernels) -> ReferenceKernels:
    """The reference that stores what `kernels` stores in the same dtypes, so that only arithmetic differs."""
    return ReferenceKernels(kernels.weight_dtype, kv_dtype=kernels.kv_dtype, lora_dtype=kernels.lora_dtype)


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected value; infinite if one has a NaN that the other has not."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    if actual.numel() == 0:
        return 0.0
    difference = (actual.double() - expected.double()).abs().max().item()
    return float("inf") if difference != difference else difference / max(expected.abs().max().item(), 1e-30)


def random(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def rope_table(positions: int, head_dim: int) -> RopeTable:
    angles = torch.outer(torch.arange(positions).float(), 10000.0 ** (-torch.arange(0, head_dim, 2).float() / head_dim))
    return RopeTable(angles.cos(), angles.sin())


@dataclass(frozen=True, slots=True)
class Heads:
    """The shape of one attention layer."""

    heads: int
    kv_heads: int
    head_dim: int

    @property
    def qkv_width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim


class PagedSequences:
    """Sequences laid out in shuffled blocks, as an engine's block pool would."""

    def __init__(self, lengths: Sequence[int], *, block_size: int = BLOCK_SIZE, seed: int = 0) -> None:
        self.lengths = tuple(lengths)
        self.block_size = block_size
        needed = [-(-length // block_size) for length in lengths]
        self.num_blocks = sum(needed) + 3
        order = np.random.default_rng(seed).permutation(self.num_blocks).tolist()
        self.tables = torch.full((len(needed), max(needed)), -1, dtype=torch.int32)
        for index, count in enumerate(needed):
            self.tables[index, :count] = torch.tensor([order.pop() for _ in range(count)], dtype=torch.int32)

    def batch(self, spans: Sequence[tuple[int, int, int]]) -> AttentionBatch:
        """A step of these (sequence, first position, end) spans, in order."""
        rows = [(sequence, position) for sequence, start, stop in spans for position in range(start, stop)]
        slots = [
            int(self.tables[sequence, position // self.block_size]) * self.block_size + position % self.block_size
            for sequence, position in rows
        ]
        return AttentionBatch(
            positions=torch.tensor([position for _, position in rows], dtype=torch.int32),
            slots=torch.tensor(slots, dtype=torch.int64),
            row_sequence=torch.tensor([sequence for sequence, _ in rows], dtype=torch.int32),
            block_tables=self.tables,
        )


def attend_spans(
    kernels: EagerKernels,
    shape: Heads,
    paged: PagedSequences,
    qkv: Sequence[Tensor],
    steps: Sequence[Sequence[tuple[int, int, int]]],
    *,
    window: int | None = None,
) -> dict[tuple[int, int], Tensor]:
    """Run the steps in order; return each (sequence, position)'s attention output. `qkv` is one tensor a sequence."""
    layers, layer = 2, 1
    kv = kernels.new_kv(
        layers=layers,
        num_blocks=paged.num_blocks,
        block_size=paged.block_size,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
    )
    rope = rope_table(max(paged.lengths), shape.head_dim)
    found: dict[tuple[int, int], Tensor] = {}
    for spans in steps:
        batch = paged.batch(spans)
        step_qkv = torch.cat([qkv[sequence][start:stop] for sequence, start, stop in spans])
        q = kernels.rotate_and_store(step_qkv, rope, kv, layer, shape.heads, batch)
        out = kernels.attend(q, kv, layer, window, batch)
        keys = [(sequence, position) for sequence, start, stop in spans for position in range(start, stop)]
        found.update(zip(keys, out, strict=True))
    return found


def make_adapter(
    seed: int,
    *,
    ranks: Sequence[int],
    width: int,
    targets: Sequence[LoraTarget],
    dtype: torch.dtype,
    layers: int = 2,
    table_width: int = NUM_PROJECTIONS,
) -> PlacedAdapter:
    """An adapter with its own rank for each target (0: none), in an image with odd gaps between its matrices."""
    table = np.zeros((layers, table_width, 3), dtype=np.int64)
    parts: list[Tensor] = []
    used = 0
    for layer in range(layers):
        for target, rank in zip(targets, ranks, strict=True):
            if rank == 0:
                continue
            a = random(seed + 17 * layer + 2 * target.projection, rank * width)
            b = random(seed + 17 * layer + 2 * target.projection + 1, rank * target.out, scale=0.1)
            gap = torch.full((3,), float("nan"))  # whoever reads outside a matrix will know
            table[layer, target.projection] = (used + 3, used + 6 + a.numel(), rank)
            parts += [gap, a, gap, b]
            used += 6 + a.numel() + b.numel()
    image = torch.cat([*parts, torch.full((3,), float("nan"))]).to(dtype)
    return PlacedAdapter(Digest(f"{seed:064d}"), image, table)


def add_extras(
    adapter: PlacedAdapter,
    seed: int,
    *,
    hidden: int,
    vocab: int,
    outs: dict[tuple[int, int], int],
    added: int = 3,
    rank: int = 5,
) -> PlacedAdapter:
    """The adapter with every kind of extra: rows of its own, added tokens, LoRA on both ends, gains, biases, norms.

    `outs` has the output width of each (layer, projection) that gets a bias and a gain.
    """
    layers = adapter.table.shape[0]
    extras = blank_extras(layers, vocab + added, adapter.width)
    dtype, parts = adapter.image.dtype, [adapter.image]
    align = 64 // dtype.itemsize
    used = adapter.image.numel()

    def place(part: Tensor) -> int:
        nonlocal used
        gap = -used % align
        parts.extend((torch.full((gap,), float("nan"), dtype=dtype), part.reshape(-1)))
        used += gap + part.numel()
        return used - part.numel()

    def drawn(*shape: int, scale: float = 0.3) -> int:
        return place(random(seed + len(parts), *shape, scale=scale).to(dtype))

    def rows(ids: list[int]) -> tuple[int, int, int]:
        return place(torch.tensor(ids, dtype=torch.int32).view(dtype)), drawn(len(ids), hidden), len(ids)

    wide = vocab + added
    extras[HEAD] = drawn(rank, hidden), drawn(rank, wide), rank
    extras[EMBED] = drawn(wide, rank), drawn(rank, hidden), rank
    extras[HEAD_ROWS] = rows([1, 7, *range(vocab, wide)])
    extras[EMBED_ROWS] = rows([0, 7, 9, *range(vocab, wide)])
    extras[HEAD_VECTORS] = drawn(wide), drawn(wide)
    extras[EMBED_VECTORS] = NONE, drawn(hidden)
    for index in range(2 * layers + 1):
        extras[NORMS_AT + index] = drawn(hidden) if index != 1 else NONE
    for (layer, projection), out in outs.items():
        set_projection_vectors(extras, layer, projection, drawn(out), drawn(out), adapter.width)
    return replace(adapter, image=torch.cat(parts), extras=extras)
