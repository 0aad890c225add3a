"""A mixture of experts beside dense layers of the same arithmetic, on the native kernels.

    python -m benchmarks.arithmetic.experts [--threads N] [--repeats N] [--json FILE]

The dense form multiplies as many rows as the mixture has picks by one expert's weights: the same operations, and the
weights of one expert read. The mixture reads the weights of every expert that has a row, so that few rows show the cost
of the reads and many rows the cost of the routes, the copies and the shorter products. `packed` is the dense form over
as many experts, each with an equal share of the rows, one product after the other: what a grouped product must beat.
The forms take turns; a figure is the median of the rounds, and a ratio that of the rounds' ratios with its extremes.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.arithmetic.graphs import Body, Work, graph_of
from manylora.bench.machine import describe
from manylora.bench.statistics import median
from manylora.kernels.cpu.backend import CpuKernels
from manylora.kernels.cpu.int4 import Int4Linear
from manylora.kernels.cpu.int8 import Int8Linear
from manylora.kernels.cpu.library import NativeLibrary
from manylora.kernels.cpu.linear import Bf16Linear, NativeLinear, WeightFormat
from manylora.kernels.operands import KvCache, Packed, StepInput
from manylora.kernels.table_of_operations import Operations

HIDDEN, INNER = 1024, 3584
"""A fourth of Mixtral's sizes."""
EXPERTS, CHOSEN = 8, 2
ROWS = (1, 4, 16, 64, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9, help="rounds")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    native = NativeLibrary(options.threads)
    formats: dict[str, WeightFormat] = {
        "native": NativeLinear(native),
        "native-bf16": Bf16Linear(native),
        "int8": Int8Linear(native),
        "int4": Int4Linear(native),
    }
    facts = describe() | {"isa": native.isa, "threads": options.threads}
    print("\n".join(f"{key:12} {value}" for key, value in facts.items()))
    print("\nformat       rows  experts, most  mixture us    dense us    packed us  mixture ÷ dense  mixture ÷ packed")
    results = [measure(name, CpuKernels(native, own), rows, options) for name, own in formats.items() for rows in ROWS]
    if options.json:
        options.json.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")


def measure(name: str, kernels: CpuKernels, rows: int, options: argparse.Namespace) -> dict[str, object]:
    """Time the three forms in turn; print a line."""
    up = tuple(kernels.pack(torch.randn(2 * INNER, HIDDEN)) for _ in range(EXPERTS))
    down = tuple(kernels.pack(torch.randn(HIDDEN, INNER)) for _ in range(EXPERTS))
    used = min(EXPERTS, rows * CHOSEN)
    forms: dict[str, Work] = {
        "mixture": graph_of(kernels, mixture(up, down), rows=rows, width=HIDDEN),
        "dense": graph_of(kernels, dense(up[0], down[0]), rows=rows * CHOSEN, width=HIDDEN),
        "packed": graph_of(kernels, one_by_one(up[:used], down[:used]), rows=rows * CHOSEN // used, width=HIDDEN),
    }
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    for _ in range(options.repeats + 1):
        for form, run in forms.items():
            start = clock()
            run()
            seconds[form].append(clock() - start)
    rounds = {form: times[1:] for form, times in seconds.items()}  # the first warms up
    result: dict[str, object] = {"format": name, "rows": rows}
    result |= {f"{form}_s": median(times) for form, times in rounds.items()}
    shown = []
    for other in ("dense", "packed"):
        ratios = sorted(mine / theirs for mine, theirs in zip(rounds["mixture"], rounds[other], strict=True))
        result[f"mixture_by_{other}"] = [round(value, 3) for value in (ratios[0], median(ratios), ratios[-1])]
        shown.append(f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    times = "".join(f"{median(rounds[form]) * 1e6:13.0f}" for form in forms)
    print(f"{name:12}{rows:5}{used:14}{times}  {shown[0]:>18}  {shown[1]:>18}", flush=True)
    return result


def mixture(up: tuple[Packed, ...], down: tuple[Packed, ...]) -> Body:
    router = torch.randn(EXPERTS, HIDDEN)

    def body(ops: Operations[Any], x: Any, step: StepInput, kv: KvCache) -> None:
        routes = ops.route(ops.score_experts(x, router), CHOSEN, True)
        wide = ops.gated_silu(ops.expert_linear(routes, ops.send_to_experts(routes, x), up))
        ops.gather_from_experts(routes, ops.expert_linear(routes, wide, down))

    return body


def dense(up: Packed, down: Packed) -> Body:
    def body(ops: Operations[Any], x: Any, step: StepInput, kv: KvCache) -> None:
        ops.linear(ops.gated_silu(ops.linear(x, up)), down)

    return body


def one_by_one(up: tuple[Packed, ...], down: tuple[Packed, ...]) -> Body:
    def body(ops: Operations[Any], x: Any, step: StepInput, kv: KvCache) -> None:
        for own_up, own_down in zip(up, down, strict=True):
            ops.linear(ops.gated_silu(ops.linear(x, own_up)), own_down)

    return body


if __name__ == "__main__":
    main()
