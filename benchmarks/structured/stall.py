"""G1: what running streams notice of schemas on their way to be compiled, beside the same requests without schemas.

    python -m benchmarks.structured.stall [--pairs 10] [--hostile] [--json FILE]

16 streams run on the base while 32 requests come at once, each with a schema never seen before, or none. The figure is
the longest ÷ the median gap between tokens of the running streams, over the same ratio without schemas, for each pair.
`--hostile`: the 32 requests have no schema on either side, and on one side as many come beside them whose schemas are
made to cost much; each of those is refused, or gets its reply. Those that get one bring a prompt and tokens of their
own: a third side has as many requests without a schema in their place, and a second ratio is over it.
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
    sides = ("schemas", "none", "prompts") if options.hostile else ("schemas", "none")
    ratios: dict[str, list[float]] = {side: [] for side in sides[1:]}
    with tempfile.TemporaryDirectory() as scratch, serving(Manylora(), Path(scratch) / "log", base=base) as running:
        first = [_hostile(-1 - number) for number in range(REQUESTS)] if options.hostile else []
        num_served = visit(running.url, [_with_schema(-1)], vocab, [0.0], beside=first).num_beside
        for pair in range(options.pairs):
            numbers = range(pair * REQUESTS, (pair + 1) * REQUESTS)
            found: dict[str, float] = {}
            for side in reversed(sides) if pair % 2 else sides:
                plain: list[Fields] = [{"model": ""}] * REQUESTS
                beside: list[Fields] = [{"model": ""}] * num_served if side == "prompts" else []
                if side == "schemas" and options.hostile:
                    beside = [_hostile(number) for number in numbers]
                elif side == "schemas":
                    plain = [_with_schema(number) for number in numbers]
                found[side] = visit(running.url, plain, vocab, [0.0] * REQUESTS, beside=beside).ratio
            for side, own in ratios.items():
                own.append(found["schemas"] / found[side])
            print(f"pair {pair + 1:2d}  " + "  ".join(f"{side} {found[side]:.2f}" for side in sides), flush=True)
    result = {side: median_with_interval(own) for side, own in ratios.items()}
    for side, interval in result.items():
        print(f"longest ÷ median gap, with schemas ÷ {side}: {interval}")
    if options.json:
        more = {"served": num_served, "ratio_to_prompts": result["prompts"]} if options.hostile else {}
        record = {**facts, "hostile": options.hostile, "pairs": options.pairs, "ratio": result["none"], **more}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def _hostile(number: int) -> Fields:
    return {"model": "", **hostile_form(number)}


def _with_schema(number: int) -> Fields:
    return {"model": "", **form(long_schema(number))}


if __name__ == "__main__":
    main()
