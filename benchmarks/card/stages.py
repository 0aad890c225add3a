"""The stages of a run on a card: decoding against its floor, the tax of adapters, prompts, copies, catalogues, replays.

Each stage returns lines of figures. A clock that returns 0 makes every ratio None: a dry run walks the stages alone.
"""

import statistics
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.card.base import RANKS, Base
from manylora.kernels.interface import Copies
from manylora.kernels.lora_batch import PlacedAdapter

Line = dict[str, Any]
Clock = Callable[[], float]
REQUEST_TOKENS = 10


class Stages:
    """The stages on one base.

    Args:  copies     of adapters to the device      clock  seconds, after the device has done its work
           rounds     of each measurement            copy_bytes_per_s  of a plain copy of the card's memory
    """

    def __init__(self, base: Base, copies: Copies, clock: Clock, rounds: int, copy_bytes_per_s: float) -> None:
        self.base, self.copies, self.clock, self.rounds = base, copies, clock, rounds
        self.copy_bytes_per_s = copy_bytes_per_s
        self.position = base.size.prompt

    def all(self) -> Iterator[Line]:
        """Run the stages in order."""
        for stage in (
            self.capture,
            self.replays_equal_operations,
            self.one_row,
            self.tax,
            self.prompts,
            self.loads,
            self.cold,
            self.catalogue,
            self.replayed,
        ):
            for line in stage():
                yield {"stage": stage.__name__, **line}

    def seconds(self, run: Callable[[], object]) -> float:
        """Return the median seconds of a call, after one that is not counted."""
        run()
        found = []
        for _ in range(self.rounds):
            begun = self.clock()
            run()
            found.append(self.clock() - begun)
        return statistics.median(found)

    def placed(self, count: int, ranks: Sequence[int] = RANKS, first: int = 0) -> list[PlacedAdapter]:
        """Adapters on the device."""
        return [self.place(own) for own in self.base.adapters(count, ranks, first)]

    def place(self, own: PlacedAdapter) -> PlacedAdapter:
        copy = self.copies.begin(own.image)
        while not copy.has_ended():
            pass
        return replace(own, image=copy.tensor)

    def capture(self) -> Iterator[Line]:
        """Seconds of the capture of all sizes and kinds, as a start does it."""
        begun = self.clock()
        graphs = self.base.model.prepare(self.base.kv)
        yield {"graphs": graphs, "seconds": self.clock() - begun}

    def replays_equal_operations(self) -> Iterator[Line]:
        """Each number of segments up to the most: the replay against the same padded step's operations one by one."""
        base = self.base
        for rows in base.size.rows:
            own = self.placed(rows)
            differing = 0
            for number in range(1, rows + 1):
                step = base.decoding(rows, self.position, own[:number] if number > 1 else own[:1])
                replayed = base.run(step).clone()
                differing += not torch.equal(replayed, base.eager(step))
            yield {"rows": rows, "numbers of segments": rows, "differing": differing}

    def one_row(self) -> Iterator[Line]:
        """Decode one row: seconds ÷ (weight bytes ÷ the bandwidth of a plain copy)."""
        step = self.base.decoding(1, self.position)
        floor = self.base.weight_bytes / self.copy_bytes_per_s
        yield {"floor_ms": 1e3 * floor, "over_floor": ratio(self.seconds(lambda: self.base.run(step)), floor)}

    def tax(self) -> Iterator[Line]:
        """Rows of one adapter, and of another each: throughput ÷ without, beside the roofline of bytes."""
        base = self.base
        for rows in base.size.rows:
            plain = self.seconds(partial(base.run, base.decoding(rows, self.position)))
            for name, own in (("one adapter", self.placed(1)), ("each row another", self.placed(rows))):
                step = base.decoding(rows, self.position, own)
                num_bytes = sum(each.image.nbytes for each in own)
                yield {
                    "rows": rows,
                    "adapters": name,
                    "throughput": ratio(plain, self.seconds(partial(base.run, step))),
                    "roofline": base.weight_bytes / (base.weight_bytes + num_bytes),
                }

    def prompts(self) -> Iterator[Line]:
        """A prompt with an adapter ÷ without."""
        base, step = self.base, self.base.prompt()
        plain = self.seconds(lambda: base.run(step))
        adapted = base.prompt(self.placed(1))
        yield {
            "tokens_per_s": ratio(base.size.prompt, plain),
            "throughput": ratio(plain, self.seconds(lambda: base.run(adapted))),
        }

    def loads(self) -> Iterator[Line]:
        """Copies of adapters ÷ plain pinned copies of as many bytes; steps beside a copy ÷ without one."""
        [own] = self.base.adapters(1, (max(RANKS),))
        into = torch.empty_like(own.image, device=self.base.device)
        plain = self.seconds(lambda: into.copy_(own.image))
        copied = self.seconds(lambda: self.place(own))
        step = self.base.decoding(max(self.base.size.rows), self.position)
        alone = self.seconds(lambda: self.base.run(step))
        beside = self.seconds(lambda: (self.copies.begin(own.image), self.base.run(step)))
        yield {"bytes": own.image.nbytes, "bandwidth": ratio(plain, copied), "step_beside": ratio(beside, alone)}

    def cold(self) -> Iterator[Line]:
        """First token of a prompt whose adapter comes from host memory ÷ of one whose adapter is on the card."""
        [own] = self.base.adapters(1, (16,))
        here = self.place(own)
        hot = self.seconds(lambda: self.base.run(self.base.prompt([here])))
        cold = self.seconds(lambda: self.base.run(self.base.prompt([self.place(own)])))
        yield {"over_hot": ratio(cold, hot)}

    def catalogue(self) -> Iterator[Line]:
        """Requests of 10 tokens, adapters drawn uniformly from many ÷ from few; so many are on the card at once."""
        many, few = self.base.size.catalogues
        seconds = [self.served(count) for count in (many, few)]
        yield {"adapters": f"{many} / {few}", "throughput": ratio(seconds[1], seconds[0])}

    def served(self, count: int) -> float:
        """Return the seconds of the requests; the least recently used adapters leave the card."""
        size, draws = self.base.size, torch.Generator().manual_seed(count)
        rows = max(size.rows)
        host = list(self.base.adapters(min(count, 2 * size.room)))  # a larger catalogue has these under more names
        here: OrderedDict[int, PlacedAdapter] = OrderedDict()
        begun = self.clock()
        for first in range(0, size.requests, rows):
            chosen = torch.randint(count, (min(rows, size.requests - first),), generator=draws).sort().values.tolist()
            for number in chosen:
                if number not in here:
                    here[number] = self.place(host[number % len(host)])
                here.move_to_end(number)
            while len(here) > max(size.room, rows):
                here.popitem(last=False)
            for token in range(REQUEST_TOKENS if size.positions > 64 else 1):
                own = [here[number] for number in chosen]
                self.base.run(self.base.decoding(len(chosen), self.position + token, own))
        return self.clock() - begun

    def replayed(self) -> Iterator[Line]:
        """Steps of this run that were replayed, and those that ran operation by operation."""
        steps = self.base.kernels.steps
        yield {"replayed": steps.replayed, "eager": steps.eager}


def ratio(over: float, under: float) -> float | None:
    """Return a quotient; None in a dry run."""
    return over / under if over and under else None
