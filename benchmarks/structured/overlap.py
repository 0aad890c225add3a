"""G2 as steps see it: how long a step waits for the masks of its rows, filled beside the forward pass or after it.

    python -m benchmarks.structured.overlap [--rows 16] [--seconds 40] [--json FILE]

An engine runs `--rows` sequences, each with a schema. Ten steps with the masks beside the forward pass and ten with the
masks after it take turns. Shown are the microseconds that a step waits for a row's mask and applies it (the mean of the
step's rows, with those of draft tokens), over all steps, and the tokens a second of both sides.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.structured.masks import spread
from benchmarks.structured.schemas import long_schema
from manylora.bench.machine import describe
from manylora.bench.servers import default_base
from manylora.bench.statistics import median_with_interval
from manylora.clock import SystemClock
from manylora.config.declaration import Setting
from manylora.config.settings import load_config
from manylora.engine.engine import Engine
from manylora.engine.execution.sampler import Sampler
from manylora.engine.grammars.masks import MaskFiller, Matched
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import Flow, RequestId
from manylora.kernels.sampling import RowNumbers, TokenMasks
from manylora.models.text.grammar import json_grammar
from manylora.wiring.engine import build_engine

SIDES = ("beside", "after")
TURN = 10
UNCOUNTED_S = 4.0
TOKENS = 600


class Watch:
    """Times of the steps of both sides."""

    def __init__(self, clock: SystemClock) -> None:
        self.clock = clock
        self.side = SIDES[0]
        self.is_counted = False
        self.waits: dict[str, list[float]] = {side: [] for side in SIDES}
        self.rates: dict[str, list[float]] = {side: [] for side in SIDES}
        self._waited_s = 0.0
        self._rows = 0

    def install(self, sampler: Sampler) -> None:
        filler, mask = sampler._filler, sampler._mask
        begin = filler.begin

        def begun(matched: Sequence[Matched]) -> None:
            begin(matched if self.side == "beside" else ())

        def taken(matched: Sequence[Matched]) -> TokenMasks:
            started_s = self.clock.monotonic_s()
            found = MaskFiller.take(filler, matched)
            self._waited_s += self.clock.monotonic_s() - started_s
            self._rows += len(found)
            return found

        def masked(logits: torch.Tensor, rows: RowNumbers, masks: TokenMasks) -> None:
            started_s = self.clock.monotonic_s()
            mask(logits, rows, masks)
            self._waited_s += self.clock.monotonic_s() - started_s

        filler.begin, filler.take = begun, taken  # type: ignore[method-assign]  # timed
        sampler._mask = masked

    def note(self, took_s: float, tokens: int) -> None:
        if self.is_counted and self._rows:
            self.waits[self.side].append(1e6 * self._waited_s / self._rows)
            self.rates[self.side].append(tokens / took_s)
        self._waited_s, self._rows = 0.0, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    facts, clock = describe(), SystemClock()
    flags: dict[str, Setting] = {
        "model.base": str(default_base()),
        "adapters.hub_endpoint": "",
        "engine.max_model_len": 2048,
    }
    engine, _ = build_engine(load_config(flags=flags, environ={}), lambda line: None)
    watch = Watch(clock)
    watch.install(engine._executor._sampler)  # type: ignore[attr-defined]  # of the runner
    ratios = run(engine, watch, options.rows, options.seconds)
    result = {side: spread(watch.waits[side]) for side in SIDES}
    for side, figures in result.items():
        print(f"{side:<7} {figures} µs a row")
    gain = median_with_interval(ratios)
    print(f"tokens a second, beside ÷ after: {gain}")
    if options.json:
        record = {**facts, "rows": options.rows, "microseconds_a_row": result, "tokens_per_s_ratio": gain}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def run(engine: Engine, watch: Watch, rows: int, seconds: float) -> list[float]:
    """The ratios of tokens a second of neighbouring turns."""
    number, begun_s = 0, watch.clock.monotonic_s()
    turns: dict[str, list[float]] = {side: [] for side in SIDES}
    while (started_s := watch.clock.monotonic_s()) < begun_s + seconds:
        watch.is_counted = started_s > begun_s + UNCOUNTED_S and engine.stats().running == rows
        watch.side = SIDES[len(turns[SIDES[0]]) > len(turns[SIDES[1]])]
        tokens = 0
        for _ in range(TURN):
            for _ in range(rows - engine.stats().running - engine.stats().waiting - engine.stats().loading):
                number += 1
                engine.submit(_request(number))
            step_s = watch.clock.monotonic_s()
            made = len(engine.step().tokens)
            watch.note(watch.clock.monotonic_s() - step_s, made)
            tokens += made
        if watch.is_counted:
            turns[watch.side].append(tokens / (watch.clock.monotonic_s() - started_s))
    engine.shutdown()
    return [beside / after for beside, after in zip(turns["beside"], turns["after"], strict=False)]


def _request(number: int) -> Request:
    return Request(
        id=RequestId(f"request {number}"),
        flow=Flow(f"flow {number % 8}"),
        salt="",
        tokens=tuple(range(100, 140)),
        adapter=None,
        sampling=SamplingParams(temperature=1.0, seed=number),
        stop=StopParams(max_new_tokens=TOKENS),
        grammar=json_grammar(long_schema(number % 32)),
    )


if __name__ == "__main__":
    main()
