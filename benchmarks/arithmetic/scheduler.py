"""What planning a step costs: the scheduler alone, with sequences that decode, wait and share prefixes.

    python -m benchmarks.arithmetic.scheduler [--steps 300] [--json FILE]

Blocks of 16 positions, steps of 256 rows. Prompts of 100 random tokens, replies of 64; a reply that ends makes room for
the next in the queue, and another arrives in its place. Times are of `plan` and of all `commit`s of a step.
"""

import argparse
import itertools
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from manylora.bench.machine import describe
from manylora.bench.statistics import milliseconds
from manylora.engine.logits_rules import logits_rules
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.engine.scheduling.blocks import BlockPool, prefix_root
from manylora.engine.scheduling.scheduler import Scheduler
from manylora.engine.scheduling.sequence import Sequence
from manylora.engine.scheduling.step import StepLimits
from manylora.engine.stopping import StopChecker
from manylora.ids import Flow, RequestId

PROMPT, REPLY, BLOCK = 100, 64, 16


@dataclass(frozen=True)
class Case:
    """Sequences running and waiting, the flows they come from, and whether the block pool has room for all."""

    running: int
    waiting: int
    flows: int
    is_short: bool = False

    @property
    def name(self) -> str:
        short = ", blocks for half of them" if self.is_short else ""
        return f"{self.running} running, {self.waiting} waiting, {self.flows} flows{short}"


CASES = (Case(1, 0, 1), Case(32, 0, 1), Case(32, 1000, 100), Case(256, 1000, 100), Case(32, 100, 10, is_short=True))


class BaseGate:
    """The gate of sequences without adapters."""

    def pin(self, sequence: Sequence) -> bool:
        sequence.root = prefix_root("", sequence.request.salt)
        return True

    def unpin(self, sequence: Sequence) -> None:
        pass

    def reclaim(self, blocks: int) -> bool:
        return False


class Traffic:
    """A scheduler with its load kept at one size."""

    def __init__(self, case: Case) -> None:
        blocks = case.running * -(-(PROMPT + REPLY) // BLOCK) // (2 if case.is_short else 1)
        limits = StepLimits(max_rows=max(256, case.running), max_running=case.running)
        self.scheduler = Scheduler(BlockPool(blocks, BLOCK, prefix_cache=True), limits, BaseGate())
        self._source = random.Random(1)
        self._numbers = itertools.count()
        self._flows = case.flows
        for _ in range(case.running + case.waiting):
            self.arrive()

    def arrive(self) -> None:
        number = next(self._numbers)
        stop = StopParams(max_new_tokens=REPLY, ignore_eos=True)
        sampling = SamplingParams(temperature=0.0)
        tokens = tuple(self._source.randrange(49152) for _ in range(PROMPT))
        request = Request(
            id=RequestId(str(number)),
            flow=Flow(str(number % self._flows)),
            salt="",
            tokens=tokens,
            adapter=None,
            sampling=sampling,
            stop=stop,
        )
        checker = StopChecker(stop, frozenset(), open_no_text)
        self.scheduler.enqueue(Sequence(request, checker, logits_rules(request, ()), 0.0))

    def step(self) -> tuple[float, float]:
        """Seconds of the plan, and of its commits."""
        begun = time.perf_counter()
        plan = self.scheduler.plan()
        planned = time.perf_counter()
        sequences = [self.scheduler.commit(chunk) for chunk in plan.chunks]
        committed = time.perf_counter()
        for chunk, sequence in zip(plan.chunks, sequences, strict=True):
            if chunk.is_sampled:
                sequence.tokens.append(7)
                if sequence.num_generated == REPLY:
                    self.scheduler.remove(sequence)
                    self.arrive()
        return planned - begun, committed - planned


def open_no_text(_: bool) -> NoReturn:
    raise AssertionError("no request has stop strings")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    facts = describe()
    results: dict[str, dict[str, dict[str, float]]] = {}
    for case in CASES:
        traffic = Traffic(case)
        times = [traffic.step() for _ in range(options.steps + 100)][100:]
        plans, commits = zip(*times, strict=True)
        results[case.name] = {"plan": milliseconds(plans), "commits": milliseconds(commits)}
        print(f"{case.name:<52} plan {results[case.name]['plan']}  commits {results[case.name]['commits']}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
