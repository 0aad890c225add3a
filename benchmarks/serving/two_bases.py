"""One server of two bases, one loaded and one idle, against a server of the loaded base alone, in turn A B B A.

    python -m benchmarks.serving.two_bases [--workload chat] [--pairs 10] [--seconds 6] [--json FILE]

A serves the default base and, beside it, a copy of it under another name, without any request for the copy.
B serves the default base alone. Both servers run all the time; the one that is not measured is idle. A ratio is A ÷ B
of one pair; shown are its median and the interval that holds the true median with 95 %.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.serving.pairs import WARM_SECONDS, Side, measure
from manylora.bench.machine import describe
from manylora.bench.servers import Manylora, default_base, serving
from manylora.bench.statistics import median, median_with_interval
from manylora.bench.workloads import WORKLOADS
from manylora.models.spec import read_spec

LEAST_RATIO = 0.97
"""The share of the throughput of one base alone that the loaded base keeps beside an idle one."""


class WithAnotherBase(Manylora):
    """Our server with a second base."""

    def __init__(self, other: Path, *settings: str) -> None:
        super().__init__(*settings)
        self._other = other

    def command(self, port: int, base: Path, adapters: Sequence[Path]) -> list[str]:
        return [*super().command(port, base, adapters), "--base", str(self._other)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, default="chat")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    facts, base = describe(), default_base()
    spec = read_spec(base)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as servers:
        empty, other = Path(scratch) / "none", Path(scratch) / "other"
        empty.mkdir()
        shutil.copytree(base, other)  # the same work under another name, in memory of its own
        setting = f"adapters.roots={empty}"
        kinds = {"A": WithAnotherBase(other, setting), "B": Manylora(setting)}
        running = {
            side: servers.enter_context(serving(kind, Path(scratch) / f"log-{side}", base=base))
            for side, kind in kinds.items()
        }
        for server in running.values():
            measure(server, options.workload, spec, WARM_SECONDS)
        found: dict[str, list[Side]] = {"A": [], "B": []}
        for number in range(options.pairs):
            for side in "AB" if number % 2 == 0 else "BA":
                found[side].append(measure(running[side], options.workload, spec, options.seconds))
            print(f"pair {number + 1:2d}   A {found['A'][-1]}   B {found['B'][-1]}", flush=True)
    pairs = list(zip(found["A"], found["B"], strict=True))
    ratios = {
        "throughput": median_with_interval([a.tokens_per_s / b.tokens_per_s for a, b in pairs]),
        "processor seconds per token": median_with_interval(
            [a.processor_ms_per_token / b.processor_ms_per_token for a, b in pairs]
        ),
    }
    errors = sum(side.errors for sides in found.values() for side in sides)
    for name, value in ratios.items():
        print(f"{name} A ÷ B: {value}")
    print(f"errors: {errors}; the target is a throughput of {LEAST_RATIO}")
    if options.json:
        medians = {side: median([one.tokens_per_s for one in sides]) for side, sides in found.items()}
        record = {**facts, "workload": options.workload, "seconds": options.seconds, "pairs": options.pairs}
        record |= {"a_over_b": ratios, "tokens_per_s": medians, "target": LEAST_RATIO, "errors": errors}
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
