"""A new operation is a row of the table and its implementation: everything between them is made from the table."""

import inspect
import shutil
from pathlib import Path
from typing import Protocol, cast

import pytest
import torch

from manylora.errors import NativeBuildFailed
from manylora.kernels.cpu.backend import CpuKernels
from manylora.kernels.cpu.library import NativeLibrary
from manylora.kernels.cpu.native import build
from manylora.kernels.cpu.native.headers import made_headers
from manylora.kernels.operands import KvCache, StepInput
from manylora.kernels.operation import Operation, operation, operations_of
from manylora.kernels.reference import ReferenceKernels
from manylora.kernels.table_of_operations import OPERATIONS, Operations, Rows
from tests.kernels.cases import random
from tests.kernels.eager import NO_ATTENTION


class MoreOperations(Operations[Rows], Protocol[Rows]):
    """The table with one more row."""

    @operation(width=lambda x: 2 * x.width)
    def scale_twice(self, x: Rows, first: float, second: int) -> Rows:
        """Return `x * first` and `x * second` side by side."""


IMPLEMENTATION = """
#include "operations.h"

void ml::scale_twice(Pool*, Rows x, double first, int64_t second, Rows y) {
    for (int64_t r = 0; r < x.count; ++r)
        for (int64_t i = 0; i < x.width; ++i) {
            y.row(r)[i] = x.row(r)[i] * float(first);
            y.row(r)[x.width + i] = x.row(r)[i] * float(second);
        }
}
"""


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the C++ sources, in which a test may add to them; compiled without optimisation."""
    folder = tmp_path / "src"
    shutil.copytree(build.SOURCE_DIR, folder)
    monkeypatch.setattr(build, "SOURCE_DIR", folder)
    monkeypatch.setattr(
        build, "FLAGS", ("-std=c++17", "-O0", "-march=native", "-ffp-contract=off", "-fPIC", "-pthread")
    )
    return folder


@pytest.mark.long  # it compiles the whole library
def test_a_made_up_operation_runs_from_its_row_and_its_function_alone(sources: Path, tmp_path: Path) -> None:
    (sources / "scale_twice.cpp").write_text(IMPLEMENTATION)
    native = NativeLibrary(2, cache_dir=tmp_path, operations=operations_of(MoreOperations))
    kernels = CpuKernels(native)
    table, head = (kernels.pack(random(seed, *shape)) for seed, shape in ((1, (7, 16)), (2, (5, 32))))

    def forward(ops: Operations[Rows], step: StepInput, kv: KvCache) -> Rows:
        x = ops.take_rows(ops.embed(step.token_ids, table), step.logit_rows)
        return ops.logits(cast(MoreOperations[Rows], ops).scale_twice(x, 0.5, 3), head)

    ids, rows = torch.tensor([6, 0, 2]), torch.tensor([0, 2])
    kv = kernels.new_kv(layers=1, num_blocks=1, block_size=1, kv_heads=1, head_dim=8)
    profile = kernels.start_profile()
    found = kernels.compile(forward)(StepInput(ids, rows, NO_ATTENTION, kernels.prepare_lora(())), kv)
    x = random(1, 7, 16).bfloat16().float()[ids[rows]]
    expected = torch.cat([x * 0.5, x * 3], 1) @ random(2, 5, 32).bfloat16().float().T
    assert torch.allclose(found, expected, atol=1e-4)
    assert profile.seconds()["scale_twice"] > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("double first, int64_t second", "int64_t second, double first"), "scale_twice"),
        (("scale_twice", "scale_thrice"), "scale_thrice"),
    ],
)
def test_a_function_that_differs_from_its_row_does_not_compile(
    sources: Path, tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    for file in sources.rglob("*.cpp"):
        file.unlink()
    (sources / "scale_twice.cpp").write_text(IMPLEMENTATION.replace(*change))
    with pytest.raises(NativeBuildFailed, match=said):
        NativeLibrary(1, cache_dir=tmp_path, operations=operations_of(MoreOperations))


def test_a_row_without_a_function_is_no_library(sources: Path, tmp_path: Path) -> None:
    for file in sources.rglob("*.cpp"):
        if file.name not in ("graph.cpp", "pool.cpp"):
            file.unlink()
    with pytest.raises(NativeBuildFailed, match="undefined symbol"):
        NativeLibrary(1, cache_dir=tmp_path, operations=operations_of(MoreOperations))


def test_a_parameter_that_native_code_lacks_is_refused() -> None:
    class Odd(Operations[Rows], Protocol[Rows]):
        @operation()
        def ask(self, x: Rows, text: str) -> None: ...

    with pytest.raises(TypeError, match="operation ask: text has the type"):
        made_headers(operations_of(Odd))


def test_an_operation_outside_the_table_is_an_error_while_recording() -> None:
    kernels = CpuKernels(NativeLibrary(1))
    table = kernels.pack(random(1, 7, 16))
    kv = kernels.new_kv(layers=1, num_blocks=1, block_size=1, kv_heads=1, head_dim=8)

    def forward(ops: Operations[Rows], step: StepInput, kv: KvCache) -> Rows:
        return cast(MoreOperations[Rows], ops).scale_twice(ops.embed(step.token_ids, table), 1, 1)

    step = StepInput(torch.tensor([1]), torch.tensor([0]), NO_ATTENTION, kernels.prepare_lora(()))
    with pytest.raises(AttributeError, match="scale_twice"):
        kernels.compile(forward)(step, kv)


@pytest.mark.parametrize("row", OPERATIONS, ids=lambda row: row.name)
def test_the_reference_implements_every_row(row: Operation) -> None:
    assert list(inspect.signature(getattr(ReferenceKernels(), row.name)).parameters) == list(row.parameters)


def test_every_method_of_operations_is_a_row() -> None:
    declared = [name for name in vars(Operations) if not name.startswith("_")]
    assert declared == [row.name for row in OPERATIONS]
