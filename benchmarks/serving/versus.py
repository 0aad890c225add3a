"""We and the peers under the same loads, in turn on one machine, each alone while it runs.

    python -m benchmarks.serving.versus [--peers DIR] [--servers manylora,vLLM] [--rounds 2] [--seconds 20]
        [--json FILE]

Base loads run with LoRA support off, adapter loads on a server with 32 adapters of ranks 4, 8, 16 and 64 in equal parts
on q, k, v, o. A round starts every server anew; the order turns from round to round. The ratios are of medians over
rounds, with the least and the most of any pair of rounds beside them. Random tokens soon repeat under greedy decoding,
which flatters guessing ahead: `manylora plain` is ours without it, for one stream, where alone it matters. A server
whose 32 streams have not all had an answer after --patience seconds is stopped there, and what had arrived counts.
"""

import argparse
import asyncio
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.serving.servers import installed_peers
from manylora.bench.load import Figures, drawn, run_load
from manylora.bench.machine import describe
from manylora.bench.random_adapters import write_adapters
from manylora.bench.servers import Manylora, Server, default_base, serving
from manylora.bench.statistics import extremes, median
from manylora.bench.workloads import MIXED_RANKS, WORKLOADS
from manylora.config.folders import cache_dir
from manylora.models.spec import ModelSpec, read_spec

ADAPTERS = 32
PLAIN = "manylora plain"


@dataclass(frozen=True)
class Case:
    """One workload on some of the adapters; 0 is the base with LoRA off.

    windows   how many times --seconds it is counted: a server that reads all prompts together and then writes all
              answers together goes up and down, and only whole periods of that show its mean
    """

    workload: str
    adapters: int
    windows: float = 1.0

    @property
    def label(self) -> str:
        return f"{self.workload}, {'base' if self.adapters == 0 else f'{self.adapters} adapters'}"


SINGLE = Case("single", 0)
TRIAGE = Case("triage", 0)
LONG = Case("long", 0, 5.0)
CASES = (
    Case("chat", 0, 2.5),
    TRIAGE,
    LONG,
    SINGLE,
    Case("triage", 1),
    Case("triage", 8),
    Case("triage", 32),
    Case("chat", 32, 2.5),
)
Results = Mapping[str, Mapping[str, list[Figures]]]
"""By case and by server: one entry a round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=cache_dir() / "peers", help="where they are installed")
    parser.add_argument("--servers", default="", help="names, by comma; default: all that are there")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--once", default="", help="servers, by comma, that take part in the first round only")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--patience", type=float, default=120.0, help="seconds until all streams must have an answer")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    facts = describe()
    plain = Manylora("engine.guess_tokens=0", name=PLAIN)
    servers: list[Server] = [Manylora(), plain, *installed_peers(options.peers)]
    if options.servers:
        servers = [server for server in servers if server.name in options.servers.split(",")]
    print(f"{facts['processor']}: {', '.join(server.name for server in servers)}", flush=True)
    base = default_base()
    spec = read_spec(base)
    results: dict[str, dict[str, list[Figures]]] = defaultdict(lambda: defaultdict(list))
    starts: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "adapters"
        adapters = [root / name for name in write_adapters(root, spec, ADAPTERS, MIXED_RANKS, base.name)]
        for number in range(options.rounds):
            turn = number % len(servers)
            for server in servers[turn:] + servers[:turn]:
                if number > 0 and server.name in options.once.split(","):
                    continue
                for has_adapters in (False,) if server is plain else (False, True):
                    own = adapters if has_adapters else []
                    with serving(server, Path(scratch) / "log", base=base, adapters=own) as running:
                        starts[server.name].append(running.first_token_s)
                        for case in (SINGLE,) if server is plain else CASES:
                            if (case.adapters > 0) == has_adapters:
                                figures = measure(server, running.url, case, base, adapters, spec, options)
                                results[case.label][server.name].append(figures)
                                print(
                                    f"round {number + 1}  {server.name:<15}{case.label:<22}{line(figures)}", flush=True
                                )
    summary = {label: {name: summarise(rounds) for name, rounds in sides.items()} for label, sides in results.items()}
    reached = ratios(results)
    print_table(summary)
    for name, value in reached.items():
        print(f"{name:<58}{value}")
    if options.json:
        record = {
            **facts,
            "seconds": options.seconds,
            "cases": summary,
            "ratios": reached,
            "start_to_first_token_s": {name: [round(s, 1) for s in values] for name, values in starts.items()},
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def measure(
    server: Server, url: str, case: Case, base: Path, adapters: list[Path], spec: ModelSpec, options: argparse.Namespace
) -> Figures:
    targets = [server.adapter_fields(adapters, index) for index in range(case.adapters)] or [server.base_fields(base)]
    workload = WORKLOADS[case.workload]
    seconds = case.windows * options.seconds
    return asyncio.run(run_load(url, workload, drawn(targets), spec.vocab, seconds, options.patience))


def line(figures: Figures) -> str:
    return (
        f"{figures.requests_per_s:7.2f} req/s {figures.output_tokens_per_s:8.1f} tok/s   first token "
        f"{figures.first_token_median_ms:8.0f} ms   per token {figures.token_time_median_ms:6.1f} ms   "
        f"errors {figures.errors}"
    )


def summarise(rounds: list[Figures]) -> dict[str, dict[str, float]]:
    """Least, median and most of each figure over the rounds."""
    return {
        name: extremes([asdict(figures)[name] for figures in rounds])
        for name, value in asdict(rounds[0]).items()
        if not isinstance(value, tuple)
    }


def ratios(results: Results) -> dict[str, dict[str, float]]:
    """S1, S2, S3 and L1 of the targets, as far as the servers measured allow."""
    found: dict[str, dict[str, float]] = {}
    for case in (case for case in CASES if case.adapters == 0 and case not in (SINGLE, LONG)):
        for peer in _peers(results, case):
            found[f"S1 {case.label}: throughput ÷ {peer}'s"] = _ratio(results, case, peer, "output_tokens_per_s")
    for ours in (PLAIN, Manylora.name):
        for peer in _peers(results, SINGLE):
            key = f"S2 {SINGLE.label}: {ours}'s time per token ÷ {peer}'s"
            found[key] = _ratio(results, SINGLE, peer, "token_time_median_ms", ours)
    for case in CASES:
        if case.adapters:
            for peer in _peers(results, case):
                found[f"S3 {case.label}: throughput ÷ {peer}'s"] = _ratio(results, case, peer, "output_tokens_per_s")
    if all(results.get(case.label, {}).get(Manylora.name) for case in (LONG, TRIAGE)):
        long, triage = (_prompt_rates(results, case, Manylora.name) for case in (LONG, TRIAGE))
        found[f"L1 {LONG.label}: prompt tokens/s ÷ {TRIAGE.workload}'s"] = _quotient(long, triage)
    for peer in _peers(results, LONG):
        sides = (_prompt_rates(results, LONG, name) for name in (Manylora.name, peer))
        found[f"L1 {LONG.label}: prompt tokens/s ÷ {peer}'s"] = _quotient(*sides)
    return found


def _prompt_rates(results: Results, case: Case, name: str) -> list[float]:
    """Return tokens of prompt a second of each round, told by the replies' tokens, which are finer than requests."""
    work = WORKLOADS[case.workload]
    return [figures.output_tokens_per_s / work.output * work.prompt for figures in results[case.label][name]]


def _peers(results: Results, case: Case) -> Iterator[str]:
    sides = results.get(case.label, {})
    return (name for name in sides if name not in (Manylora.name, PLAIN) and Manylora.name in sides)


def _ratio(results: Results, case: Case, peer: str, figure: str, own: str = Manylora.name) -> dict[str, float]:
    return _quotient(*([asdict(figures)[figure] for figures in results[case.label][name]] for name in (own, peer)))


def _quotient(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Return the ratio of the medians, and the least and the most of any pair of rounds."""
    if min(theirs) <= 0 or not ours:
        return {"median": float("inf")}
    return {
        "min": round(min(ours) / max(theirs), 2),
        "median": round(median(ours) / median(theirs), 2),
        "max": round(max(ours) / min(theirs), 2),
    }


def print_table(summary: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> None:
    print(f"\n{'':<22}{'':<16}{'req/s':>8}{'tok/s':>9}{'first token ms':>16}{'ms/token':>9}")
    for label, sides in summary.items():
        for name, figures in sides.items():
            print(
                f"{label:<22}{name:<16}{figures['requests_per_s']['median']:>8.2f}"
                f"{figures['output_tokens_per_s']['median']:>9.1f}{figures['first_token_median_ms']['median']:>16.0f}"
                f"{figures['token_time_median_ms']['median']:>9.1f}"
            )


if __name__ == "__main__":
    main()
