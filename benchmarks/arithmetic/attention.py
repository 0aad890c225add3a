"""Attention over long contexts beside the two ceilings of the machine: how much longer than a read of keys and values.

    python -m benchmarks.arithmetic.attention [--threads N] [--seconds S] [--only decode|chunk] [--kernels NAME]
        [--json OUT]

One layer of each shape, with the machine's own form of keys and values. A decoding step has one row a sequence and is
bound by memory: its ratio is its time ÷ (bytes of keys and values ÷ read bandwidth), by the reads just before and after
it. A read is of one buffer from end to end, in large pages as the cache is. A chunk of a prompt is bound by arithmetic:
its figure is operations a second. The blocks of a sequence lie in a random order, as after much traffic, or in a row,
as a prompt of its own gets them from a fresh pool.

The cases take turns, so that a busy machine disturbs all alike. Several threads are timed by the clock; one thread by
its own processor time, which other work on the machine disturbs less.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.arithmetic.graphs import Work, graph_of
from manylora.bench.machine import describe
from manylora.bench.statistics import extremes, median
from manylora.kernels.cpu.backend import CpuKernels
from manylora.kernels.cpu.kv import untouched_zeros
from manylora.kernels.operands import AttentionBatch, KvCache, StepInput
from manylora.kernels.select import select_kernels
from manylora.kernels.table_of_operations import Operations

BLOCK_SIZE = 16
SHAPES = {"SmolLM2-135M": (9, 3, 64), "Mistral-7B": (32, 8, 128), "Llama-2-7B": (32, 32, 128)}
"""(heads, kv heads, head_dim) of one layer."""


@dataclass(frozen=True)
class Case:
    """Steps of `rows` rows for each of `sequences` sequences, the last ones of `context` positions.

    is_in_a_row  the blocks of a sequence follow each other in memory
    """

    shape: str
    sequences: int
    rows: int
    context: int
    is_in_a_row: bool = False

    @property
    def name(self) -> str:
        what = "decode" if self.rows == 1 else f"chunk of {self.rows}"
        return f"{self.shape}, {self.sequences} × {self.context}, {what}{', in a row' * self.is_in_a_row}"

    @property
    def kv_bytes(self) -> int:
        _, kv_heads, head_dim = SHAPES[self.shape]
        return 2 * 2 * self.sequences * self.context * kv_heads * head_dim

    @property
    def operations(self) -> int:
        """Multiplications and additions of scores and outputs."""
        heads, _, head_dim = SHAPES[self.shape]
        seen = self.rows * self.context - self.rows * (self.rows - 1) // 2
        return 2 * 2 * self.sequences * seen * heads * head_dim


CASES = (
    Case("SmolLM2-135M", 4, 1, 32_768),
    Case("SmolLM2-135M", 1, 1, 32_768),
    Case("Mistral-7B", 4, 1, 32_768),
    Case("Mistral-7B", 1, 1, 32_768),
    Case("Llama-2-7B", 4, 1, 8_192),
    Case("SmolLM2-135M", 4, 1, 32_768, is_in_a_row=True),
    Case("Mistral-7B", 4, 1, 32_768, is_in_a_row=True),
    Case("SmolLM2-135M", 64, 1, 200),
    Case("SmolLM2-135M", 1, 512, 32_768),
    Case("Mistral-7B", 1, 512, 32_768),
    Case("SmolLM2-135M", 1, 256, 1_024),
)


def attention(kernels: CpuKernels, case: Case) -> Work:
    """Return the attention of one layer as a captured graph."""
    heads, kv_heads, head_dim = SHAPES[case.shape]
    blocks = -(-case.context // BLOCK_SIZE)
    kv = kernels.new_kv(
        layers=1, num_blocks=case.sequences * blocks, block_size=BLOCK_SIZE, kv_heads=kv_heads, head_dim=head_dim
    )
    for part in (kv.keys, kv.values):  # type: ignore[attr-defined]  # of the CPU's cache; no page is the zero page
        part.normal_()
    count = case.sequences * blocks
    order = torch.arange(count) if case.is_in_a_row else torch.randperm(count)
    tables = order.int().reshape(case.sequences, blocks)
    positions = torch.arange(case.context - case.rows, case.context).repeat(case.sequences)
    owners = torch.arange(case.sequences).repeat_interleave(case.rows)
    slots = tables[owners, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
    batch = AttentionBatch(positions.int(), slots, owners.int(), tables)

    def body(ops: Operations[Any], q: Any, step: StepInput, kv: KvCache) -> None:
        ops.attend(q, kv, 0, None, step.attention)

    return graph_of(kernels, body, rows=case.rows * case.sequences, width=heads * head_dim, kv=kv, attention=batch)


def measure(
    works: dict[Case, Work], read: Callable[[], int], seconds: float, clock: Callable[[], float]
) -> dict[Case, list[tuple[float, float]]]:
    """Return for each case (seconds, bytes a second of the reads beside it) of each round; the first round warms up."""
    found: dict[Case, list[tuple[float, float]]] = {case: [] for case in works}

    def rate() -> float:
        start = clock()
        return read() / (clock() - start)

    end = time.perf_counter() + seconds
    for number in itertools.count():
        if number >= 4 and time.perf_counter() > end:
            return {case: taken[1:] for case, taken in found.items()}
        before = rate()
        for case, work in works.items():
            start = clock()
            work()
            took, after = clock() - start, rate()
            found[case].append((took, (before + after) / 2))
            before = after
    raise AssertionError  # the count has no end


def report(flops: float, measured: dict[Case, list[tuple[float, float]]]) -> dict[str, dict[str, Any]]:
    """Print a line for each case; return the figures."""
    figures: dict[str, dict[str, Any]] = {}
    for case, taken in measured.items():
        times = [seconds for seconds, _ in taken]
        figure: dict[str, Any] = {"ms": extremes([1e3 * one for one in times])}
        if case.rows == 1:
            figure["over_read"] = extremes([seconds * rate / case.kv_bytes for seconds, rate in taken])
            text = f"{figure['over_read']['median']:6.2f} × a read of {case.kv_bytes / 1e6:.0f} MB"
        else:
            figure["gflops"] = extremes([case.operations / one / 1e9 for one in times], 1)
            text = f"{figure['gflops']['median']:6.1f} GFLOP/s, {figure['gflops']['median'] * 1e9 / flops:.2f} of peak"
        figures[case.name] = figure
        print(f"{case.name:45}{median(times) * 1e3:9.2f} ms  {text}")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--only", choices=("decode", "chunk"), help="cases of one kind")
    parser.add_argument("--kernels", choices=("auto", "native"), default="auto")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kernels = select_kernels(options.kernels, options.threads)
    assert isinstance(kernels, CpuKernels), "a compiler is installed"
    native, functions = kernels.native, kernels.native.functions
    buffer = untouched_zeros(64 << 20, torch.float32)
    functions.ml_advise_huge(buffer.data_ptr(), buffer.nbytes)
    buffer.fill_(1.0)
    facts = describe() | {"isa": native.isa, "kernels": kernels.name, "threads": options.threads}
    print("\n".join(f"{key:12} {value}" for key, value in facts.items()))
    flops = functions.ml_measure_flops(native.pool, 20)

    def read() -> int:
        functions.ml_measure_bandwidth(native.pool, buffer.data_ptr(), buffer.numel(), 1)
        return buffer.nbytes

    chosen = [case for case in CASES if options.only is None or (case.rows == 1) == (options.only == "decode")]
    works = {case: attention(kernels, case) for case in chosen}
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    measured = measure(works, read, options.seconds, clock)
    rates = [rate for taken in measured.values() for _, rate in taken]
    print(f"ceilings     {median(rates) / 1e9:.1f} GB/s read, {flops / 1e9:.1f} GFLOP/s multiply-add in registers")
    figures = report(flops, measured)
    if options.json:
        result = {**facts, "read_bytes_s": extremes(rates, 0), "fma_flops_s": flops, "results": figures}
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
