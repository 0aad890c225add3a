"""Products of one row: the kernel in Triton's interpreter, and the choice between two ways, kept in a file."""

import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import long, thinned
from tests.kernels.cases import error, random
from tests.kernels.cuda.interpreted import CLOSE, DTYPES, HOST, require_triton

require_triton()
from manylora.kernels.cuda.jit import one_row  # noqa: E402 - after the check
from manylora.kernels.cuda.jit.backend import TritonKernels  # noqa: E402
from manylora.kernels.cuda.jit.one_row import CardSeconds, OneRowProducts, one_row_product  # noqa: E402
from tests.kernels.cuda.test_captured_steps import SPEC, Decoding  # noqa: E402

SHAPES = ((1, 1), (7, 40), (70, 24), (9, 1100), (5, 2048))


class Times:
    """Seconds by turns: of the own kernel, of the library, for each shape that is timed."""

    def __init__(self, *given: float) -> None:
        self.given = list(given)

    def __call__(self, run: Callable[[], object]) -> float:
        run()
        return self.given.pop(0)


@pytest.mark.parametrize(("dtype", "shape"), thinned(itertools.product(DTYPES, SHAPES), 8))
def test_the_kernel_agrees_with_the_product_in_float32(dtype: str, shape: tuple[int, int]) -> None:
    x, weight = random(1, 1, shape[1]).to(DTYPES[dtype]), random(2, *shape).to(DTYPES[dtype])
    expected = x.double() @ weight.double().T
    for out in (DTYPES[dtype], torch.float32):
        found = one_row_product(x, weight, out)
        assert (found.dtype, found.shape) == (out, (1, shape[0]))
        assert error(found.double(), expected) < CLOSE[dtype]


def chosen(products: OneRowProducts, *shape: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the way that a product of this shape takes after its choice."""
    x, weight = random(1, 1, shape[1]), random(2, *shape)
    products.product(x, weight, torch.float32)
    taken: list[str] = []
    for name in ("one_row_product", "library_product"):

        def multiply(x: Tensor, weight: Tensor, dtype: torch.dtype, name: str = name) -> Tensor:
            taken.append(name)
            return x

        monkeypatch.setattr(one_row, name, multiply)
    products.product(x, weight, torch.float32)
    monkeypatch.undo()
    [way] = taken
    return way.removesuffix("_product")


def test_each_shape_has_the_faster_way_and_keeps_it_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cache" / "products.json"
    first = OneRowProducts(path, Times(1e-6, 2e-6, 4e-6, 3e-6), "a card")
    again = OneRowProducts(path, Times(), "a card")
    for products in (first, again):
        assert chosen(products, 7, 24, monkeypatch=monkeypatch) == "one_row"
        assert chosen(products, 24, 7, monkeypatch=monkeypatch) == "library"
    other = OneRowProducts(path, Times(5e-6, 1e-6), "another card")
    assert chosen(other, 7, 24, monkeypatch=monkeypatch) == "library"
    kept: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    assert kept["a card, 7 x 24, float32 to float32"] == {"own_us": 1.0, "library_us": 2.0, "is_own": True}
    assert len(kept) == 3
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"a card, 7 x 24, float32 to float32": 3}'])
def test_a_file_that_cannot_be_used_leaves_the_product_to_the_library(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "products.json"
    path.write_text(text, encoding="utf-8")
    products = OneRowProducts(path, Times(), "a card")
    with caplog.at_level(logging.WARNING):
        assert chosen(products, 7, 24, monkeypatch=monkeypatch) == "library"
        assert chosen(products, 7, 24, monkeypatch=monkeypatch) == "library"
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"products.not_chosen path={path} shape=7x24 reason=")
    assert path.read_text(encoding="utf-8") == text


class FakeEvent:
    """An event of a card whose clock goes on by one millisecond with each record."""

    now_ms = 0.0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        FakeEvent.now_ms += 1.0
        self.at_ms = FakeEvent.now_ms

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "FakeEvent") -> float:
        return end.at_ms - self.at_ms


def test_a_timed_call_is_between_two_events_and_runs_once_before() -> None:
    class Cuda:
        Event = FakeEvent

    calls: list[float] = []
    assert CardSeconds(HOST, Cuda, 64)(lambda: calls.append(FakeEvent.now_ms)) == pytest.approx(1e-3)
    assert len(calls) == one_row.CALLS + 1


class OwnKernels(TritonKernels):
    """Kernels whose products of one row are always their own."""

    folder: Path

    def __init__(self, *given: Any, **options: Any) -> None:
        products = OneRowProducts(self.folder / "products.json", Times(*(number % 2 for number in range(20))), "a card")
        super().__init__(*given, **options, one_row=products)


@pytest.mark.parametrize("rows", [1, *long(2)])
def test_a_captured_step_of_one_row_has_the_own_products_and_others_the_library_s(rows: int, tmp_path: Path) -> None:
    OwnKernels.folder = tmp_path
    decoding = Decoding(SPEC, OwnKernels)
    step = decoding.step(rows, seed=1)
    eager, captured = decoding.both(step)
    assert torch.equal(eager, captured)
    assert decoding.counts == (1, 0)
    [launches] = decoding.graphs.captures
    own = sum(launch.kernel == "one_row_kernel" for launch in launches)
    assert own == (5 if rows == 1 else 0)  # q k v, o, gate and up, down, head
    if rows > 1:
        library = Decoding()
        torch.testing.assert_close(captured, library.models[0].forward(step, library.kv[0]), rtol=1e-5, atol=1e-5)
