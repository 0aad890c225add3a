"""L2: the gaps of running streams while a long prompt comes, and that prompt's speed, by the bound of a step's time.

    python -m benchmarks.arithmetic.gaps [--bounds 4,6,8] [--pairs 10] [--prompt 2048] [--streams 16] [--json FILE]

An engine for each bound (`engine.max_gap_steps`) and one without, in one process; they take turns. In a run the streams
(32 tokens, greedy) decode alone for a while, then one prompt of random ids comes, and the run ends with its token. The
times are those of `Engine.step`: without the HTTP edge and clients, which share the processors with an engine.

gap     longest step from the prompt on ÷ the median of the streams' steps alone in that run
prompt  tokens a second of the prompt ÷ those of the engine without a bound in the same round
Shown are medians over the rounds with the interval that holds the true median with 95 %.
"""

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

from manylora.bench.machine import describe
from manylora.bench.servers import default_base
from manylora.bench.statistics import median, median_with_interval
from manylora.config.declaration import Setting
from manylora.config.settings import load_config
from manylora.engine.engine import Engine
from manylora.engine.events import FinishReason
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import Flow, RequestId, mint_request_id
from manylora.models.spec import read_spec
from manylora.wiring.engine import build_engine

UNBOUNDED = 1000.0
ALONE_STEPS, WARM_RUNS = 30, 2
FIRST_ID = 3


@dataclass(frozen=True)
class Seen:
    """One run: the longest step from the prompt on, the median of those before it, and the prompt's speed."""

    longest_ms: float
    alone_ms: float
    prompt_tokens_per_s: float

    @property
    def ratio(self) -> float:
        return self.longest_ms / self.alone_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bounds", default="4,6,8", help="values of engine.max_gap_steps, by comma")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    facts = describe()
    base = default_base()
    vocab = read_spec(base).vocab
    sides = [*map(float, options.bounds.split(",")), UNBOUNDED]
    engines = {side: open_engine(base, side) for side in sides}
    found: dict[float, list[Seen]] = {side: [] for side in sides}
    for number in range(-WARM_RUNS, options.pairs):
        for side in sides if number % 2 == 0 else reversed(sides):
            seen = visit(engines[side], vocab, options.prompt, options.streams)
            if number >= 0:
                found[side].append(seen)
    results = {f"{side:g}": _summary(runs, found[UNBOUNDED]) for side, runs in found.items()}
    for name, summary in results.items():
        print(f"bound {name:>6}  {summary}")
    if options.json:
        record = {**facts, "prompt": options.prompt, "streams": options.streams, "pairs": options.pairs}
        options.json.write_text(json.dumps({**record, "results": results}, indent=1) + "\n", encoding="utf-8")


def open_engine(base: Path, bound: float) -> Engine:
    flags: dict[str, Setting] = {"model.base": str(base), "engine.prefix_cache": False, "engine.max_gap_steps": bound}
    return build_engine(load_config(flags=flags, environ={}), lambda line: None)[0]


def submit(engine: Engine, vocab: int, length: int, budget: int) -> RequestId:
    request = Request(
        id=mint_request_id(),
        flow=Flow("benchmark"),
        salt="",
        tokens=tuple(random.randrange(FIRST_ID, vocab) for _ in range(length)),
        adapter=None,
        sampling=SamplingParams(temperature=0.0),
        stop=StopParams(max_new_tokens=budget, ignore_eos=True),
        speculation=False,
    )
    engine.submit(request)
    return request.id


def visit(engine: Engine, vocab: int, prompt: int, num_streams: int) -> Seen:
    """Run the streams and the prompt once."""
    streams = [submit(engine, vocab, 32, 2 * prompt) for _ in range(num_streams)]
    while len(engine.step().tokens) < num_streams:
        pass
    alone = [timed_step(engine)[0] for _ in range(ALONE_STEPS)]
    own = submit(engine, vocab, prompt, 1)
    beside: list[float] = []
    is_done = False
    while not is_done:
        took_s, is_done = timed_step(engine, own)
        beside.append(took_s)
    for stream in streams:
        engine.abort(stream, FinishReason.DISCONNECT)
    engine.step()
    return Seen(
        longest_ms=round(1e3 * max(beside), 2),
        alone_ms=round(1e3 * median(alone), 3),
        prompt_tokens_per_s=round(prompt / sum(beside), 1),
    )


def timed_step(engine: Engine, request: RequestId | None = None) -> tuple[float, bool]:
    """Return the seconds of a step, and whether the request ended with it."""
    begun_s = time.perf_counter()
    events = engine.step()
    return time.perf_counter() - begun_s, any(end.request_id == request for end in events.finished)


def _summary(runs: list[Seen], unbounded: list[Seen]) -> dict[str, object]:
    speeds = [a.prompt_tokens_per_s / b.prompt_tokens_per_s for a, b in zip(runs, unbounded, strict=True)]
    return {
        "gap": median_with_interval([run.ratio for run in runs]),
        "prompt": median_with_interval(speeds),
        "longest_ms": round(median([run.longest_ms for run in runs]), 1),
        "alone_ms": round(median([run.alone_ms for run in runs]), 2),
        "prompt_tokens_per_s": round(median([run.prompt_tokens_per_s for run in runs]), 1),
    }


if __name__ == "__main__":
    main()
