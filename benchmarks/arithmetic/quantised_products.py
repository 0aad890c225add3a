"""Products of int8 and int4 weights beside bf16 and beside the read of their bytes, all in turn in one run.

    python -m benchmarks.arithmetic.quantised_products [--threads N] [--rounds N] [--json FILE]

Shapes are of a Llama of seven billion, and SmolLM2-135M's widest layer. Of each shape there are so many weights that
they do not fit into a last-level cache. One row: time of a product ÷ (bytes of the packed weight ÷ read bandwidth), the
bandwidth read in the same round. Many rows: bf16's time ÷ the quantised product's. A ratio is of one round; its median
and extremes over the rounds are printed. Several threads are timed by the clock; one thread by its own processor time,
which other work on the machine disturbs less. `int4` has groups of 32 with minima, `int4-128` groups of 128 without.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.arithmetic.graphs import Work, graph_of
from benchmarks.arithmetic.products import multiply_all
from manylora.bench.machine import describe
from manylora.bench.statistics import extremes, median
from manylora.kernels.cpu.backend import CpuKernels
from manylora.kernels.cpu.int4 import Int4Linear
from manylora.kernels.cpu.int8 import Int8Linear
from manylora.kernels.cpu.library import NativeLibrary
from manylora.kernels.cpu.linear import Bf16Linear, NativeLinear, why_not_bf16
from manylora.kernels.operands import Packed
from manylora.kernels.weight_groups import GroupedWeight
from manylora.system.resources import find_resources

SHAPES = ((4096, 4096), (4096, 11008), (11008, 4096), (576, 3072))
"""(inputs, outputs)"""
ROWS = (1, 8, 32, 512)
WEIGHT_BYTES = 96 << 20
MOST_WORK = 2e10
"""Operations of a pass at most: the passes of many rows need not touch all weights."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=find_resources().threads)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    native = NativeLibrary(options.threads)
    facts: dict[str, Any] = describe() | {"isa": native.isa, "threads": options.threads}
    print("\n".join(f"{key:12} {value}" for key, value in facts.items()))
    print("\n inputs outputs rows form          us    GOP/s    GB/s   ÷ read of its bytes      bf16 ÷ it")
    results = [
        result
        for inputs, outputs in SHAPES
        for result in measure(native, inputs, outputs, options.rows, options.rounds)
    ]
    if options.json:
        options.json.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")


def makers(native: NativeLibrary, inputs: int, outputs: int) -> dict[str, Callable[[], Packed]]:
    """Return for each form the maker of one packed weight of random numbers."""
    weight = torch.randn(outputs, inputs)
    integers = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8)
    scales = torch.rand(outputs, -(-inputs // 128))
    plain = NativeLinear(native) if why_not_bf16(native) else Bf16Linear(native)
    return {
        "bf16": lambda: plain.pack(weight),
        "int8": lambda: Int8Linear(native).pack(weight),
        "int4": lambda: Int4Linear(native).pack(weight),
        "int4-128": lambda: Int4Linear(native).pack_groups(GroupedWeight(integers, scales, None, 128)),
    }


def measure(native: NativeLibrary, inputs: int, outputs: int, rows: list[int], rounds: int) -> list[dict[str, object]]:
    """Time all forms of one shape in turn; print a line for each form and number of rows."""
    kernels = CpuKernels(native)
    packed: dict[str, list[Packed]] = {}
    for form, make in makers(native, inputs, outputs).items():
        first = make()
        copies = max(2, -(-WEIGHT_BYTES // num_bytes(first)))
        packed[form] = [first, *(make() for _ in range(copies - 1))]
    results = []
    for count in rows:
        operations = 2 * count * inputs * outputs
        works: dict[str, tuple[Work, int]] = {}
        for form, weights in packed.items():
            used = weights[: max(1, int(MOST_WORK / operations))]
            works[form] = graph_of(kernels, multiply_all(used), rows=count, width=inputs), len(used)
        seconds, bandwidths = in_turn(native, works, rounds)
        for form, times in seconds.items():
            floors = [num_bytes(packed[form][0]) / bandwidth for bandwidth in bandwidths]
            result = {
                "inputs": inputs,
                "outputs": outputs,
                "rows": count,
                "form": form,
                "seconds": median(times),
                "bytes": num_bytes(packed[form][0]),
                "over_read": extremes([own / floor for own, floor in zip(times, floors, strict=True)], 2),
                "bf16_over": extremes([bf16 / own for bf16, own in zip(seconds["bf16"], times, strict=True)], 2),
            }
            results.append(result)
            print(line(result), flush=True)
    return results


def in_turn(
    native: NativeLibrary, works: dict[str, tuple[Work, int]], rounds: int
) -> tuple[dict[str, list[float]], list[float]]:
    """Return the seconds of a product by form, and the read bandwidth, of each round; the first round warms up."""
    seconds: dict[str, list[float]] = {form: [] for form in works}
    bandwidths: list[float] = []
    clock = time.thread_time if native.threads == 1 else time.perf_counter
    for _ in range(rounds + 1):
        bandwidths.append(native.measure_bandwidth(megabytes=128, repeats=10))
        for form, (run, products) in works.items():
            start = clock()
            run()
            seconds[form].append((clock() - start) / products)
    return {form: times[1:] for form, times in seconds.items()}, bandwidths[1:]


def num_bytes(packed: Packed) -> int:
    return int(packed.num_bytes)  # type: ignore[attr-defined]  # Packed is opaque to all but its maker


def line(result: dict[str, Any]) -> str:
    operations = 2 * result["rows"] * result["inputs"] * result["outputs"]
    read, over = result["over_read"], result["bf16_over"]
    return (
        f"{result['inputs']:7}{result['outputs']:8}{result['rows']:5} {result['form']:9}{result['seconds'] * 1e6:9.0f}"
        f"{operations / result['seconds'] / 1e9:9.0f}{result['bytes'] / result['seconds'] / 1e9:8.1f}"
        f"   {read['median']:5.2f} ({read['min']:.2f} to {read['max']:.2f})"
        f"   {over['median']:5.2f} ({over['min']:.2f} to {over['max']:.2f})"
    )


if __name__ == "__main__":
    main()
