"""G2: the time of one row's mask, computed and applied, beside the time of the row's copy that it does not need.

    python -m benchmarks.structured.masks [--schemas 40] [--tokens 60] [--json FILE]

Each schema is walked by random allowed tokens of the base's vocabulary. One measurement is `GrammarMatcher.fill` of one
row and the kernels' `mask_logits` of that row: the work, on one thread. The engine fills masks beside the forward pass;
`benchmarks.structured.overlap` has what a step waits for them. The first mask of a grammar is computed with its
compilation and is no part of this.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import torch

from benchmarks.structured.schemas import long_schema
from manylora.bench.machine import describe
from manylora.bench.servers import default_base
from manylora.clock import SystemClock
from manylora.engine.grammars.compiling import compiled, open_vocabulary
from manylora.engine.grammars.matcher import GrammarMatcher
from manylora.kernels.select import select_kernels
from manylora.models.spec import read_spec
from manylora.models.text.grammar import json_grammar
from manylora.models.text.tokenizer import Tokenizer

PARTS = ("fill", "apply", "both")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemas", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    facts, base, clock = describe(), default_base(), SystemClock()
    spec, tokenizer = read_spec(base), Tokenizer(base)
    vocabulary = open_vocabulary(tokenizer.to_json(), size=spec.vocab, ends=tuple(sorted(tokenizer.eos_ids)))
    kernels = select_kernels("native", 1)
    logits, rows = torch.randn(1, spec.vocab), np.zeros(1, dtype=np.int64)
    chance, times = Random(0), {part: list[float]() for part in PARTS}
    for number in range(options.schemas):
        grammar = compiled(json_grammar(long_schema(number)), vocabulary)
        matcher = GrammarMatcher(
            grammar.matcher.deep_copy(),
            grammar.source,
            vocab=vocabulary.size,
            library_ends=vocabulary.ends,
            ends=tokenizer.eos_ids,
        )
        masks = np.zeros((1, matcher.words), dtype=np.uint32)
        for _ in range(options.tokens):
            begun_s = clock.monotonic_s()
            matcher.fill(masks, 0)
            filled_s = clock.monotonic_s()
            kernels.mask_logits(logits, rows, masks)
            ended_s = clock.monotonic_s()
            for part, took_s in zip(PARTS, (filled_s - begun_s, ended_s - filled_s, ended_s - begun_s), strict=True):
                times[part].append(1e6 * took_s)
            allowed = np.flatnonzero(np.unpackbits(masks.view(np.uint8), bitorder="little"))
            matcher.advance(int(chance.choice(allowed.tolist())))
    copy = _microseconds(clock, logits.clone)
    result = {part: spread(values) for part, values in times.items()} | {"copy": spread(copy)}
    for part, figures in result.items():
        print(f"{part:<6} {figures} µs")
    if options.json:
        options.json.write_text(json.dumps({**facts, "microseconds": result}, indent=1) + "\n")


def _microseconds(clock: SystemClock, work: Callable[[], object], repeats: int = 500) -> list[float]:
    times: list[float] = []
    for _ in range(repeats):
        begun_s = clock.monotonic_s()
        work()
        times.append(1e6 * (clock.monotonic_s() - begun_s))
    return times


def spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    shares = {"median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: round(ordered[int(share * (len(ordered) - 1))], 1) for name, share in shares.items()}


if __name__ == "__main__":
    main()
