"""Decode step of the engine for 1, 8 and 32 rows beside its floor, both timed in turn in one run.

    python -m benchmarks.arithmetic.step [--base NAME|DIR] [--adapters N] [--json FILE]

Workload: every sequence has a prompt of 128 distinct random token ids and decodes greedily, end-of-sequence ignored; a
step is one call of `Engine.step`. Floors: for one row the bytes of the packed weights over the read bandwidth that all
threads reach (read once before each block of steps); for more rows the same packed linear layers and logits alone, on
the same number of rows. The ratio is step ÷ floor, median over rounds; rounds alternate between the two sides.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.arithmetic.graphs import graph_of
from manylora.bench.machine import describe
from manylora.bench.statistics import extremes, median, milliseconds
from manylora.bench.steps import decode_steps
from manylora.clock import SystemClock
from manylora.config.folders import cache_dir
from manylora.config.groups.model import DEFAULT_BASE
from manylora.config.settings import load_config
from manylora.engine.engine import Engine
from manylora.kernels.cpu.library import NativeLibrary
from manylora.kernels.interface import Kernels
from manylora.kernels.operands import KvCache, StepInput
from manylora.kernels.select import select_kernels
from manylora.kernels.table_of_operations import Operations
from manylora.models.fetch.catalog import resolve
from manylora.models.spec import read_spec
from manylora.models.weights import Dense, LayerWeights, Weights, load_weights
from manylora.system.resources import find_resources
from manylora.wiring.engine import build_engine

ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=DEFAULT_BASE, help="base model: a name or a directory")
    parser.add_argument("--kernels", default="auto", help="back end: auto, native, native-bf16")
    parser.add_argument("--adapter-root", help="adapters below this directory take turns over the rows")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()

    facts = describe()
    flags = {"model.base": options.base, "model.kernels": options.kernels, "engine.prefix_cache": False}
    if options.adapter_root:
        flags["adapters.roots"] = (options.adapter_root,)
    config = load_config(flags=flags)
    engine, served = build_engine(config, print)
    spec = read_spec(Path(served.base_dir))
    threads = find_resources().threads
    kernels = select_kernels(options.kernels, threads)
    weights = load_weights(resolve(options.base, cache_dir()), spec, kernels)
    read_bytes = spec.parameters * kernels.weight_dtype.itemsize
    adapters = _adapters(options.adapter_root)
    print(f"{facts['processor']}\n{threads} threads, kernels {kernels.name}, adapters {adapters or 'none'}\n")

    library = NativeLibrary(threads)
    results = [
        measure(engine, kernels, weights, library, read_bytes, rows, adapters, spec.vocab) for rows in (1, 8, 32)
    ]
    if options.json:
        options.json.write_text(json.dumps({**facts, "adapters": adapters, "results": results}, indent=1) + "\n")


def measure(
    engine: Engine,
    kernels: Kernels,
    weights: Weights,
    library: NativeLibrary,
    read_bytes: int,
    rows: int,
    adapters: list[str],
    vocab: int,
) -> dict[str, object]:
    """Alternate between blocks of steps and blocks of the floor."""
    steps: list[float] = []
    layers: list[float] = []
    ratios: list[float] = []
    bandwidths: list[float] = []
    for _ in range(ROUNDS):
        mine = decode(engine, rows, adapters, vocab)
        bare = linear_layers(kernels, weights, rows)
        bandwidth = library.measure_bandwidth(repeats=5)
        floor = read_bytes / bandwidth if rows == 1 else median(bare)
        steps += mine
        layers += bare
        bandwidths.append(bandwidth / 1e9)
        ratios.append(median(mine) / floor)
    result = {
        "rows": rows,
        "step": milliseconds(steps),
        "linear_layers_alone": milliseconds(layers),
        "read_gb_per_s": round(median(bandwidths), 1),
        "floor": "weight bytes / read bandwidth" if rows == 1 else "linear layers and logits alone",
        "ratio": extremes(ratios, 2),
    }
    print(
        f"{rows:3d} rows: step {result['step']}  linear alone {result['linear_layers_alone']}  "
        f"read {result['read_gb_per_s']} GB/s  step ÷ floor {result['ratio']}"
    )
    return result


def decode(engine: Engine, rows: int, adapters: list[str], vocab: int) -> list[float]:
    """Seconds of pure decode steps of the whole batch."""
    return [step.seconds for step in decode_steps(engine, rows, adapters, vocab, clock=SystemClock())]


def dense(layer: LayerWeights) -> Dense:
    assert isinstance(layer.mlp, Dense)  # the default base has no experts
    return layer.mlp


def linear_layers(kernels: Kernels, weights: Weights, rows: int) -> list[float]:
    def body(ops: Operations[Any], x: Any, step: StepInput, kv: KvCache) -> None:
        wide = ops.gated_silu(ops.linear(x, dense(weights.layers[0]).gate_up))
        for layer in weights.layers:
            ops.linear(x, layer.qkv)
            ops.linear(x, layer.o)
            ops.linear(x, dense(layer).gate_up)
            ops.linear(wide, dense(layer).down)
        ops.linear(x, weights.head)

    run = graph_of(kernels, body, rows=rows, width=weights.final_norm.shape[0])
    times: list[float] = []
    for _ in range(12):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times[2:]


def _adapters(root: str | None) -> list[str]:
    if root is None:
        return []
    return sorted(file.parent.name for file in Path(root).glob("*/adapter_config.json"))


if __name__ == "__main__":
    main()
