"""Time the kernels of one decoding step beside the two ceilings of the machine, all in one run.

    python -m benchmarks.arithmetic.kernels [--threads N] [--seconds S] [--json OUT]

Shapes are SmolLM2-135M's: hidden 576, 9 heads and 3 kv heads of 64, intermediate 1536, 30 layers, vocabulary 49152.
Everything is measured in turn, round after round, so that a busy machine disturbs all alike; a figure is the best
round, with the median beside it. Ratios hold where absolute figures do not.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.arithmetic.graphs import Work, graph_of
from manylora.bench.machine import describe
from manylora.ids import Digest
from manylora.kernels.cpu.backend import CpuKernels
from manylora.kernels.cpu.library import NativeLibrary
from manylora.kernels.cpu.linear import Bf16Linear, why_not_bf16
from manylora.kernels.lora_batch import LoraSegment, PlacedAdapter
from manylora.kernels.operands import AttentionBatch, KvCache, Packed, RopeTable, StepInput
from manylora.kernels.projections import LoraTarget, Projection
from manylora.kernels.table_of_operations import Operations

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, LAYERS, VOCAB = 576, 9, 3, 64, 1536, 30, 49152
QKV = (HEADS + 2 * KV_HEADS) * HEAD_DIM
LAYER_SHAPES = ((QKV, HIDDEN), (HIDDEN, HEADS * HEAD_DIM), (2 * INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE))
WEIGHTS = LAYERS * sum(outputs * inputs for outputs, inputs in LAYER_SHAPES) + VOCAB * HIDDEN
ROWS = (1, 8, 32, 256)
CONTEXT = 200
Q_K_V = (
    LoraTarget(Projection.Q, 0, HEADS * HEAD_DIM),
    LoraTarget(Projection.K, HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM),
    LoraTarget(Projection.V, (HEADS + KV_HEADS) * HEAD_DIM, KV_HEADS * HEAD_DIM),
)
OUTPUT = (LoraTarget(Projection.O, 0, HIDDEN),)


def all_products(kernels: CpuKernels) -> dict[int, Work]:
    """For each number of rows: every linear layer of the model and the logits of all rows."""
    layers = [[kernels.pack(torch.randn(shape)) for shape in LAYER_SHAPES] for _ in range(LAYERS)]
    head = kernels.pack(torch.randn(VOCAB, HIDDEN))

    def body(ops: Operations[Any], x: Any, step: StepInput, kv: KvCache) -> None:
        wide = ops.gated_silu(ops.linear(x, layers[0][2]))
        for layer in layers:
            for (_, width), weight in zip(LAYER_SHAPES, layer, strict=True):
                ops.linear(x if width == HIDDEN else wide, weight)
        ops.linear(x, head)

    return {rows: graph_of(kernels, body, rows=rows, width=HIDDEN) for rows in ROWS}


def torch_products(threads: int) -> dict[int, Work]:
    """The same by `F.linear` in float32, which reads twice the bytes."""
    layers = [[torch.randn(shape) for shape in LAYER_SHAPES] for _ in range(LAYERS)]
    head = torch.randn(VOCAB, HIDDEN)

    def step(inputs: dict[int, torch.Tensor]) -> None:
        torch.set_num_threads(threads)
        for layer in layers:
            for (_, width), weight in zip(LAYER_SHAPES, layer, strict=True):
                F.linear(inputs[width], weight)
        F.linear(inputs[HIDDEN], head)
        torch.set_num_threads(1)

    return {rows: _bind(step, {w: torch.randn(rows, w) for w in (HIDDEN, INTERMEDIATE)}) for rows in ROWS}


def all_attention(kernels: CpuKernels, rows: int) -> Work:
    """Rotation, write and attention of all layers: `rows` sequences of CONTEXT tokens, one new token each."""
    block_size = 16
    blocks = -(-CONTEXT // block_size)
    kv = kernels.new_kv(
        layers=LAYERS, num_blocks=rows * blocks, block_size=block_size, kv_heads=KV_HEADS, head_dim=HEAD_DIM
    )
    tables = torch.randperm(rows * blocks).int().reshape(rows, blocks)
    last = CONTEXT - 1
    batch = AttentionBatch(
        positions=torch.full((rows,), last, dtype=torch.int32),
        slots=tables[:, last // block_size].long() * block_size + last % block_size,
        row_sequence=torch.arange(rows, dtype=torch.int32),
        block_tables=tables,
    )
    rope = RopeTable(torch.rand(CONTEXT, HEAD_DIM // 2), torch.rand(CONTEXT, HEAD_DIM // 2))

    def body(ops: Operations[Any], qkv: Any, step: StepInput, kv: KvCache) -> None:
        for layer in range(LAYERS):
            q = ops.rotate_and_store(qkv, rope, kv, layer, HEADS, step.attention)
            ops.attend(q, kv, layer, None, step.attention)

    return graph_of(kernels, body, rows=rows, width=QKV, kv=kv, attention=batch)


def all_adapters(kernels: CpuKernels, rows: int, ranks: tuple[int, ...]) -> Work:
    """The q, k, v and o deltas of all layers, each row with its own adapter; ranks are dealt in turn."""
    segments = tuple(
        LoraSegment(row, row + 1, _adapter(ranks[row % len(ranks)], kernels.lora_dtype)) for row in range(rows)
    )
    widest = kernels.pack(torch.zeros(64, QKV))

    def body(ops: Operations[Any], x: Any, step: StepInput, kv: KvCache) -> None:
        qkv = ops.embed(step.token_ids, widest)
        for layer in range(LAYERS):
            ops.add_lora(qkv, x, step.lora, layer, Q_K_V)
            ops.add_lora(x, x, step.lora, layer, OUTPUT)

    return graph_of(kernels, body, rows=rows, width=HIDDEN, lora=kernels.prepare_lora(segments))


def _adapter(rank: int, dtype: torch.dtype) -> PlacedAdapter:
    table = np.zeros((LAYERS, 7, 3), dtype=np.int64)
    used = 0
    for layer in range(LAYERS):
        for target in (*Q_K_V, *OUTPUT):
            table[layer, target.projection] = (used, used + rank * HIDDEN, rank)
            used += rank * (HIDDEN + target.out)
    return PlacedAdapter(Digest(f"rank {rank}"), torch.randn(used).to(dtype), table)


def all_pointwise(kernels: CpuKernels, rows: int) -> Work:
    """The norms and activations of all layers."""
    weight, expand = torch.ones(HIDDEN), kernels.pack(torch.randn(2 * INTERMEDIATE, HIDDEN))

    def body(ops: Operations[Any], x: Any, step: StepInput, kv: KvCache) -> None:
        delta, gate_up = ops.norm(x, weight, 1e-5), ops.linear(x, expand)
        for _ in range(LAYERS):
            ops.add_norm(x, delta, weight, 1e-5)
            ops.gated_silu(gate_up)
            ops.add_norm(x, delta, weight, 1e-5)

    return graph_of(kernels, body, rows=rows, width=HIDDEN)


def call_overhead(kernels: CpuKernels) -> Work:
    """Three hundred products of one row and sixteen columns: the cost of an operation beside its arithmetic."""
    weight: Packed = kernels.pack(torch.randn(16, 16))

    def body(ops: Operations[Any], x: Any, step: StepInput, kv: KvCache) -> None:
        for _ in range(300):
            ops.linear(x, weight)

    return graph_of(kernels, body, rows=1, width=16)


def _bind(step: Callable[[dict[int, torch.Tensor]], None], inputs: dict[int, torch.Tensor]) -> Work:
    return lambda: step(inputs)


def measure(works: dict[str, Work], seconds: float) -> dict[str, list[float]]:
    """Run every work once a round, three rounds at least, until `seconds` have passed; the first round is warm-up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 4 or time.perf_counter() < end:
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if rounds:
                times[name].append(time.perf_counter() - start)
        rounds += 1
    return times


def build_works(native: NativeLibrary, rates: dict[str, list[float]]) -> dict[str, Work]:
    """Everything that is timed, by name; `name/rows` names a figure for that many rows.

    The ceilings are measured in each round too, and put their bytes and operations per second into `rates`.
    """
    kernels = CpuKernels(native)
    buffer = torch.ones(64 << 20)
    functions = native.functions
    works: dict[str, Work] = {
        "ceiling: read 256 MiB": lambda: rates["read"].append(
            functions.ml_measure_bandwidth(native.pool, buffer.data_ptr(), buffer.numel(), 1)
        ),
        "ceiling: multiply-add": lambda: rates["fma"].append(functions.ml_measure_flops(native.pool, 1)),
        "300 empty operations": call_overhead(kernels),
    }
    works |= {f"linear native/{rows}": work for rows, work in all_products(kernels).items()}
    if why_not_bf16(native) is None:
        pairs = CpuKernels(native, Bf16Linear(native))
        works |= {f"linear native-bf16/{rows}": work for rows, work in all_products(pairs).items()}
    works |= {f"linear torch float32/{rows}": work for rows, work in torch_products(native.threads).items()}
    for rows in (1, 32):
        works[f"attention, context {CONTEXT}/{rows}"] = all_attention(kernels, rows)
        works[f"norms and activations/{rows}"] = all_pointwise(kernels, rows)
        works[f"adapters of rank 16 on q,k,v,o/{rows}"] = all_adapters(kernels, rows, (16,))
    works["adapters of ranks 4,8,16,64 on q,k,v,o/32"] = all_adapters(kernels, 32, (4, 8, 16, 64))
    return works


def report(times: dict[str, list[float]], ceilings: tuple[float, float]) -> dict[str, dict[str, float]]:
    """Print one line a figure; return them."""
    bandwidth, flops = ceilings
    print(f"\n{'':44}{'rows':>5}{'best ms':>10}{'median':>9}{'GB/s':>7}{'of read':>9}{'GFLOP/s':>9}{'of peak':>9}")
    figures: dict[str, dict[str, float]] = {}
    for name, samples in times.items():
        label, _, rows = name.partition("/")
        best, middle = min(samples), statistics.median(samples)
        figures[name] = {"best_s": best, "median_s": middle, "rounds": len(samples)}
        line = f"{label:44}{rows:>5}{best * 1e3:10.2f}{middle * 1e3:9.2f}"
        if label.startswith("linear"):
            weight_bytes = WEIGHTS * (4 if "float32" in label else 2)
            bytes_s, flops_s = weight_bytes / best, 2 * WEIGHTS * int(rows) / best
            figures[name] |= {"of_read_bandwidth": bytes_s / bandwidth, "of_fma_peak": flops_s / flops}
            line += f"{bytes_s / 1e9:7.1f}{bytes_s / bandwidth:9.2f}{flops_s / 1e9:9.1f}{flops_s / flops:9.2f}"
        print(line)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    native = NativeLibrary(arguments.threads)
    rates: dict[str, list[float]] = {"read": [], "fma": []}
    times = measure(build_works(native, rates), arguments.seconds)
    bandwidth, flops = max(rates["read"]), max(rates["fma"])
    about = describe()
    for key, value in about.items():
        print(f"{key:12} {value}")
    print(f"native       {native.isa}, {native.threads} threads")
    print(f"ceilings     {bandwidth / 1e9:.1f} GB/s read, {flops / 1e9:.1f} GFLOP/s multiply-add in registers")
    figures = report(times, (bandwidth, flops))
    if arguments.json:
        result = {"machine": about, "read_bytes_s": bandwidth, "fma_flops_s": flops, "figures": figures}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
