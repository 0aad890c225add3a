"""Quantised products as other processors compute them: the same code compiled for each, with the same bits."""

import platform
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from manylora.kernels.cpu.int4 import Int4Linear
from manylora.kernels.cpu.int8 import Int8Linear
from manylora.kernels.cpu.library import NativeLibrary
from manylora.kernels.cpu.native import build
from tests.kernels.cases import native, random
from tests.kernels.eager import eager
from tests.kernels.quantised import Grouped, same

pytestmark = pytest.mark.long  # each processor's library takes ten seconds to compile

PROCESSORS = {
    "portable": ("-march=x86-64", set()),
    "avx2": ("-march=x86-64-v3", {"avx2", "fma", "f16c"}),
    "avx2-vnni": ("-march=x86-64-v3 -mavxvnni", {"avx2", "fma", "f16c", "avx_vnni"}),
    "avx512": ("-march=x86-64-v4", {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd"}),
}
"""Flags of the compiler, and the instruction sets that running the code takes."""
FLAGS = ("-std=c++17", "-O0", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-pthread")
ROWS = (1, 2, 3, 5, 6, 7, 13, 30)
SHAPES = ((33, 71), (70, 1537), (40, 28672))
"""(outputs, inputs): ends inside a panel, a quad, a block and a group; sums of extremes near the end of int32."""


def instruction_sets() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    return next((set(line.split()) for line in text.splitlines() if line.startswith("flags")), set())


@cache
def compiled_for(name: str) -> NativeLibrary:
    """The library as the processor's own compiler would make it; the cache keeps it until a source changes."""
    flags, needed = PROCESSORS[name]
    if platform.machine() != "x86_64" or not needed <= instruction_sets():
        pytest.skip(f"this processor does not run code for {name}")
    with patch.object(build, "FLAGS", (*FLAGS, *flags.split())):
        return NativeLibrary(2)


@pytest.mark.parametrize("name", PROCESSORS)
def test_int8_products_have_the_same_bits_on_every_processor(name: str) -> None:
    ours, theirs = (eager(library, Int8Linear(library)) for library in (native(2), compiled_for(name)))
    for outputs, inputs in SHAPES:
        weight, x = random(1, outputs, inputs), random(2, max(ROWS), inputs)
        weight[3], weight[4], x[2], x[3], x[4] = 1.0, -1.0, 1.0, -1.0, 0.0
        mine, other = ours.pack(weight), theirs.pack(weight)
        for rows in ROWS:
            assert same(theirs.linear(x[:rows], other), ours.linear(x[:rows], mine))
        ids = torch.arange(outputs)
        assert torch.equal(theirs.embed(ids, other), ours.embed(ids, mine))


@pytest.mark.parametrize("has_zeros", [False, True], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_int4_products_have_the_same_bits_on_every_processor(name: str, has_zeros: bool) -> None:
    ours, theirs = (eager(library, Int4Linear(library)) for library in (native(2), compiled_for(name)))
    for outputs, inputs in SHAPES:
        weight, x = Grouped.random(1, outputs, inputs, 64, has_zeros=has_zeros), random(2, max(ROWS), inputs)
        weight.integers[3], weight.integers[4], x[2], x[3], x[4] = 15, 0, 1.0, -1.0, 0.0
        x[5, 7] = float("nan")
        mine, other = ours.pack_groups(weight.stored), theirs.pack_groups(weight.stored)
        for rows in ROWS:
            assert same(theirs.linear(x[:rows], other), ours.linear(x[:rows], mine))
        ids = torch.arange(outputs)
        assert torch.equal(theirs.embed(ids, other), ours.embed(ids, mine))
