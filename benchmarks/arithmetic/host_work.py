"""Host work of a decode step: the time outside kernels, for 1 and 32 rows, with and without adapters, of two versions.

    python -m benchmarks.arithmetic.host_work [--against DIR] [--rounds N] [--json FILE]

`--against` is a checkout of another version. Each version has a process of its own with the model loaded; they take
turns in short blocks, so that a busy machine disturbs both alike. Host work is the time of `Engine.step` less that of
the native kernels in it (`Engine.start_profile`). Workload: prompts of 16 random ids, greedy, end-of-sequence ignored,
no speculation; with adapters each of the rows has another one of ranks 4, 8, 16 and 64.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KINDS = ((1, False), (1, True), (32, False), (32, True))
STEPS = 60
PROMPT = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="base model: a name or a directory; default: the setting's own")
    parser.add_argument("--against", type=Path, help="a checkout of the version to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve, options.base)
        return

    from manylora.bench.machine import describe

    trees = {"now": ROOT, **({"against": options.against.resolve()} if options.against else {})}
    found: dict[tuple[str, int, bool], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers = {name: stack.enter_context(server(tree, options.base, Path(folder))) for name, tree in trees.items()}
        for number in range(options.rounds + 1):
            for rows, has_adapters in KINDS:
                names = sorted(servers, reverse=bool(number % 2))
                for name in names:
                    times = ask(servers[name], rows, has_adapters)
                    if number > 0:  # in the first round caches and adapters get warm
                        found[name, rows, has_adapters] += times
    results = [
        {"version": name, "rows": rows, "adapters": rows * has_adapters, **spread(times)}
        for (name, rows, has_adapters), times in sorted(found.items(), key=lambda item: (item[0][1:], item[0][0]))
    ]
    for result in results:
        print("  ".join(f"{key} {value}" for key, value in result.items()))
    if options.json:
        commits = {name: commit_of(tree) for name, tree in trees.items()}
        record = {**describe(), "commits": commits, "rounds": options.rounds, "results": results}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def spread(times: list[float]) -> dict[str, float]:
    """Milliseconds: the least, the deciles and the median."""
    ordered = sorted(1e3 * seconds for seconds in times)
    last = len(ordered) - 1
    places = {"min_ms": 0, "p10_ms": last // 10, "median_ms": last // 2, "p90_ms": 9 * last // 10}
    return {"steps": len(ordered), **{name: round(ordered[place], 3) for name, place in places.items()}}


def commit_of(tree: Path) -> str:
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def server(tree: Path, base: str | None, folder: Path) -> "Iterator[subprocess.Popen[str]]":
    """Start a process that measures the version in `tree`."""
    adapters = folder / str(len(list(folder.iterdir())))
    adapters.mkdir()
    command = [sys.executable, __file__, "--serve", str(adapters), *(("--base", base) if base else ())]
    environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def ask(process: "subprocess.Popen[str]", rows: int, has_adapters: bool) -> list[float]:
    """Return the host work of decode steps of one version, in seconds."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{rows} {int(has_adapters)}\n")
    process.stdin.flush()
    times: list[float] = json.loads(process.stdout.readline())
    return times


def serve(folder: Path, base: str | None) -> None:
    """Answer each line `rows has_adapters` with the host work of steps, in seconds, as a line of JSON.

    Only names that versions since 0.1 share are imported here.
    """
    import importlib

    from manylora.bench.random_adapters import write_adapters
    from manylora.bench.workloads import MIXED_RANKS
    from manylora.cli.settings import FACTORY, configuration
    from manylora.models.spec import read_spec

    flags: dict[str, Any] = {"model.base": base, "engine.prefix_cache": False}
    config = configuration(None, [f"adapters.roots={folder}", "adapters.load_timeout_s=600"], flags)
    module, _, factory = FACTORY.partition(":")
    engine, served = getattr(importlib.import_module(module), factory)(config, lambda line: None)
    spec = read_spec(Path(served.base_dir))
    names = write_adapters(folder, spec, max(rows for rows, _ in KINDS), MIXED_RANKS, Path(served.base_dir).name)
    profile = engine.start_profile()
    for line in sys.stdin:
        rows, has_adapters = map(int, line.split())
        times = host_work(engine, profile, spec.vocab, rows, names[:rows] if has_adapters else [])
        print(json.dumps(times), flush=True)


def host_work(engine: Any, profile: Any, vocab: int, rows: int, adapters: list[str]) -> list[float]:
    """Return the host work of steps in which each of `rows` sequences draws one token, in seconds."""
    import time

    for index in range(rows):
        engine.submit(request(index, vocab, rows, adapters[index] if adapters else None))
    times: list[float] = []
    while engine.has_work:
        running = engine.stats().running
        before = sum(profile.seconds().values())
        begun_s = time.perf_counter()
        events = engine.step()
        took_s = time.perf_counter() - begun_s
        if running == len(events.tokens) == rows and not events.finished:
            times.append(took_s - (sum(profile.seconds().values()) - before))
    return times[2:]


def request(index: int, vocab: int, rows: int, adapter: str | None) -> Any:
    from manylora.adapter_ref import AdapterRef, SourceName
    from manylora.engine.request import Request, SamplingParams, StopParams
    from manylora.ids import Flow, mint_request_id

    source = random.Random(index)
    return Request(
        id=mint_request_id(),
        flow=Flow("benchmark"),
        salt="",
        tokens=tuple(source.randrange(3, vocab) for _ in range(PROMPT)),
        adapter=None if adapter is None else AdapterRef(SourceName.LOCAL, adapter),
        sampling=SamplingParams(temperature=0.0),
        stop=StopParams(max_new_tokens=STEPS + rows, ignore_eos=True),
        speculation=False,
    )


if __name__ == "__main__":
    main()
