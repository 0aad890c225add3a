"""Many more adapters than the bank holds: what a catalogue costs beside a few adapters that always fit.

    python -m benchmarks.serving.catalogue [--catalogue 1000] [--room 64] [--zipf 0] [--rounds 3]
        [--seconds 20] [--json FILE]

One server with `--catalogue` adapters (rank 16 on q, k, v, o) and a bank for `--room` of them; prompts of 100 tokens,
10 generated, 32 streams. Loads on the whole catalogue, on 32 and on 5 of its adapters take turns. Nothing is preloaded:
an adapter's first request waits for its weights to be read, checked and packed, later ones find it on disk or in the
bank; --packed sends each adapter one short request before, so that all are on disk. Ratios are of one round, and their
median over the rounds is shown with the extremes.
"""

import argparse
import asyncio
import json
import tempfile
from pathlib import Path

from manylora.bench.load import Figures, drawn, models, run_each, run_load
from manylora.bench.machine import describe
from manylora.bench.random_adapters import ATTENTION, write_adapters
from manylora.bench.servers import Manylora, default_base, fresh_cache, serving
from manylora.bench.statistics import extremes
from manylora.bench.workloads import WORKLOADS, Workload
from manylora.models.spec import ModelSpec, read_spec

RANK = 16
SMALL = (32, 5)
ONE_TOKEN = Workload(4, 1, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalogue", type=int, default=1000)
    parser.add_argument("--room", type=int, default=64, help="adapters the bank holds")
    parser.add_argument("--zipf", type=float, default=0.0, help="0 draws from the catalogue uniformly")
    parser.add_argument("--packed", action="store_true", help="let every adapter be fetched and packed before")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    facts = describe()
    base = default_base()
    spec = read_spec(base)
    sizes = (options.catalogue, *SMALL)
    rounds: list[dict[int, Figures]] = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "adapters"
        names = write_adapters(root, spec, options.catalogue, (RANK,), base.name)
        print(f"{len(names)} adapters written", flush=True)
        server = Manylora(
            f"adapters.roots={root}",
            f"adapters.bank_bytes={options.room * image_bytes(spec)}",
            f"adapters.host_bytes={options.room * image_bytes(spec)}",
            f"model.cache_dir={fresh_cache(Path(scratch))}",
        )
        with serving(server, Path(scratch) / "log", base=base) as running:
            # The small sets lie at the end of the catalogue, so that a Zipf load does not favour them.
            chosen = {size: models(names[-size:]) for size in sizes}
            if options.packed:
                asyncio.run(run_each(running.url, ONE_TOKEN, models(names), spec.vocab))
            for number in range(options.rounds):
                found: dict[int, Figures] = {}
                turn = number % len(sizes)
                for size in sizes[turn:] + sizes[:turn]:
                    targets = drawn(chosen[size], zipf=options.zipf if size == options.catalogue else 0.0, seed=number)
                    found[size] = asyncio.run(
                        run_load(running.url, WORKLOADS["triage"], targets, spec.vocab, options.seconds)
                    )
                    print(
                        f"round {number + 1}  {size:5d} adapters  {found[size].output_tokens_per_s:7.1f} tokens/s  "
                        f"first token mean {found[size].first_token_mean_ms:7.0f} ms, "
                        f"p99 {found[size].first_token_p99_ms:7.0f} ms",
                        flush=True,
                    )
                rounds.append(found)
    large = options.catalogue
    result = {
        f"throughput of {large} ÷ {size}": extremes(
            [r[large].output_tokens_per_s / r[size].output_tokens_per_s for r in rounds]
        )
        for size in SMALL
    }
    result[f"mean first token of {large} ÷ {SMALL[1]}"] = extremes(
        [r[large].first_token_mean_ms / r[SMALL[1]].first_token_mean_ms for r in rounds]
    )
    result[f"first token p99 of {large} ÷ {SMALL[1]}"] = extremes(
        [r[large].first_token_p99_ms / r[SMALL[1]].first_token_p99_ms for r in rounds]
    )
    for name, value in result.items():
        print(f"{name:<40}{value}")
    errors = sum(figures.errors for found in rounds for figures in found.values())
    if options.json:
        record = {
            **facts,
            "catalogue": large,
            "room": options.room,
            "packed": options.packed,
            "zipf": options.zipf,
            **result,
            "errors": errors,
        }
        record["tokens_per_s"] = {
            size: extremes([found[size].output_tokens_per_s for found in rounds]) for size in sizes
        }
        record["first_token_p99_ms"] = {
            size: extremes([found[size].first_token_p99_ms for found in rounds]) for size in sizes
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def image_bytes(spec: ModelSpec) -> int:
    """Bytes of one adapter on the device: bf16 A and B of every projection it has, and a little for its table."""
    widths = sum(sum(projection.shape(spec)) for projection in ATTENTION)
    return 2 * RANK * widths * spec.num_layers + (16 << 10)


if __name__ == "__main__":
    main()
