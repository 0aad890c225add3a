"""How long our server takes to start, and how much memory it holds under load.

    python -m benchmarks.serving.footprint [--starts 5] [--adapters 64] [--seconds 15] [--json FILE]

Start: from the start of the process to the answer of a request for one token, weights in the system's file cache,
kernels compiled before. Memory: the sum of `Pss` over all its processes, sampled while 32 streams of chat draw on
adapters of rank 16, every one of which has been used; the most of the samples counts.
"""

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from threading import Event, Thread

from manylora.bench.load import drawn, models, run_load
from manylora.bench.machine import describe
from manylora.bench.random_adapters import write_adapters
from manylora.bench.servers import Manylora, Running, default_base, serving
from manylora.bench.workloads import WORKLOADS
from manylora.models.spec import read_spec

SAMPLE_S = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--adapters", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    facts = describe()
    base = default_base()
    spec = read_spec(base)
    with tempfile.TemporaryDirectory() as scratch:
        root, log = Path(scratch) / "adapters", Path(scratch) / "log"
        names = write_adapters(root, spec, options.adapters, (16,), base.name)
        starts: list[float] = []
        for _ in range(options.starts):
            with serving(Manylora(), log, base=base) as running:
                starts.append(round(running.first_token_s, 2))
        print(f"start to first token, seconds: {sorted(starts)}", flush=True)
        with serving(Manylora(), log, base=base, adapters=[root / name for name in names]) as running:
            after_start = running.memory_bytes()
            everyone = iter([*models(names), *models(names)])
            asyncio.run(run_load(running.url, WORKLOADS["triage"], everyone, spec.vocab, options.seconds / 3))
            peak = peak_under_load(running, models(names), spec.vocab, options.seconds)
    print(f"memory: {after_start / 1e9:.2f} GB after the start, {peak / 1e9:.2f} GB under load, {len(names)} adapters")
    if options.json:
        record = {
            **facts,
            "start_to_first_token_s": sorted(starts),
            "adapters": len(names),
            "memory_after_start_bytes": after_start,
            "memory_under_load_bytes": peak,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def peak_under_load(running: Running, targets: list, vocab: int, seconds: float) -> int:  # type: ignore[type-arg]
    samples: list[int] = []
    is_over = Event()

    def sample() -> None:
        while not is_over.is_set():
            samples.append(running.memory_bytes())
            time.sleep(SAMPLE_S)

    watcher = Thread(target=sample)
    watcher.start()
    try:
        asyncio.run(run_load(running.url, WORKLOADS["chat"], drawn(targets), vocab, seconds))
    finally:
        is_over.set()
        watcher.join()
    return max(samples)


if __name__ == "__main__":
    main()
