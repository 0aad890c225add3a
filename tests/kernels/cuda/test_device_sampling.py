"""Draws and scores on the device are those of the specification."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from manylora.kernels.cuda import sampling
from manylora.kernels.cuda.sampling import sample_on_device, score_on_device
from manylora.kernels.sampling import sample_tokens, score_tokens
from tests.kernels.cases import random
from tests.kernels.test_sampling import make_rules

FILTERS = [
    {},
    {"top_k": 1},
    {"top_k": 7},
    {"top_p": 0.6},
    {"top_p": 1e-9},
    {"min_p": 0.2},
    {"typical_p": 0.5},
    {"top_k": 30, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.9},
    {"top_k": 500, "top_p": 0.999},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_greedy_and_drawn_rows_have_the_tokens_of_the_specification(filters: dict[str, float]) -> None:
    logits = random(1, 11, 331, scale=3.0)
    logits[1, [7, 40, 300]] = 50.0  # equal ones: the first
    logits[[2, 9]] = -torch.inf
    logits[[3, 10], 11] = torch.nan
    logits[[4, 6], 12] = torch.inf
    rules = make_rules(11, **filters)
    rules["temperature"] = [0, 0, 0, 0, 1.0, 1.0, 0, 0.7, 0, 0.7, 1.0]
    tokens, peaks = sample_on_device(logits, rules)
    expected, highest = sample_tokens(logits, rules)
    assert tokens == expected
    assert tokens[1] == 7
    assert np.array_equal(peaks, highest, equal_nan=True)


def test_a_step_without_rows_draws_nothing() -> None:
    assert sample_on_device(torch.empty(0, 9), make_rules(0)) == ([], [])


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_draws_have_the_tokens_of_the_specification(filters: dict[str, float]) -> None:
    rows = 60
    logits = random(3, rows, 331, scale=2.5)
    logits[:20] = logits[:20].round()  # many equal ones
    logits[5, 3:] = -torch.inf
    rules = make_rules(rows, **filters)
    rules["temperature"] = [(0.3, 1.0, 1.7, 1e-30, 1e30)[row % 5] for row in range(rows)]
    tokens, _ = sample_on_device(logits, rules)
    assert tokens == sample_tokens(logits, rules)[0]
    assert len(set(tokens)) > 10


def test_a_row_draws_the_same_alone_and_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, rules = random(7, 24, 120, scale=2.0), make_rules(24, top_p=0.9, typical_p=0.8)
    rules["temperature"] = 0.9
    together = sample_on_device(logits, rules)[0]
    assert together == [sample_on_device(logits[[row]], rules[[row]])[0][0] for row in range(24)]
    monkeypatch.setattr(sampling, "_MOST_ELEMENTS", 500)  # four rows at once
    assert together == sample_on_device(logits, rules)[0]


def test_scores_are_those_of_the_specification() -> None:
    logits = random(5, 8, 331, scale=3.0)
    logits[0, [4, 90, 91]] = logits[0].max() + 1  # equal ones: the lower ids first
    logits[1, 10:] = -torch.inf
    logits[2, :3] = torch.tensor([-0.0, 0.0, -0.0])
    logits[6, 3], logits[7, 3] = torch.nan, torch.inf
    tokens, most = [4, 20, 1, 9, 330, 0, 0, 3], [20, 12, 331, 0, 1, 5, 5, 5]
    found, expected = score_on_device(logits, tokens, most), score_tokens(logits, tokens, most)
    for mine, other in itertools.islice(zip(found, expected, strict=True), 6):
        assert [token for token, _ in mine.alternatives] == [token for token, _ in other.alternatives]
        assert (mine.peak, mine.logprob) == pytest.approx((other.peak, other.logprob), rel=1e-6)
        assert [score for _, score in mine.alternatives] == pytest.approx(
            [score for _, score in other.alternatives], rel=1e-6
        )
    assert np.isnan(found[6].peak)
    assert found[7].peak == np.inf
    assert score_on_device(logits[:0], [], []) == []


class Elements(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch types no modes
    """Records the most elements of a result, and the names of the operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.most = 0
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        self.most = max(self.most, *(each.numel() for each in tree_leaves(found) if isinstance(each, torch.Tensor)), 0)
        return found


def drawn(logits: torch.Tensor) -> object:
    return sample_on_device(logits, make_rules(len(logits), top_p=0.9, typical_p=0.8))


def scored(logits: torch.Tensor) -> object:
    return score_on_device(logits, list(range(len(logits))), [row % 4 for row in range(len(logits))])


@pytest.mark.parametrize("compute", [drawn, scored])
def test_a_part_of_the_rows_is_ranked_at_once(
    compute: Callable[[torch.Tensor], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = random(7, 23, 120)
    together = compute(logits)
    monkeypatch.setattr(sampling, "_MOST_ELEMENTS", 500)  # four rows at once
    with Elements() as elements:
        assert compute(logits) == together
    assert elements.most == 4 * 120


def test_scores_without_alternatives_rank_no_token() -> None:
    logits = random(7, 3, 120)
    with Elements() as elements:
        found = score_on_device(logits, [5, 6, 7], [0, 0, 0])
    assert "topk" not in elements.names
    expected = score_tokens(logits, [5, 6, 7], [0, 0, 0])
    assert [score.logprob for score in found] == pytest.approx([score.logprob for score in expected], rel=1e-6)
    assert not any(score.alternatives for score in found)
