"""Operations in the shapes of a 7B base, on the same values for operations of torch and kernels in Triton."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.card.ceilings import Ceilings
from benchmarks.card.tolerances import of_tolerance, relative_difference
from manylora.ids import Digest
from manylora.kernels.cuda.backend import TorchKernels
from manylora.kernels.cuda.packed import CardWeights
from manylora.kernels.lora_batch import LoraSegment, PlacedAdapter
from manylora.kernels.operands import AttentionBatch, Packed, RopeTable
from manylora.kernels.projections import LoraTarget, Projection, expert_index, table_width
from manylora.kernels.weight_groups import GroupedWeight

RANKS = (4, 8, 16, 64)
BLOCK = 16


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of the cases: width of the rows, heads of `head_dim`, rows of adapters, contexts of one row each."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    rows: tuple[int, ...]
    contexts: tuple[int, ...]


CARD = Sizes(4096, 32, 8, 128, (1, 8, 16, 64, 512), (192, 1024, 8192))
DRY = Sizes(72, 4, 2, 8, (1, 5), (9, 600))


@dataclass(frozen=True, slots=True)
class Case:
    """One operation on given values: called with a back end, it returns its result."""

    name: str
    num_bytes: int
    run: Callable[[TorchKernels], Tensor]


def cases(sizes: Sizes, device: torch.device, dtype: torch.dtype, given: torch.dtype) -> Iterator[Case]:
    """Yield the cases in order. Their values are rounded to `dtype`, and given to the operations as `given`."""
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype).to(given)

    hidden = sizes.hidden
    weight = torch.ones(hidden, device=device)
    for rows in sizes.rows:
        x, delta, gate_up = drawn(rows, hidden), drawn(rows, hidden), drawn(rows, 2 * hidden)
        yield Case(f"add_norm, {rows} rows", 4 * x.nbytes, partial(added_norm, x, delta, weight))
        yield Case(f"gated_silu, {rows} rows", 3 * x.nbytes, partial(activated, gate_up))
        yield norm_heads_case(sizes, rows, drawn)
        yield rotation_case(sizes, rows, drawn, device)
        yield from lora_cases(sizes, x, drawn)
        yield experts_case(hidden, rows, drawn)
        yield expert_lora_case(hidden, rows, drawn)
        yield from (four_bit_case(hidden, x, has_minima) for has_minima in (True, False))
        yield eight_bit_case(hidden, x)
    for context in sizes.contexts:
        for window in (None, 256):
            yield attention_case(sizes, context, window, drawn, device)


def added_norm(x: Tensor, delta: Tensor, weight: Tensor, own: TorchKernels) -> Tensor:
    return own.add_norm(x.clone(), delta, weight, 1e-5)


def activated(gate_up: Tensor, own: TorchKernels) -> Tensor:
    return own.gated_silu(gate_up)


def norm_heads_case(sizes: Sizes, rows: int, drawn: Callable[..., Tensor]) -> Case:
    y, weight = drawn(rows, sizes.heads * sizes.head_dim), drawn(sizes.head_dim).float()

    def run(own: TorchKernels) -> Tensor:
        into = y.clone()
        own.norm_heads(into, weight, 0, sizes.heads, sizes.head_dim, 1e-5)
        return into

    return Case(f"norm_heads, {rows} rows", 2 * y.nbytes, run)


def rotation_case(sizes: Sizes, rows: int, drawn: Callable[..., Tensor], device: torch.device) -> Case:
    """The rows of one sequence; the result has q, and the keys and values that were written."""
    kv_heads, head_dim = sizes.kv_heads, sizes.head_dim
    qkv = drawn(rows, (sizes.heads + 2 * kv_heads) * head_dim)
    positions = torch.arange(rows, device=device)
    angles = positions[:, None] / torch.arange(1, head_dim // 2 + 1, device=device)
    rope = RopeTable(angles.cos(), angles.sin())
    blocks = -(-rows // BLOCK)
    tables = torch.arange(blocks, dtype=torch.int32, device=device)[None]
    batch = AttentionBatch(positions.int(), positions, torch.zeros_like(positions).int(), tables)

    def run(own: TorchKernels) -> Tensor:
        kv: Any = own.new_kv(layers=1, num_blocks=blocks, block_size=BLOCK, kv_heads=kv_heads, head_dim=head_dim)
        q = own.rotate_and_store(qkv, rope, kv, 0, sizes.heads, batch)
        return torch.cat((q, *(part.flatten(0, 2)[:rows].flatten(1) for part in (kv.keys, kv.values))), dim=1)

    return Case(f"rotate_and_store, {rows} rows", 2 * qkv.nbytes, run)


def expert_lora_case(hidden: int, rows: int, drawn: Callable[..., Tensor]) -> Case:
    """One adapter of rank 8 on the gates of eight experts, of which each row has two."""
    inner, rank, count = hidden // 4, 8, 8
    table = np.zeros((1, table_width(count), 3), dtype=np.int64)
    parts, used = [], 0
    for expert in range(count):
        a, b = drawn(rank * hidden), drawn(rank * inner) * 0.02
        table[0, expert_index(Projection.GATE, expert)] = used, used + a.numel(), rank
        used += a.numel() + b.numel()
        parts += [a, b]
    placed = PlacedAdapter(Digest("0" * 64), torch.cat(parts), table)
    scores, picks, y = drawn(rows, count).float(), drawn(2 * rows, hidden), drawn(2 * rows, inner)
    targets = (LoraTarget(expert_index(Projection.GATE, 0), 0, inner),)

    def run(own: TorchKernels) -> Tensor:
        into, routes = y.clone(), own.route(scores, 2, True)
        own.add_expert_lora(routes, into, picks, own.prepare_lora((LoraSegment(0, rows, placed),)), 0, targets)
        return into

    return Case(f"add_expert_lora, {rows} rows", placed.image.nbytes + picks.nbytes + 2 * y.nbytes, run)


def experts_case(hidden: int, rows: int, drawn: Callable[..., Tensor]) -> Case:
    """Two of eight experts for each row, a quarter as wide as the rows."""
    experts = tuple(Packed(drawn(hidden // 4, hidden) * 0.02) for _ in range(8))
    scores, picks = drawn(rows, 8).float(), drawn(2 * rows, hidden)
    num_bytes = min(8, 2 * rows) * hidden * hidden // 4 * picks.element_size() + picks.nbytes

    def run(own: TorchKernels) -> Tensor:
        return own.expert_linear(own.route(scores, 2, True), picks, experts)

    return Case(f"expert_linear, {rows} rows", num_bytes, run)


def four_bit_case(hidden: int, x: Tensor, has_minima: bool) -> Case:
    """A square weight in groups of 32, as its checkpoint stores it; plain operations widen it in each product."""
    generator = torch.Generator().manual_seed(3)
    shape = hidden, -(-hidden // 32)
    levels = torch.randint(16, (hidden, hidden), generator=generator, dtype=torch.uint8)
    scales = torch.rand(shape, generator=generator).half() * 0.01
    minima = torch.randn(shape, generator=generator).half() * 0.05 if has_minima else None
    weight, packed = GroupedWeight(levels, scales, minima, 32), dict[str, Packed]()

    def run(own: TorchKernels) -> Tensor:
        if own.name not in packed:
            packed[own.name] = own.pack_groups(weight)
        return own.linear(x, packed[own.name])

    num_bytes = hidden * hidden // 2 + scales.nbytes * (1 + has_minima) + 2 * x.nbytes
    return Case(f"linear in four bits, {len(x)} rows, {'minima' if has_minima else 'symmetric'}", num_bytes, run)


def eight_bit_case(hidden: int, x: Tensor) -> Case:
    """A square weight in eight bits; plain operations widen it in each product."""
    weight = torch.randn(hidden, hidden, generator=torch.Generator().manual_seed(4))
    packed = dict[str, Packed]()

    def run(own: TorchKernels) -> Tensor:
        if own.name not in packed:
            packed[own.name] = CardWeights(x.dtype, own.torch_device, "int8").pack(weight)
        return own.linear(x, packed[own.name])

    return Case(f"linear in eight bits, {len(x)} rows", hidden * hidden + 4 * hidden + 2 * x.nbytes, run)


def lora_cases(sizes: Sizes, x: Tensor, drawn: Callable[..., Tensor]) -> Iterator[Case]:
    """q, k, v of rows that have one adapter together, and of rows that each have another, ranks in turn."""
    rows, hidden = x.shape
    outs = [sizes.heads * sizes.head_dim, *(sizes.kv_heads * sizes.head_dim,) * 2]
    targets = tuple(
        LoraTarget(projection, sum(outs[:index]), out)
        for index, (projection, out) in enumerate(zip((Projection.Q, Projection.K, Projection.V), outs, strict=True))
    )
    y = drawn(rows, sum(outs))
    for name, number in {"one adapter": 1, "each row another": rows}.items():
        placed = [adapter(index, RANKS[index % len(RANKS)], hidden, outs, drawn) for index in range(min(number, 64))]
        edges = np.linspace(0, rows, len(placed) + 1).astype(int).tolist()
        segments = tuple(
            LoraSegment(start, stop, own) for start, stop, own in zip(edges, edges[1:], placed, strict=False)
        )
        num_bytes = sum(own.image.nbytes for own in placed) + x.nbytes + 2 * y.nbytes

        def run(own: TorchKernels, segments: tuple[LoraSegment, ...] = segments) -> Tensor:
            into = y.clone()
            own.add_lora(into, x, own.prepare_lora(segments), 0, targets)
            return into

        yield Case(f"add_lora, {rows} rows, {name}", num_bytes, run)


def adapter(number: int, rank: int, hidden: int, outs: list[int], drawn: Callable[..., Tensor]) -> PlacedAdapter:
    table = np.zeros((1, len(Projection), 3), dtype=np.int64)
    parts, used = [], 0
    for index, out in enumerate(outs):
        a, b = drawn(rank * hidden), drawn(rank * out) * 0.02
        table[0, index] = used, used + a.numel(), rank
        used += a.numel() + b.numel()
        parts += [a, b]
    return PlacedAdapter(Digest(f"{number:064d}"), torch.cat(parts), table)


def attention_case(
    sizes: Sizes, context: int, window: int | None, drawn: Callable[..., Tensor], device: torch.device
) -> Case:
    """Eight sequences with one row each."""
    count, width = 8, sizes.kv_heads * sizes.head_dim
    blocks = -(-context // BLOCK)
    keys, values = (drawn(1, count * blocks, BLOCK, sizes.kv_heads, sizes.head_dim) for _ in range(2))
    q = drawn(count, sizes.heads * sizes.head_dim)
    tables = torch.randperm(count * blocks, generator=torch.Generator().manual_seed(2)).view(count, blocks).int()
    last = torch.full((count,), context - 1, dtype=torch.int32)
    batch = AttentionBatch(last, last.long(), torch.arange(count, dtype=torch.int32), tables)

    def run(own: TorchKernels) -> Tensor:
        kv = own.new_kv(layers=1, num_blocks=1, block_size=BLOCK, kv_heads=sizes.kv_heads, head_dim=sizes.head_dim)
        kv.keys, kv.values = keys, values  # type: ignore[attr-defined]  # plain keys and values
        return own.attend(q, kv, 0, window, batch)

    seen = min(context, window or context)
    name = f"attend, {count} rows of {context}, window {window}"
    return Case(name, 2 * count * seen * width * keys.element_size(), run)


def agreement(
    case: Case, exact: Case, plain: TorchKernels, own: TorchKernels, reference: TorchKernels
) -> dict[str, Any]:
    """Return the largest relative differences from the reference in float32: of torch, and of the kernels in Triton."""
    expected = exact.run(reference).float()
    torchs, found = (relative_difference(case.run(each).float(), expected) for each in (plain, own))
    return {
        "case": case.name,
        "difference": found,
        "of_torch": torchs,
        "of_tolerance": of_tolerance(found, torchs, own.lora_dtype),
    }


def timing(case: Case, plain: TorchKernels, own: TorchKernels, rounds: int, ceilings: Ceilings) -> dict[str, Any]:
    """Return the milliseconds of both back ends, which take turns, and the share of the bandwidth of a copy."""
    calls = min(5, rounds)
    turns = [(timed(lambda: case.run(plain), calls), timed(lambda: case.run(own), calls)) for _ in range(rounds)]
    triton_ms = statistics.median(ms for _, ms in turns)
    ratios = sorted(own_ms / torch_ms for torch_ms, own_ms in turns)
    return {
        "case": case.name,
        "bytes": case.num_bytes,
        "torch_ms": statistics.median(ms for ms, _ in turns),
        "triton_ms": triton_ms,
        "of_copy": 1e3 * case.num_bytes / ceilings.copy_bytes_per_s / triton_ms,
        "ratio_spread": (ratios[0], ratios[-1]),
    }


def timed(run: Callable[[], object], rounds: int) -> float:
    """Return the median milliseconds of a call: by events of the card, or by the host's clock without one."""
    return statistics.median(_elapsed_ms(run) for _ in range(rounds))


def _elapsed_ms(run: Callable[[], object]) -> float:
    if not torch.cuda.is_available():
        begun = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - begun)
    event: Any = torch.cuda.Event  # torch gives it no types
    begin, end = event(enable_timing=True), event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))
