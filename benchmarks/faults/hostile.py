"""Hostile input: figures R1 to R3, which count failures and not speed.

    python -m benchmarks.faults.hostile --figure R1 [--count 100000] [--series 0] [--json FILE]

R1  mutated adapter files at ingest, of all kinds in `bench/faults/mutations.py`: each ends as an image that can be read
    back and holds finite numbers only, or as one of our refusals; no crash, nothing met by the catch-all, nothing left
    behind. Timed is the whole job on files in memory (fetch, check, pack, write), at most 50 ms each; a mutant over
    that is tried twice more and its fastest time counts, for the machine may have been busy.

R2  random names of adapters that do not exist, each answered "no such adapter": a million asked of an engine with its
    store in this process, and a fiftieth as many of a server over HTTP. Growth is that of the resident memory from the
    first tenth of the names to the last, in MiB; the metrics must have as many series after as before.

R3  operations on the names of adapters (load, swap the content, create, delete, rename; an operator's evict, erase and
    preload), a quarter of them while requests are under way: every reply must be that of the content the name had, by
    an oracle that made each content's tokens alone. Several names share a content, two tenants share the names, the
    prefix cache is on.

A failure says the number of its mutant: `--first NUMBER --count 1` makes it again. The last line is one JSON object.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from manylora.bench.faults.fuzz import LIMIT_MS, Fuzzer
from manylora.bench.faults.mutations import KINDS
from manylora.bench.faults.swaps import Swapper
from manylora.bench.faults.unknown_names import SAMPLES, ask_engine, ask_server
from manylora.bench.machine import describe

MEMORY = Path("/dev/shm")
"""Files here cost no disk's time."""
MOST_SHOWN = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", choices=FIGURES, required=True)
    parser.add_argument("--count", type=int, help="how many; default: as many as the target asks for")
    parser.add_argument("--series", type=int, default=0, help="another series is other random cases")
    parser.add_argument("--first", type=int, default=0, help="the number to begin with")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    facts = describe()
    run, count = FIGURES[options.figure]
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as scratch:
        found = run(Path(scratch), options.series, options.first, options.count or count)
    record = {options.figure: found.pop("count"), **{key: value for key, value in found.items() if key != "outcomes"}}
    if options.json:
        options.json.write_text(json.dumps({**facts, **record, **found}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record))


def mutated_files(scratch: Path, series: int, first: int, count: int) -> dict[str, object]:
    """See R1 at the top."""
    with closing(Fuzzer(scratch)) as fuzzer:
        found = fuzzer.run(series, iter(range(first, first + count)))
    for kind, outcomes in found.outcomes.items():
        print(f"{kind:20} " + ", ".join(f"{name} {number}" for name, number in outcomes.most_common()))
    for failure in found.failures[:MOST_SHOWN]:
        print(failure)
    print(f"slowest: {found.slowest}")
    times = sorted(found.times_ms)
    return {
        "count": count,
        "kinds": len(KINDS),
        "failures": len(found.failures),
        "limit_ms": LIMIT_MS,
        "max_ms": round(times[-1], 2),
        "spread": {name: round(times[int(part * (len(times) - 1))], 3) for name, part in PARTS.items()},
        "tried_again": found.tried_again,
        "outcomes": {kind: dict(outcomes) for kind, outcomes in found.outcomes.items()},
    }


def unknown_names(scratch: Path, series: int, first: int, count: int) -> dict[str, object]:
    """See R2 at the top."""
    for folder in ("engine", "server"):
        (scratch / folder).mkdir()
    engine = ask_engine(scratch / "engine", count, series)
    print(f"engine: {engine}", flush=True)
    server = ask_server(scratch / "server", max(SAMPLES, count // 50), series)
    print(f"server: {server}", flush=True)
    grown = {"engine": engine, "server": server.grown}
    return {
        "count": engine.asked,
        "wrong": engine.wrong + server.grown.wrong,
        "growth_mib": round(engine.growth_mib, 2),
        "slope_mib_per_100k": round(engine.slope_mib, 3),
        "server_count": server.grown.asked,
        "server_growth_mib": round(server.grown.growth_mib, 2),
        "new_series": server.series_after - server.series_before,
        "spread": {name: [round(mib, 2) for mib in found.memory_mib] for name, found in grown.items()},
    }


def swapped_contents(scratch: Path, series: int, first: int, count: int) -> dict[str, object]:
    """See R3 at the top."""
    with closing(Swapper(scratch, series)) as swapper:
        found = swapper.run(count)
    for mismatch in found.mismatches[:MOST_SHOWN]:
        print(mismatch)
    return {
        "count": count,
        "mismatches": len(found.mismatches),
        "loads": found.loads,
        "evictions": found.evictions,
        "cached_tokens": found.cached_tokens,
        "replies": dict(found.replies),
        "operations": dict(found.operations),
    }


PARTS = {"median_ms": 0.5, "p99_ms": 0.99, "p99_9_ms": 0.999}
FIGURES: dict[str, tuple[Callable[[Path, int, int, int], dict[str, object]], int]] = {
    "R1": (mutated_files, 100_000),
    "R2": (unknown_names, 1_000_000),
    "R3": (swapped_contents, 10_000),
}

if __name__ == "__main__":
    main()
