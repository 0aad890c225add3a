"""What adapters cost: one load on the base, on one adapter and on many, in turn on one server.

    python -m benchmarks.serving.lora_tax [--workload chat] [--adapters 32] [--mixed] [--rounds 5]
        [--seconds 15] [--json FILE]

Starts `manylora serve` with random adapters on q, k, v, o (rank 16, or 4, 8, 16 and 64 in equal parts with --mixed).
Each round runs the three loads one after the other, in an order that turns from round to round; the ratios are taken
within a round, so that a busy machine disturbs both sides.
"""

import argparse
import asyncio
import json
import tempfile
from pathlib import Path

from manylora.bench.load import Figures, drawn, models, run_load
from manylora.bench.machine import describe
from manylora.bench.random_adapters import write_adapters
from manylora.bench.servers import Manylora, serving
from manylora.bench.workloads import MIXED_RANKS, WORKLOADS
from manylora.config.folders import cache_dir
from manylora.config.groups.model import DEFAULT_BASE
from manylora.models.fetch.catalog import resolve
from manylora.models.spec import read_spec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, default="chat")
    parser.add_argument("--adapters", type=int, default=32)
    parser.add_argument("--mixed", action="store_true", help="ranks 4, 8, 16 and 64 in equal parts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    facts = describe()
    base_dir = resolve(DEFAULT_BASE, cache_dir())
    spec = read_spec(base_dir)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "adapters"
        ranks = MIXED_RANKS if options.mixed else (16,)
        names = write_adapters(root, spec, options.adapters, ranks, base_dir.name)
        sides = {"base": [""], "1 adapter": [names[2 % len(names)]], f"{len(names)} adapters": names}
        adapters = [root / name for name in names]
        rounds: list[dict[str, Figures]] = []
        with serving(Manylora(), Path(scratch) / "log", base=base_dir, adapters=adapters) as running:
            for number in range(options.rounds):
                found: dict[str, Figures] = {}
                order = list(sides)
                for side in order[number % 3 :] + order[: number % 3]:
                    targets = drawn(models(sides[side]))
                    found[side] = asyncio.run(
                        run_load(running.url, WORKLOADS[options.workload], targets, spec.vocab, options.seconds)
                    )
                    print(f"round {number + 1}  {side:<12} {found[side].output_tokens_per_s:8.1f} tokens/s", flush=True)
                rounds.append(found)
    summary = {side: _ratios([found[side] for found in rounds], [found["base"] for found in rounds]) for side in sides}
    for side, figures in summary.items():
        print(f"{side:<12} {figures}")
    if options.json:
        record = {**facts, "workload": options.workload, "ranks": list(ranks), "results": summary}
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _ratios(side: list[Figures], base: list[Figures]) -> dict[str, float | int]:
    """Throughput, and its ratio to the base in the same round: least, median, most."""
    ratios = sorted(a.output_tokens_per_s / b.output_tokens_per_s for a, b in zip(side, base, strict=True))
    rates = sorted(figures.output_tokens_per_s for figures in side)
    return {
        "tokens_per_s_median": rates[len(rates) // 2],
        "ratio_min": round(ratios[0], 3),
        "ratio_median": round(ratios[len(ratios) // 2], 3),
        "ratio_max": round(ratios[-1], 3),
        "errors": sum(figures.errors for figures in side),
    }


if __name__ == "__main__":
    main()
