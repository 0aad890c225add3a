"""int8 or int4 weights beside bf16: speed of the linear layers and of a decode step, and the loss of quality.

    python -m benchmarks.arithmetic.int8 [--quantize int8|int4] [--base NAME|DIR] [--json FILE] [--only speed|quality]

Speed: both forms of the base are in memory and take turns, round after round; a ratio is bf16 ÷ int8 of one round's
medians, and its median over the rounds is shown with the extremes. Linear layers: every product of one step, the logits
of every row among them. Step: `Engine.step` with prompts of 128 random tokens, as in step.py. Quality: quality.py.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.arithmetic import quality
from benchmarks.arithmetic.step import decode, linear_layers
from manylora.bench.machine import describe
from manylora.bench.statistics import extremes, median, milliseconds
from manylora.config.declaration import Setting
from manylora.config.folders import cache_dir
from manylora.config.groups.model import DEFAULT_BASE
from manylora.config.settings import load_config
from manylora.engine.engine import Engine
from manylora.kernels.interface import Kernels
from manylora.kernels.select import select_kernels
from manylora.models.fetch.catalog import resolve
from manylora.models.llama import LlamaModel
from manylora.models.spec import read_spec
from manylora.models.text.tokenizer import Tokenizer
from manylora.models.weights import Weights, load_weights
from manylora.system.resources import find_resources
from manylora.wiring.engine import build_engine

LAYER_ROWS = (1, 8, 32, 256)
STEP_ROWS = (1, 32)
ROUNDS = 7


@dataclass(frozen=True, slots=True)
class Side:
    """One form of the base, bare and in an engine of its own."""

    kernels: Kernels
    weights: Weights
    engine: Engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=DEFAULT_BASE, help="base model: a name or a directory")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--quantize", default="int8", choices=("int8", "int4"))
    parser.add_argument("--kernels", default="auto", help="of bf16: auto, native, native-bf16")
    parser.add_argument("--only", choices=("speed", "quality"))
    options = parser.parse_args()

    facts = describe()
    directory = resolve(options.base, cache_dir())
    sides = (
        make_side(options.base, directory, options.kernels, "none"),
        make_side(options.base, directory, "auto", options.quantize),
    )
    torch.set_num_threads(1)  # the native kernels bring their own
    vocab = read_spec(directory).vocab
    print(f"{facts['processor']}, load {facts['load_before']}\n\n{sides[0].kernels.name} against {options.quantize}")
    result: dict[str, object] = {**facts}
    if options.only != "quality":
        result["linear_layers"] = [in_turn("linear layers", rows, sides, vocab) for rows in LAYER_ROWS]
        result["decode_step"] = [in_turn("decode step", rows, sides, vocab) for rows in STEP_ROWS]
    if options.only != "speed":
        result["quality"] = measure_quality(directory, sides)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def make_side(base: str, directory: Path, name: str, quantize: str) -> Side:
    """Load the base twice in this form: for its bare products and inside an engine."""
    kernels = select_kernels(name, find_resources().threads, quantize=quantize)
    flags: dict[str, Setting] = {
        "model.base": base,
        "model.kernels": name,
        "model.quantize": quantize,
        "engine.prefix_cache": False,
        "engine.max_queue_s": 3600.0,  # of the tickets, none may end for a busy machine
        "adapters.roots": (str(quality.TRIAGE.parent),),
    }
    engine, _ = build_engine(load_config(flags=flags), lambda line: None)
    return Side(kernels, load_weights(directory, read_spec(directory), kernels), engine)


def in_turn(name: str, rows: int, sides: tuple[Side, Side], vocab: int) -> dict[str, object]:
    """Time the same work on both sides, alternating, and print the line of the table."""
    times: tuple[list[float], list[float]] = ([], [])
    ratios: list[float] = []
    for _ in range(ROUNDS):
        medians = []
        for side, own in zip(sides, times, strict=True):
            if name == "decode step":
                found = decode(side.engine, rows, [], vocab)
            else:
                found = linear_layers(side.kernels, side.weights, rows)
            own += found
            medians.append(median(found))
        ratios.append(medians[0] / medians[1])
    bf16, quantised = milliseconds(times[0]), milliseconds(times[1])
    ratio = extremes(ratios, 2)
    print(
        f"{name:14} {rows:4d} rows  {bf16['median_ms']:8.2f} ms  {quantised['median_ms']:8.2f} ms  "
        f"× {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}); "
        f"best {bf16['min_ms']:.2f} and {quantised['min_ms']:.2f}",
        flush=True,
    )
    form = sides[1].kernels.name
    return {"rows": rows, "bf16": bf16, form: quantised, f"bf16_over_{form}": ratio}


def measure_quality(directory: Path, sides: tuple[Side, Side]) -> dict[str, object]:
    """Print and return the lower half of the table."""
    tokenizer, spec, form = Tokenizer(directory), read_spec(directory), sides[1].kernels.name
    exact, rounded = (LlamaModel(spec, side.weights, side.kernels, max_positions=quality.WINDOW) for side in sides)
    found: dict[str, object] = {**quality.compare(exact, rounded, quality.windows(tokenizer))}
    print(
        f"perplexity, {found['tokens']} tokens   {found['perplexity_bf16']:8.3f}     "
        f"{found[f'perplexity_{form}']:8.3f}    × {found['perplexity_ratio']:.4f}\n"
        f"same likeliest token {found['same_likeliest_token']:.1%}, divergence {found['kl_divergence_nats']:.5f} nats"
    )
    answers = [quality.triage_answers(side.engine, tokenizer) for side in sides]
    found["triage_tickets"] = len(answers[0])
    found["triage_accuracy_bf16"], found[f"triage_accuracy_{form}"] = map(quality.accuracy, answers)
    same = sum(one == other for one, other in zip(*answers, strict=True)) / len(answers[0])
    found["triage_same_answer"] = round(same, 4)
    print(
        f"triage, {len(answers[0])} tickets       {found['triage_accuracy_bf16']:8.1%}     "
        f"{found[f'triage_accuracy_{form}']:8.1%}    same answer {same:.1%}"
    )
    return found


if __name__ == "__main__":
    main()
