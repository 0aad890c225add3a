"""Every PEFT configuration of the grid gives PEFT's own logits; what PEFT tunes is really part of them (figure A6)."""

from pathlib import Path

import pytest

from manylora.models.llama import LlamaModel
from tests.conftest import thinned
from tests.support.forward import load_model
from tests.support.peft_grid import GRID, WITHOUT_EFFECT, make_bases, our_logits, peft_logits, prompt_of, save_case
from tests.support.tiny import TinyBase, oracle_logits

TOLERANCE = {"reference": 1e-4, "native": 0.05}
"""Largest error of a logit: absolute for the reference, which is float32 like the oracle; as a share of the
largest logit for the native back end, whose weights, keys, values and adapters are rounded to bf16 (0.032 measured)."""

World = tuple[TinyBase, dict[str, LlamaModel]]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, World]:
    bases = make_bases(tmp_path_factory.mktemp("bases"))
    return {
        is_tied: (base, {name: load_model(base.directory, name) for name in TOLERANCE})
        for is_tied, base in bases.items()
    }


def test_the_grid_is_large() -> None:
    assert len(GRID) >= 60


@pytest.mark.parametrize("name", thinned(GRID, 6))
def test_logits_are_those_of_peft(name: str, worlds: dict[bool, World], tmp_path: Path) -> None:
    case = GRID[name]
    base, models = worlds[case.is_tied]
    save_case(case, base, tmp_path, seed=len(name))
    expected = peft_logits(case, base, tmp_path)
    for back_end, model in models.items():
        found = our_logits(case, base, tmp_path, model)
        assert found.shape == expected.shape
        error = (found - expected).abs().max().item()
        limit = TOLERANCE[back_end] * (1.0 if back_end == "reference" else expected.abs().max().item())
        assert error <= limit, f"{back_end}: largest error {error}"
    if not case.added:
        plain = oracle_logits(base, None, prompt_of(case))
        assert ((plain - expected).abs().max().item() > 0.1) == (name not in WITHOUT_EFFECT)
