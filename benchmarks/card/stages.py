"""The stages of a run on one base: agreement, replays, decoding, the tax of adapters, prompts, copies, catalogues."""

import math
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks.card.base import Base, Span
from benchmarks.card.ceilings import Ceilings, Clock
from benchmarks.card.sizes import ATTENTION, USUAL, AdapterKind
from benchmarks.card.tolerances import of_tolerance, relative_difference
from manylora.kernels.cuda.backend import TorchKernels
from manylora.kernels.interface import Copies, Copy
from manylora.kernels.lora_batch import PlacedAdapter

Line = dict[str, Any]
PART_LAYERS = 2
"""Layers whose steps are compared with torch: those of all layers in float32 would not fit beside the base."""
GAP_TURNS = 4
USUAL_DISTINCT = 16
"""Distinct adapters on q, k, v and o up to which throughput itself has a goal, beside its share of the roofline."""


@dataclass(frozen=True, slots=True)
class Served:
    """Requests of a catalogue: their seconds, their steps of decoding, and how many of these were replayed."""

    seconds: float
    decoding: int
    replayed: int


class Stages:
    """The stages on one base, in the order of their importance. Each yields lines of figures.

    Args:  copies  of adapters to the device      clock  waits for the device
           rounds  of each measurement
    """

    def __init__(self, base: Base, copies: Copies, clock: Clock, rounds: int, ceilings: Ceilings) -> None:
        self.base, self.copies, self.clock, self.rounds = base, copies, clock, rounds
        self.ceilings = ceilings

    def all(self) -> dict[str, Callable[[], Iterator[Line]]]:
        """Return the stages by name."""
        own = (
            self.steps,
            self.capture,
            self.replays,
            self.one_row,
            self.tax,
            self.prompts,
            self.loads,
            self.gaps,
            self.cold,
            self.catalogue,
        )
        return {stage.__name__: stage for stage in own}

    def seconds(self, *runs: Callable[[], object]) -> list[float]:
        """Return the median seconds of each call. The calls take turns, after one of each that is not counted."""
        found: list[list[float]] = [[] for _ in runs]
        for run in runs:
            run()
        for _ in range(self.rounds):
            for run, own in zip(runs, found, strict=True):
                begun = self.clock()
                run()
                own.append(self.clock() - begun)
        return [statistics.median(own) for own in found]

    def begin(self, own: PlacedAdapter) -> Copy:
        return self.copies.begin(own.image)

    def place(self, own: PlacedAdapter) -> PlacedAdapter:
        """Copy an adapter of host memory to the device, and wait for it."""
        return self.placed(own, self.begin(own))

    def placed(self, own: PlacedAdapter, copy: Copy) -> PlacedAdapter:
        while not copy.has_ended():
            pass
        return replace(own, image=copy.tensor)

    # ── agreement ────────────────────────────────────────────────────────────────────────────────────────────────

    def steps(self) -> Iterator[Line]:
        """Logits of the first layers against those of torch in float32, beside torch's own in the weights' dtype."""
        base, dtype = self.base, self.base.kernels.lora_dtype
        layers = min(PART_LAYERS, base.spec.num_layers)
        models = [base.part(base.kernels, layers)]
        models += [base.part(TorchKernels(base.device, own), layers) for own in (dtype, torch.float32)]
        most = base.size.context
        adapters = base.adapters(base.size.kinds[0], max(base.size.rows), layers)
        spans: dict[str, list[Span]] = {
            **{f"{rows} rows": [(row, most, most + 1) for row in range(rows)] for rows in base.size.rows},
            "a prompt": [(0, 0, most)],
            "a prompt and rows": [(0, 0, most), *((row, most, most + 1) for row in range(1, max(base.size.rows)))],
        }
        for name, own in spans.items():
            torch.manual_seed(len(own))
            tokens = base.step(own).token_ids
            logits = []
            for model, kv in models:
                kernels = model.kernels
                given = [replace(each, image=each.image.to(kernels.lora_dtype)) for each in adapters[: len(own)]]
                step = replace(base.step(own, given, kernels), token_ids=tokens)
                logits.append(model.forward(step, kv).float().clone())
            found, torchs = (relative_difference(each, logits[-1]) for each in logits[:-1])
            yield {
                "step": name,
                "difference": found,
                "of_torch": torchs,
                "of_tolerance": of_tolerance(found, torchs, dtype),
            }

    def capture(self) -> Iterator[Line]:
        """Seconds of the capture of all sizes and kinds, as a start does it."""
        begun = self.clock()
        graphs = self.base.model.prepare(self.base.kv)
        yield {"graphs": graphs, "seconds": self.clock() - begun}

    def replays(self) -> Iterator[Line]:
        """Each number of segments up to the most: the replay against the same operations one by one, bit for bit."""
        base = self.base
        own = base.adapters(base.size.kinds[0], max(base.size.rows))
        for rows in base.size.rows:
            differing, before = 0, base.kernels.steps.replayed
            for number in range(rows + 1):
                step = base.decoding(rows, own[:number])
                replayed = base.run(step).clone()
                differing += not torch.equal(replayed, base.eager(step))
            lacking = rows + 1 - (base.kernels.steps.replayed - before)
            yield {"rows": rows, "segments": rows, "differing": differing, "not_replayed": lacking}

    # ── speed ────────────────────────────────────────────────────────────────────────────────────────────────────

    def one_row(self) -> Iterator[Line]:
        """Decode one row: (weight bytes ÷ the bandwidth of a copy) ÷ its seconds."""
        step = self.base.decoding(1)
        floor = self.base.weight_bytes / self.ceilings.copy_bytes_per_s
        [seconds] = self.seconds(lambda: self.base.run(step))
        yield {"floor_ms": 1e3 * floor, "ms": 1e3 * seconds, "of_bandwidth": floor / seconds}

    def tax(self) -> Iterator[Line]:
        """Rows with adapters: throughput ÷ without, as a share of what the bytes of the adapters leave."""
        base = self.base
        for kind in base.size.kinds:
            for rows in base.size.rows:
                plain = base.decoding(rows)
                for distinct in sorted({1, -(-rows // 4), rows}):
                    own = base.adapters(kind, distinct)
                    step = base.decoding(rows, [own[row * distinct // rows] for row in range(rows)])
                    without_s, with_s = self.seconds(partial(base.run, plain), partial(base.run, step))
                    read = base.weight_bytes + base.kv_bytes(rows)
                    roofline = read / (read + sum(each.image.nbytes for each in own))
                    throughput = without_s / with_s
                    is_usual = distinct == 1 or (distinct <= USUAL_DISTINCT and kind.projections == ATTENTION)
                    yield {
                        "adapters": kind.name,
                        "rows": rows,
                        "distinct": distinct,
                        "ms": 1e3 * with_s,
                        "throughput": throughput,
                        "roofline": roofline,
                        "of_roofline": throughput / roofline,
                        **({"usual_throughput": throughput} if is_usual else {}),
                    }
                    del own, step  # the next ones need the memory

    def prompts(self) -> Iterator[Line]:
        """A prompt without an adapter as a share of the matrix peak, and with one ÷ without."""
        base, tokens = self.base, self.base.size.prompt
        plain, [own] = base.prompt(tokens), base.adapters(USUAL, 1)
        adapted = base.prompt(tokens, [own])
        without_s, with_s = self.seconds(lambda: base.run(plain), lambda: base.run(adapted))
        operations = base.prompt_operations(tokens) / self.ceilings.matrix_per_s
        yield {
            "tokens_per_s": tokens / without_s,
            "of_matrix_peak": operations / without_s,
            "with_adapter_of_matrix_peak": operations / with_s,
            "throughput": without_s / with_s,
        }

    def loads(self) -> Iterator[Line]:
        """Copies of adapters from locked pages, as a share of the bandwidth of locked memory."""
        most = self.base.size.max_rank
        for kind in (USUAL, AdapterKind(f"q k v o, rank {most}", ATTENTION, (most,))):
            [own] = self.base.host_adapters(kind, 1)
            begun = time.perf_counter()
            self.copies.lock_pages(own.image)
            locked_s = time.perf_counter() - begun
            [seconds] = self.seconds(partial(self.place, own))
            self.copies.unlock_pages(own.image)
            bandwidth = own.image.nbytes / seconds
            yield {
                "adapter": kind.name,
                "bytes": own.image.nbytes,
                "lock_ms": 1e3 * locked_s,
                "of_pinned": bandwidth / self.ceilings.pinned_bytes_per_s,
            }

    def gaps(self) -> Iterator[Line]:
        """The 99th percentile of the gaps between tokens while adapters are copied without a pause ÷ without copies."""
        [own] = self.base.host_adapters(USUAL, 1)
        step = self.base.decoding(max(self.base.size.rows))
        self.base.run(step)
        self.copies.lock_pages(own.image)
        alone, beside, copied = list[float](), list[float](), 0
        for turn in range(1 + GAP_TURNS):
            if turn == 1:  # the first one takes memory from the system, and is not counted
                alone, beside, copied = [], [], 0
            alone += self._gaps(lambda: None, step)
            under_way = [self.begin(own)]

            def copy_on(under_way: list[Copy] = under_way) -> None:
                nonlocal copied
                if under_way[-1].has_ended():
                    copied += 1
                    under_way[-1] = self.begin(own)

            beside += self._gaps(copy_on, step)
            self.placed(own, under_way[-1])
        self.copies.unlock_pages(own.image)
        alone_s, beside_s = percentile(alone, 0.99), percentile(beside, 0.99)
        yield {
            "rows": max(self.base.size.rows),
            "copies": copied,
            "p50_ms_alone": 1e3 * percentile(alone, 0.5),
            "p99_ms_alone": 1e3 * alone_s,
            "p50_over_alone": percentile(beside, 0.5) / percentile(alone, 0.5),
            "p99_over_alone": beside_s / alone_s,
        }

    def _gaps(self, before: Callable[[], None], step: Any) -> list[float]:
        """Return the seconds between the tokens of steps. The clock of the device would wait for copies, too."""
        found, last_s = [], time.perf_counter()
        for _ in range(self.base.size.gap_steps):
            before()
            self.base.run(step)  # ends when the host has the tokens
            now_s = time.perf_counter()
            found.append(now_s - last_s)
            last_s = now_s
        return found

    def cold(self) -> Iterator[Line]:
        """First token of a prompt whose adapter comes from host memory ÷ of one whose adapter is on the card."""
        base, tokens = self.base, self.base.size.first_prompt
        [own] = base.host_adapters(USUAL, 1)
        self.copies.lock_pages(own.image)
        here = self.place(own)
        hot_s, cold_s = self.seconds(
            lambda: base.run(base.prompt(tokens, [here])),
            lambda: base.run(base.prompt(tokens, [self.place(own)])),
        )
        self.copies.unlock_pages(own.image)
        yield {"tokens": tokens, "hot_ms": 1e3 * hot_s, "over_hot": cold_s / hot_s}

    def catalogue(self) -> Iterator[Line]:
        """Requests whose adapters are drawn uniformly from many ÷ from few, and the share of their steps replayed."""
        many, few = self.base.size.catalogues
        host = self.base.host_adapters(USUAL, min(many, 2 * self.base.size.room))  # under several names each
        for own in host:
            self.copies.lock_pages(own.image)
        self.served(few, host)  # compiles what prompts need
        over = [(self.served(many, host), self.served(few, host)) for _ in range(min(3, self.rounds))]
        for own in host:
            self.copies.unlock_pages(own.image)
        pairs = [each for pair in over for each in pair]
        yield {
            "adapters": f"{many} / {few}",
            "throughput": statistics.median(from_few.seconds / from_many.seconds for from_many, from_few in over),
            "replayed": sum(each.replayed for each in pairs) / sum(each.decoding for each in pairs),
        }

    def served(self, count: int, host: Sequence[PlacedAdapter]) -> Served:
        """Serve the requests of a catalogue. Adapters of the next requests are copied beside the steps of these.

        The least recently used adapters leave the card.
        """
        base, size = self.base, self.base.size
        (prompt, reply), steps = size.request, base.kernels.steps
        draws = torch.Generator().manual_seed(count)
        here: OrderedDict[int, PlacedAdapter] = OrderedDict()
        decoding = replayed = 0
        begun = self.clock()
        groups = [
            torch.randint(count, (min(size.streams, size.requests - first),), generator=draws).sort().values.tolist()
            for first in range(0, size.requests, size.streams)
        ]
        under_way = {number: self.begin(host[number % len(host)]) for number in set(groups[0])}
        for chosen, following in zip(groups, [*groups[1:], []], strict=True):
            for number, copy in under_way.items():
                here[number] = self.placed(host[number % len(host)], copy)
            for number in chosen:
                here.move_to_end(number)
            while len(here) > max(size.room, size.streams):
                here.popitem(last=False)
            own = [here[number] for number in chosen]
            missing = {*following} - here.keys()
            under_way = {number: self.begin(host[number % len(host)]) for number in missing}
            at_once = max(1, size.prompt // prompt)
            for first in range(0, len(own), at_once):
                spans = [(row, 0, prompt) for row in range(first, min(first + at_once, len(own)))]
                base.run(base.step(spans, own[first : first + at_once]))
            before = steps.replayed
            for token in range(reply):
                spans = [(row, prompt + token, prompt + token + 1) for row in range(len(own))]
                base.run(base.step(spans, own))
            decoding += reply
            replayed += steps.replayed - before
        return Served(self.clock() - begun, decoding, replayed)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that is not below a share of the values."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
