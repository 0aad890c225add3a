"""One linear layer by the native kernels with float32 and with bf16 activations, shape by shape and row by row.

    python -m benchmarks.arithmetic.products [--threads N] [--repeats N] [--json FILE]

Each shape has so many weights that they do not fit into a last-level cache; both forms take turns, one pass over
all weights each, and a figure is the median of the passes. Several threads are timed by the clock; one thread by its
own processor time, which other work on the machine disturbs less.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.arithmetic.graphs import Body, graph_of
from manylora.bench.machine import describe
from manylora.bench.statistics import median
from manylora.kernels.cpu.backend import CpuKernels
from manylora.kernels.cpu.library import NativeLibrary
from manylora.kernels.cpu.linear import Bf16Linear, NativeLinear, WeightFormat
from manylora.kernels.operands import KvCache, Packed, StepInput
from manylora.kernels.table_of_operations import Operations

SMALL = ((576, 960), (576, 576), (576, 3072), (1536, 576), (576, 49152))
"""(inputs, outputs) of SmolLM2-135M's layers and head."""
LARGE = ((4096, 4096), (4096, 11008), (11008, 4096))
"""Of a Llama of seven billion."""
ROWS = (1, 2, 4, 8, 16, 32, 256)
WEIGHT_BYTES = 96 << 20
MOST_WORK = 4e10
"""Operations of a pass at most: the passes of many rows need not touch all weights."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9, help="passes; a third of them for the large shapes")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    native = NativeLibrary(options.threads)
    formats: dict[str, WeightFormat] = {"native": NativeLinear(native), "native-bf16": Bf16Linear(native)}
    facts = describe() | {"isa": native.isa, "threads": options.threads}
    print("\n".join(f"{key:12} {value}" for key, value in facts.items()))
    print("\n inputs outputs rows     native us  GFLOP/s  native-bf16 us  GFLOP/s   GB/s   ratio")
    results = []
    for shapes, repeats in ((SMALL, options.repeats), (LARGE, max(3, options.repeats // 3))):
        for inputs, outputs in shapes:
            results += measure(native, formats, inputs, outputs, repeats, options.threads)
    if options.json:
        options.json.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")


def measure(
    native: NativeLibrary, formats: dict[str, WeightFormat], inputs: int, outputs: int, repeats: int, threads: int
) -> list[dict[str, float]]:
    """Time all rows of one shape; print a line for each."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    copies = max(1, -(-WEIGHT_BYTES // (2 * inputs * outputs)))
    weights = [torch.randn(outputs, inputs) for _ in range(copies)]
    kernels = {name: CpuKernels(native, own) for name, own in formats.items()}
    packed = {name: [own.pack(weight) for weight in weights] for name, own in kernels.items()}
    results = []
    for rows in ROWS:
        operations = 2 * rows * inputs * outputs
        used = max(1, min(copies, int(MOST_WORK / operations)))
        passes = {
            name: graph_of(own, multiply_all(packed[name][:used]), rows=rows, width=inputs)
            for name, own in kernels.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in passes}
        for _ in range(repeats + 1):
            for name, run in passes.items():
                start = clock()
                run()
                seconds[name].append((clock() - start) / used)
        plain, pairs = (median(times[1:]) for times in seconds.values())  # the first pass warms up
        print(
            f"{inputs:7}{outputs:8}{rows:5}{plain * 1e6:14.1f}{operations / plain / 1e9:9.1f}{pairs * 1e6:16.1f}"
            f"{operations / pairs / 1e9:9.1f}{2 * inputs * outputs / pairs / 1e9:7.1f}{plain / pairs:8.2f}",
            flush=True,
        )
        results.append({"inputs": inputs, "outputs": outputs, "rows": rows, "native_s": plain, "native_bf16_s": pairs})
    return results


def multiply_all(weights: list[Packed]) -> Body:
    """Return the products of x with each weight."""

    def body(ops: Operations[Any], x: Any, step: StepInput, kv: KvCache) -> None:
        for weight in weights:
            ops.linear(x, weight)

    return body


if __name__ == "__main__":
    main()
