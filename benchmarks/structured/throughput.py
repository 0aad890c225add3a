"""G3: a workload with a schema in every row ÷ the same without, in turn on one server.

    python -m benchmarks.structured.throughput [--workload chat] [--rounds 5] [--seconds 12] [--json FILE]

Each of 32 schemas is compiled once. The order of the two loads changes from round to round; a ratio is taken within
a round.
"""

import argparse
import asyncio
import json
import tempfile
from pathlib import Path

from benchmarks.structured.schemas import form, long_schema
from manylora.bench.load import drawn, run_load
from manylora.bench.machine import describe
from manylora.bench.servers import Fields, Manylora, default_base, serving
from manylora.bench.statistics import median, median_with_interval
from manylora.bench.workloads import WORKLOADS
from manylora.models.spec import read_spec

SCHEMAS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, default="chat")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    facts, base = describe(), default_base()
    vocab = read_spec(base).vocab
    sides: dict[str, list[Fields]] = {
        "with": [{"model": "", **form(long_schema(number))} for number in range(SCHEMAS)],
        "without": [{"model": ""}],
    }
    rates: dict[str, list[float]] = {side: [] for side in sides}
    errors = 0
    with tempfile.TemporaryDirectory() as scratch, serving(Manylora(), Path(scratch) / "log", base=base) as running:
        for number in range(options.rounds):
            for side in sides if number % 2 else reversed(sides):
                load = run_load(running.url, WORKLOADS[options.workload], drawn(sides[side]), vocab, options.seconds)
                figures = asyncio.run(load)
                rates[side].append(figures.output_tokens_per_s)
                errors += figures.errors
            print("  ".join(f"{side} {values[-1]:7.1f} tokens/s" for side, values in rates.items()), flush=True)
    result = median_with_interval([a / b for a, b in zip(rates["with"], rates["without"], strict=True)])
    print(f"{options.workload}, with a schema in every row ÷ without: {result}, errors: {errors}")
    if options.json:
        medians = {side: median(values) for side, values in rates.items()}
        record = {**facts, "workload": options.workload, "rounds": options.rounds, "ratio": result}
        options.json.write_text(json.dumps({**record, "tokens_per_s": medians, "errors": errors}, indent=1) + "\n")


if __name__ == "__main__":
    main()
