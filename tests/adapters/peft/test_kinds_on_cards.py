"""Every kind of adapter that PEFT saves on a card's kernels, beside rows of the base: the logits of the reference."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from manylora.kernels.cuda.backend import TorchKernels
from manylora.kernels.reference import ReferenceKernels
from manylora.models.llama import LlamaModel
from manylora.models.spec import read_spec
from manylora.models.weights import load_weights
from tests.conftest import long
from tests.kernels.cuda.interpreted import HOST, require_triton
from tests.support.peft_grid import GRID, WITHOUT_EFFECT, make_bases, our_logits, save_case
from tests.support.tiny import TinyBase

require_triton()
from manylora.kernels.cuda.jit.backend import TritonKernels  # noqa: E402 - after the check

CLOSE = {torch.float32: 1e-4, torch.float16: 2e-2}
"""Largest difference of a logit, as a share of the largest logit: in float32 the orders of sums differ, float16 rounds
to eleven bits (0.0063 measured)."""
FEW = ("rank 3", "DoRA on both ends, tied", "LoRA bias", "saved norms", "added tokens, trained ends", "activated")
"""Kinds that take different operations, for the interpreter."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, TinyBase]]:
    _model.cache_clear()
    yield make_bases(tmp_path_factory.mktemp("kinds"))
    _model.cache_clear()


@cache
def _model(own: type[TorchKernels] | None, base: Path, dtype: torch.dtype = torch.float32) -> LlamaModel:
    """A model on the kernels of a card, or on the reference."""
    kernels, spec = ReferenceKernels() if own is None else own(HOST, dtype), read_spec(base)
    return LlamaModel(spec, load_weights(base, spec, kernels), kernels)


def assert_alike(
    own: type[TorchKernels],
    name: str,
    bases: dict[bool, TinyBase],
    folder: Path,
    dtype: torch.dtype = torch.float32,
) -> None:
    case = GRID[name]
    base = bases[case.is_tied]
    save_case(case, base, folder, seed=5)
    models = _model(own, base.directory, dtype), _model(None, base.directory)
    found, expected = (our_logits(case, base, folder, model) for model in models)
    is_known = expected.isfinite()
    assert torch.equal(is_known, found.isfinite())
    error, largest = (found - expected)[is_known].abs().max(), expected[is_known].abs().max()
    assert (error / largest).item() < CLOSE[dtype]


@pytest.mark.parametrize(
    "name", ["DoRA on both ends, tied", *long(*(name for name in GRID if name != "DoRA on both ends, tied"))]
)
def test_operations_of_torch_apply_all_of_it(name: str, bases: dict[bool, TinyBase], tmp_path: Path) -> None:
    assert_alike(TorchKernels, name, bases, tmp_path)


@pytest.mark.parametrize(
    "name", ["DoRA on both ends, tied", *long(*(name for name in GRID if name != "DoRA on both ends, tied"))]
)
def test_a_card_without_bfloat16_applies_all_of_it_in_float16(
    name: str, bases: dict[bool, TinyBase], tmp_path: Path
) -> None:
    assert_alike(TorchKernels, name, bases, tmp_path, torch.float16)


@pytest.mark.long
@pytest.mark.parametrize("name", FEW)
def test_kernels_in_triton_apply_all_of_it(name: str, bases: dict[bool, TinyBase], tmp_path: Path) -> None:
    assert name not in WITHOUT_EFFECT
    assert_alike(TritonKernels, name, bases, tmp_path)
