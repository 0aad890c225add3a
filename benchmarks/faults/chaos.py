"""M1: the counts of engine, edge, ledger and clients, after kills of edge, engine and control plane under load.

python -m benchmarks.faults.chaos --kills 100 [--transport process|thread] [--json FILE]
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from manylora.bench.faults.chaos import TARGETS, run_chaos
from manylora.bench.machine import describe
from manylora.bench.servers import default_base
from manylora.models.spec import read_spec


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--transport", choices=list(TARGETS), default="process", help="between edge and engine")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    facts = describe()
    base = default_base()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        vocab = read_spec(base).vocab
        found = run_chaos(
            Path(scratch),
            str(base),
            kills=options.kills,
            seed=options.seed,
            vocab=vocab,
            transport=options.transport,
            report=_report,
        )
    result = {"transport": options.transport, "M1": found.difference, "law_holds": found.holds, **asdict(found)}
    print(json.dumps(result))
    if options.json:
        options.json.write_text(json.dumps({**facts, **result}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
