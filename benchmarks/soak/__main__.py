"""Memory, resources and counts after minutes of all kinds of traffic, with kills of the engine.

    python -m benchmarks.soak --minutes 30 [--kill-every 300] [--adapters 1000] [--streams 12] [--tiny]
        [--json FILE] [--plot FILE]

1,000 adapters by Zipf's law (exponent 1) and three tenants: streams of which some leave, uploads, switched aliases,
deletions, pins, reads, and visitors of the console who sign in and open each page. The exit code is 1 if anything is
left, grows or differs; each such thing is a line.
`--tiny` takes a random base of a few thousand weights in place of the default one; `--plot` needs matplotlib.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.soak.run import Plan, as_record, run_soak
from manylora.bench.faults.tiny_base import write_tiny_base
from manylora.bench.machine import describe
from manylora.bench.servers import default_base, fresh_cache

MIB = 1 << 20
KV_BYTES = 64 * MIB
"""KV cache of the default base. Its pages come as the prefix cache takes blocks: those of a default one, 360 MiB, come
over many minutes and look like a leak, and some hundred requests fill this one, of 2,912 positions."""
WINDOW = 2048
"""Positions of a sequence: a KV cache holds one whole window at least."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--kill-every", type=float, default=300.0, help="seconds between kills of the engine")
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--streams", type=int, default=12)
    parser.add_argument("--tiny", action="store_true", help="a random base of a few thousand weights")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--plot", type=Path, help="draw memory and descriptors over time here")
    options = parser.parse_args()
    facts = describe()
    seconds = 60 * options.minutes
    plan = Plan(
        seconds=seconds,
        warm_up_s=min(120.0, seconds / 5),
        kill_every_s=options.kill_every,
        adapters=options.adapters,
        streams=options.streams,
        sample_every_s=max(1.0, seconds / 360),
        seed=options.seed,
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        base = write_tiny_base(Path(scratch) / "tiny") if options.tiny else default_base()
        room = (1 if options.tiny else 64) * MIB  # for a part of the adapters
        settings = (
            f"adapters.bank_bytes={room}",
            f"adapters.host_bytes={room}",
            f"model.cache_dir={fresh_cache(Path(scratch))}",
            "model.threads=1",
            *(() if options.tiny else (f"engine.kv_bytes={KV_BYTES}", f"engine.max_model_len={WINDOW}")),
        )
        found = run_soak(Path(scratch), base, plan, settings=settings, report=_say)
    record = {**facts, **as_record(found)}
    for part, slope in found.slopes.items():
        middle, low, high = (3600 * each / MIB for each in (slope.per_s, slope.low_per_s, slope.high_per_s))
        _say(f"{part}: {middle:.2f} MiB an hour, 95 % {low:.2f} to {high:.2f}; noise {slope.noise / MIB:.2f} MiB")
    for fault in found.faults:
        print(fault)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        from benchmarks.soak.plot import draw

        draw(record, options.plot)
    return 1 if found.faults else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
