"""Put one of the project's workloads on any server that speaks OpenAI's streamed `/v1/completions`.

    python -m benchmarks.serving.load --url http://127.0.0.1:8080 --workload chat [--models a,b]
        [--seconds 20] [--json FILE]

`manylora/bench/load.py` says what is sent and what is counted.
"""

import argparse
import asyncio
import json
from dataclasses import asdict
from pathlib import Path

from manylora.bench.load import drawn, models, run_load
from manylora.bench.machine import describe
from manylora.bench.workloads import WORKLOADS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--workload", choices=WORKLOADS, default="chat")
    parser.add_argument("--models", default="", help="names, by comma, drawn uniformly; empty: the base")
    parser.add_argument("--vocab", type=int, default=49152, help="token ids are drawn below this")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    facts = describe()
    targets = drawn(models(options.models.split(",")))
    figures = asyncio.run(run_load(options.url, WORKLOADS[options.workload], targets, options.vocab, options.seconds))
    for name, value in asdict(figures).items():
        print(f"{name:<24}{value}")
    if options.json:
        record = {**facts, "workload": options.workload, "models": options.models, **asdict(figures)}
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
