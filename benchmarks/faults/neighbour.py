"""A decode step of 32 rows beside another process that keeps one processor busy ÷ the same step alone.

    python -m benchmarks.faults.neighbour [--rows 32] [--pairs 10] [--json FILE]

The neighbour spins, pinned on the last processor; a signal stops it for the steps alone, so that both sides take turns,
A B B A, in one engine. A pair is one block of decode steps of each side (prompts of 128 random tokens, greedy, no
speculation). Shown is the ratio of the blocks' medians: its median over the pairs, and the interval that holds the true
median with 95 %. Where threads share out the work by whoever is free, the ratio is near n ÷ (n − ½) with n processors,
the neighbour's share of one; where each has a fixed part, the step takes as long as the part beside the neighbour.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from manylora.bench.machine import describe
from manylora.bench.servers import default_base
from manylora.bench.statistics import median, median_with_interval
from manylora.bench.steps import decode_steps
from manylora.clock import SystemClock
from manylora.config.settings import load_config
from manylora.engine.engine import Engine
from manylora.models.spec import read_spec
from manylora.wiring.engine import build_engine

SPIN = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); print(flush=True)\nwhile True: pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    facts, base = describe(), default_base()
    vocab = read_spec(base).vocab
    config = load_config(flags={"model.base": str(base), "engine.prefix_cache": False}, environ={})
    engine = build_engine(config, lambda line: None)[0]
    processors = sorted(os.sched_getaffinity(0))
    found: dict[str, list[float]] = {"beside": [], "alone": []}
    block(engine, options.rows, vocab)  # the first one is slower
    with spinning(processors[-1]) as neighbour:
        for number in range(options.pairs):
            for side in ("beside", "alone") if number % 2 == 0 else ("alone", "beside"):
                neighbour.send_signal(signal.SIGCONT if side == "beside" else signal.SIGSTOP)
                found[side].append(block(engine, options.rows, vocab))
            told = f"beside {found['beside'][-1]:.2f} ms, alone {found['alone'][-1]:.2f} ms"
            print(f"pair {number + 1:2d}: {told}", flush=True)
    engine.close()
    ratio = median_with_interval([a / b for a, b in zip(found["beside"], found["alone"], strict=True)])
    step_ms = {side: round(median(times), 3) for side, times in found.items()}
    print(f"step beside ÷ alone: {ratio}")
    if options.json:
        record = {**facts, "rows": options.rows, "pairs": options.pairs, "processors": len(processors)}
        record |= {"step_ms": step_ms, "beside_over_alone": ratio}
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


@contextmanager
def spinning(processor: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a process that keeps one processor busy; it spins when the context begins, and is gone after it."""
    process = subprocess.Popen([sys.executable, "-c", SPIN, str(processor)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        process.stdout.readline()  # it is pinned
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def block(engine: Engine, rows: int, vocab: int) -> float:
    """Return the median of a block of decode steps, in milliseconds."""
    return 1e3 * median([step.seconds for step in decode_steps(engine, rows, [], vocab, clock=SystemClock())])


if __name__ == "__main__":
    main()
