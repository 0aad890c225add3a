"""A base on several ranks gives the logits of one process, for each architecture and each kind of adapter."""

import pytest

from manylora.kernels.reference import ReferenceKernels
from manylora.models.spec import read_spec
from manylora.models.tensor_parallel import degrees
from tests.conftest import thinned
from tests.engine.execution.ranks.thread_ranks import run_shared
from tests.models.parity.rows import ROWS
from tests.models.parity.test_parity import NAMES, PROMPT
from tests.models.parity.tiny import Tiny, make_tiny
from tests.support.forward import ReadyAdapter, load_model, place, run

TOLERANCE = 1e-4
"""Largest difference of a logit between one process and several ranks in float32: the order of sums alone differs."""


@pytest.fixture(scope="module", params=thinned(ROWS, 3))
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(ROWS[request.param], tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("most", [2, 4])
def test_logits_are_those_of_one_process_with_adapters_mixed(tiny: Tiny, most: int) -> None:
    model = load_model(tiny.base, "reference", 1)
    size = max(degree for degree in degrees(read_spec(tiny.base)) if degree <= most)
    placed: dict[str | None, ReadyAdapter | None] = {None: None}
    for name, folder in tiny.adapters.items():
        placed[name] = place(folder, model.spec, ReferenceKernels(), tiny.base)
    prompts = [(PROMPT, placed[name]) for name in NAMES]
    expected = run(model, prompts)
    found = run_shared(tiny.base, size, prompts)
    for own, logits, wanted in zip(NAMES, found, expected, strict=True):
        error = (logits - wanted).abs().max().item()
        assert error <= TOLERANCE, f"{own} on {size} ranks: largest error {error}"
