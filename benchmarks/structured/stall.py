"""G1: what running streams notice of schemas on their way to be compiled, beside the same requests without schemas.

    python -m benchmarks.structured.stall [--pairs 10] [--hostile] [--json FILE]

16 streams run on the base while 32 requests come at once, each with a schema never seen before, or none. The figure is
the longest ÷ the median gap between tokens of the running streams, over the same ratio without schemas, for each pair.
`--hostile`: the 32 requests have no schema on either side, and on one side as many come beside them whose schemas are
made to cost much; each of those is refused, or gets its reply.
"""

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.faults.stall import visit
from benchmarks.structured.schemas import form, hostile_form, long_schema
from manylora.bench.machine import describe
from manylora.bench.servers import Fields, Manylora, default_base, serving
from manylora.bench.statistics import median_with_interval
from manylora.models.spec import read_spec

REQUESTS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--hostile", action="store_true", help="schemas that are made to cost much")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    facts, base = describe(), default_base()
    vocab = read_spec(base).vocab
    ratios: list[float] = []
    with tempfile.TemporaryDirectory() as scratch, serving(Manylora(), Path(scratch) / "log", base=base) as running:
        visit(running.url, [_with_schema(-1)], vocab, [0.0])
        for pair in range(options.pairs):
            found: dict[bool, float] = {}
            for has_schema in (True, False) if pair % 2 else (False, True):
                first = pair * REQUESTS
                numbers = range(first, first + REQUESTS) if has_schema else ()
                plain: list[Fields] = [{"model": ""}] * REQUESTS
                beside: list[Fields] = []
                if options.hostile:
                    beside = [{"model": "", **hostile_form(number)} for number in numbers]
                elif has_schema:
                    plain = [_with_schema(number) for number in numbers]
                found[has_schema] = visit(running.url, plain, vocab, [0.0] * REQUESTS, beside=beside).ratio
            ratios.append(found[True] / found[False])
            print(
                f"pair {pair + 1:2d}  with {found[True]:.2f}  without {found[False]:.2f}  ÷ {ratios[-1]:.3f}",
                flush=True,
            )
    result = median_with_interval(ratios)
    print(f"longest ÷ median gap, with schemas ÷ without: {result}")
    if options.json:
        options.json.write_text(
            json.dumps({**facts, "hostile": options.hostile, "pairs": options.pairs, "ratio": result}, indent=1) + "\n"
        )


def _with_schema(number: int) -> Fields:
    return {"model": "", **form(long_schema(number))}


if __name__ == "__main__":
    main()
