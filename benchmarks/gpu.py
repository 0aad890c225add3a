"""The back end for cards on one card: agreement with float32, then its figures beside the card's own limits, and goals.

    python benchmarks/gpu.py [--device cuda:0] [--minutes 8] [--rounds N] [--json OUT]
    python benchmarks/gpu.py --dry-run

It runs in a checkout with torch, triton, numpy, safetensors, tokenizers and jinja2; manylora need not be installed.

The limits are measured first: a copy in the card's memory, square matrix products, a copy from locked host memory. Then
each kernel is compared with torch in float32, in the shapes of a 7B base (`benchmarks/card/cases.py`), and two bases of
random weights, Llama-2-7b's shape and Mistral-7B's, go through the stages of `benchmarks/card/stages.py`, the most
important first; times of single kernels come last. Nothing is downloaded.

Each line is in the file as soon as it is measured. After `--minutes` no further line is begun, and what was left out is
named. A stage that fails ends no other; the exit code is 1 then. The table of `benchmarks/card/goals.py` stands at the
end: each goal with the worst of its figures.

`--dry-run` walks all of it on the CPU, in Triton's interpreter, with tiny bases and recorded launches in place of
graphs. Its differences and counts are true, its times and ratios are an interpreter's and mean nothing.
"""

import argparse
import dataclasses
import gc
import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

if not __package__:  # run as a file, whose folder is on the path in place of the repository's
    ROOT = Path(__file__).resolve().parent.parent
    sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks.card.base import Base, fitted
from benchmarks.card.cases import CARD, DRY, Case, agreement, cases, timed, timing
from benchmarks.card.ceilings import Ceilings, clock_of, measure
from benchmarks.card.goals import print_table
from benchmarks.card.results import Line, Results
from benchmarks.card.sizes import SEVEN_B, TINY, Size
from benchmarks.card.stages import Stages
from manylora.bench.machine import describe
from manylora.errors import ConfigInvalid
from manylora.kernels.cuda.backend import TorchKernels
from manylora.kernels.cuda.device import dtype_of, find_device, free_bytes
from manylora.kernels.cuda.graphs import CudaGraphs

DRY_ROUNDS, DRY_CASES = 1, 4


class Run:
    """One run on one device. A dry one has tiny sizes and the host's memory."""

    def __init__(self, device: torch.device, rounds: int, results: Results, *, is_dry: bool) -> None:
        self.device, self.results, self.is_dry = device, results, is_dry
        self.rounds = DRY_ROUNDS if is_dry else rounds
        self.dtype = dtype_of(device)
        self.clock = clock_of(device)

    def all(self) -> None:
        """Measure everything, in the order of importance."""
        ceilings = measure(self.device, self.dtype, self.rounds, self.clock)
        self.results.add(None, "ceilings", dataclasses.asdict(ceilings))
        self.results.take(None, "kernels", self.agreements)
        for size in TINY if self.is_dry else SEVEN_B:
            self.results.take(size.name, "base", partial(self.base, size, ceilings))
        self.results.take(None, "kernel times", partial(self.timings, ceilings))

    def kernels(self, **options: Any) -> TorchKernels:  # the options of the back end
        from manylora.kernels.cuda.jit.backend import TritonKernels  # after the interpreter is chosen

        return TritonKernels(self.device, self.dtype, **options)

    def one_row_products(self) -> Any:  # as above
        from manylora.kernels.cuda.jit.one_row import FILE, OneRowProducts, one_row_products

        folder = Path(tempfile.mkdtemp(prefix="one-row-"))
        if self.is_dry:
            return OneRowProducts(folder / FILE, lambda run: timed(run, 1) / 1e3, "the interpreter")
        return one_row_products(self.device, folder)

    def cases(self, dtype: torch.dtype) -> Iterator[Case]:
        return cases(DRY if self.is_dry else CARD, self.device, self.dtype, dtype)

    def agreements(self) -> Iterator[Line]:
        plain, reference = (TorchKernels(self.device, dtype) for dtype in (self.dtype, torch.float32))
        own = self.kernels()
        for case, exact in zip(self.cases(self.dtype), self.cases(torch.float32), strict=True):
            yield agreement(case, exact, plain, own, reference)

    def timings(self, ceilings: Ceilings) -> Iterator[Line]:
        plain, own = TorchKernels(self.device, self.dtype), self.kernels()
        for case in itertools.islice(self.cases(self.dtype), DRY_CASES if self.is_dry else None):
            yield timing(case, plain, own, self.rounds, ceilings)

    def base(self, size: Size, ceilings: Ceilings) -> Iterator[Line]:
        """Take a base through its stages; yield its sizes before, and its products of one row behind them."""
        products = self.one_row_products()
        if self.is_dry:
            from tests.kernels.cuda.recorder import RecordedGraphs

            kernels = self.kernels(capture=RecordedGraphs(), one_row=products)
        else:
            gc.collect()  # the base before
            torch.cuda.empty_cache()
            free = free_bytes(self.device)
            size = size if free is None else fitted(size, free)
            kernels = self.kernels(own_memory_bytes=free, capture=CudaGraphs(), one_row=products)
        base = Base(size, kernels, self.device)
        yield {"weight_bytes": base.weight_bytes, "rows": size.rows, "context": size.context}
        stages = Stages(base, kernels.copies(), self.clock, self.rounds, ceilings)
        for name, stage in stages.all().items():
            self.results.take(size.name, name, stage)
        for name, own in products.kept.items():
            yield {"product": name, **own}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    if given.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before the import of the kernels
    try:
        device = torch.device("cpu") if given.dry_run else find_device(given.device)
    except ConfigInvalid as error:
        raise SystemExit(error.message) from None
    head: dict[str, Any] = {"machine": describe(), "is_dry_run": given.dry_run, "torch": torch.__version__}
    if device.type == "cuda":
        torch.cuda.set_device(device)
        head |= {"card": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    results = Results(given.json, given.minutes, head, is_dry=given.dry_run)
    Run(device, given.rounds, results, is_dry=given.dry_run).all()
    results.write()
    print_table(results.goals())
    for name in results.left_out:
        print(f"left out: {name}")
    for name in results.failures:
        print(f"failed: {name}")
    if given.dry_run:
        print("a dry run: its times and ratios mean nothing")
    raise SystemExit(bool(results.failures))


if __name__ == "__main__":
    main()
