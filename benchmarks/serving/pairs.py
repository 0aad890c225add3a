"""Two forms of our server side by side, in turn A B B A, with the processor seconds of a token beside the speed.

    python -m benchmarks.serving.pairs QUESTION [--workload chat] [--pairs 10] [--seconds 6] [--against DIR]
        [--json FILE]

bypass:  A has 32 adapters, all used once and resident; B has none. Both serve the base alone.
int8:    A holds the base in int8, B in bf16.
threads: A computes on one thread, B on as many as there are processors.
spin:    A's threads sleep as soon as they have no work, B's wait awake for a while.
pinned:  A's edge stays on the last processor, B's goes where the system puts it; the engine is free in both.
metering: A records usage, as it always does; B is the same server with the meter and the journal taken out.
handle, direct: A is one engine and one edge on a Ray cluster of this machine, in that `ray.mode`; B is one server (H5).
version: A is this checkout, B the checkout of another version in `--against`; both import the same packages.
Both servers run all the time; the one that is not measured is idle. A ratio is A ÷ B of one pair; shown are its median
and the interval that holds the true median with 95 % (from the order statistics of the pairs).
"""

import argparse
import asyncio
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import IMPORT_PATH
from manylora.bench.load import drawn, models, run_load
from manylora.bench.machine import describe
from manylora.bench.random_adapters import write_adapters
from manylora.bench.servers import Manylora, Running, default_base, serving
from manylora.bench.statistics import median, median_with_interval
from manylora.bench.workloads import MIXED_RANKS, WORKLOADS
from manylora.config.groups.model import DEFAULT_SPIN_US
from manylora.models.spec import ModelSpec, read_spec

ADAPTERS = 32
WARM_SECONDS = 3.0
QUESTIONS = ("bypass", "int8", "threads", "spin", "pinned", "metering", "handle", "direct", "version")
SHARED_MEMORY = f"engine.memory_bytes={4 << 30}"
RAY_CPUS = "ray.engine_cpus=0.5"
"""Ray's count of processors bounds no process; an engine computes on all of them, as the lone server does."""


class Unmetered(Manylora):
    """Our server without its meter."""

    def command(self, port: int, base: Path, adapters: Sequence[Path]) -> list[str]:
        command = super().command(port, base, adapters)
        return [*command[:2], "benchmarks.serving.without_metering", *command[3:]]

    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), "PYTHONPATH": IMPORT_PATH}


class OnRay(Manylora):
    """Our server as one engine and one edge of a Ray cluster of this machine."""

    def command(self, port: int, base: Path, adapters: Sequence[Path]) -> list[str]:
        command = super().command(port, base, adapters)
        served = command.index("--port")
        named = ["--set", f"server.port={port}", "--set", f"model.base={base}"]
        return [*command[: served - 1], "cluster", "serve", "--local", *named, *command[served + 4 :]]


class OtherVersion(Manylora):
    """Our server as another checkout has it."""

    def __init__(self, checkout: Path, *settings: str) -> None:
        """Create the server. `checkout` is the top folder of the other version."""
        super().__init__(*settings)
        self._source = checkout.resolve() / "src"

    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), "PYTHONPATH": str(self._source)}


@dataclass(frozen=True)
class Side:
    """One run of one server."""

    tokens_per_s: float
    processor_ms_per_token: float
    errors: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("--workload", choices=WORKLOADS, default="chat")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--against", type=Path, help="a checkout of another version, for the question `version`")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    if (options.question == "version") != (options.against is not None):
        parser.error("the question `version` and the option --against need each other")
    facts = describe()
    base = default_base()
    spec = read_spec(base)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as servers:
        root, empty = Path(scratch) / "adapters", Path(scratch) / "none"
        empty.mkdir()
        names = write_adapters(root, spec, ADAPTERS if options.question == "bypass" else 0, MIXED_RANKS, base.name)
        settings = {
            "bypass": (f"adapters.roots={root}", f"adapters.roots={empty}"),
            "int8": ("model.quantize=int8", "model.quantize=none"),
            "threads": ("model.threads=1", "model.threads=0"),
            "spin": ("model.spin_us=0", f"model.spin_us={DEFAULT_SPIN_US}"),
            "pinned": ("model.threads=0", "model.threads=0"),
            "metering": ("model.threads=0", "model.threads=0"),
            "handle": ("ray.mode=handle", "model.threads=0"),
            "direct": ("ray.mode=direct", "model.threads=0"),
            "version": ("model.threads=0", "model.threads=0"),
        }[options.question]
        is_fleet = options.question in ("handle", "direct")
        shared = (SHARED_MEMORY, RAY_CPUS) if is_fleet else ()
        kinds = {"A": OnRay if is_fleet else Manylora, "B": _server_b(options.question, options.against)}
        running = {
            side: servers.enter_context(
                serving(kinds[side](setting, *shared), Path(scratch) / f"log-{side}", base=base)
            )
            for side, setting in zip("AB", settings, strict=True)
        }
        if options.question == "pinned":
            os.sched_setaffinity(running["A"].process.pid, {max(os.sched_getaffinity(0))})
        if names:
            asyncio.run(run_load(running["A"].url, WORKLOADS["triage"], iter(2 * models(names)), spec.vocab, 1.0))
        found: dict[str, list[Side]] = {"A": [], "B": []}
        for side in "AB":
            measure(running[side], options.workload, spec, WARM_SECONDS)
        for number in range(options.pairs):
            for side in "AB" if number % 2 == 0 else "BA":
                found[side].append(measure(running[side], options.workload, spec, options.seconds))
            print(f"pair {number + 1:2d}   A {found['A'][-1]}   B {found['B'][-1]}", flush=True)
    result = {
        name: median_with_interval([getattr(a, f) / getattr(b, f) for a, b in zip(found["A"], found["B"], strict=True)])
        for name, f in (("throughput", "tokens_per_s"), ("processor seconds per token", "processor_ms_per_token"))
    }
    errors = sum(side.errors for sides in found.values() for side in sides)
    for name, value in result.items():
        print(f"{name} A ÷ B: {value}")
    print(f"errors: {errors}")
    if options.json:
        medians = {
            side: {
                "tokens_per_s": median([one.tokens_per_s for one in sides]),
                "processor_ms_per_token": median([one.processor_ms_per_token for one in sides]),
            }
            for side, sides in found.items()
        }
        record = {**facts, "question": options.question, "workload": options.workload, "seconds": options.seconds}
        record |= {"pairs": options.pairs, "a_over_b": result, "medians": medians, "errors": errors}
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _server_b(question: str, against: Path | None) -> Callable[[str], Manylora]:
    if against is not None:
        return partial(OtherVersion, against)
    return Unmetered if question == "metering" else Manylora


def measure(server: Running, workload: str, spec: ModelSpec, seconds: float) -> Side:
    """Tokens a second once the streams are warm; processor seconds over the whole run, its tokens counted alike."""
    before_s = server.processor_s()
    figures = asyncio.run(run_load(server.url, WORKLOADS[workload], drawn(models([""])), spec.vocab, seconds))
    used_s = server.processor_s() - before_s
    return Side(
        figures.output_tokens_per_s, round(1e3 * used_s / max(1.0, figures.all_output_tokens), 3), figures.errors
    )


if __name__ == "__main__":
    main()
