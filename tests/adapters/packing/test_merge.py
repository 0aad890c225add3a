"""Merging against PEFT's own `add_weighted_adapter`, with our masks put in the place of its random ones."""

import itertools
from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from manylora import errors
from manylora.adapters.base_shape import Module
from manylora.adapters.packing.merge import Factors, MergeImpossible, merge, random_mask
from manylora.merging import MAX_MEMBERS, PRUNING, MergeRecipe, MergeStrategy, SignMethod, read_recipe

IN, OUT = 24, 20
MODULE: Module = (0, 0)
SEED = b"a digest"
WEIGHTS = [(0.7, -0.4), (1.0, 1.0), (0.0, 1.0), (0.3, 0.9, -1.5)]
DENSITIES = [0.2, 0.5, 1.0]


def members(ranks: Sequence[int], alphas: Sequence[float]) -> list[dict[Module, Factors]]:
    random = np.random.default_rng(7)
    return [
        {
            MODULE: Factors(
                random.standard_normal((rank, IN)).astype(np.float32),
                random.standard_normal((OUT, rank)).astype(np.float32),
                alpha / rank,
            )
        }
        for rank, alpha in zip(ranks, alphas, strict=True)
    ]


def delta(factors: Factors) -> np.ndarray[Any, Any]:
    return factors.scale * (factors.b.astype(np.float64) @ factors.a.astype(np.float64))


def of_peft(given: Sequence[dict[Module, Factors]], recipe: MergeRecipe) -> np.ndarray[Any, Any]:
    """The change of the weight that PEFT's merge makes."""

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(IN, OUT, bias=False)

    ranks = [member[MODULE].a.shape[0] for member in given]
    configs = [
        LoraConfig(r=rank, lora_alpha=member[MODULE].scale * rank, target_modules=["layer"])
        for rank, member in zip(ranks, given, strict=True)
    ]
    model = get_peft_model(Tiny(), configs[0], adapter_name="m0")
    for index, config in enumerate(configs[1:], start=1):
        model.add_adapter(f"m{index}", config)
    layer: Any = model.base_model.model.layer
    for index, member in enumerate(given):
        layer.lora_A[f"m{index}"].weight.data = torch.from_numpy(member[MODULE].a)
        layer.lora_B[f"m{index}"].weight.data = torch.from_numpy(member[MODULE].b)
    calls = itertools.count()

    def masked(tensor: torch.Tensor, density: float, rescale: bool) -> torch.Tensor:
        part, index = divmod(next(calls), len(given))
        seed = SEED + b"%d %d %d " % (*MODULE, index) + bytes([part])
        mask = torch.from_numpy(random_mask(tuple(tensor.shape), density, seed))
        return tensor * mask / (density if rescale else 1.0)

    with mock.patch("peft.utils.merge_utils.random_pruning", masked):
        model.base_model.add_weighted_adapter(
            adapters=[f"m{index}" for index in range(len(given))],
            weights=list(recipe.weights),
            adapter_name="merged",
            combination_type=str(recipe.strategy.value),
            density=recipe.density if recipe.strategy in PRUNING else None,
            majority_sign_method=str(recipe.signs.value),
        )
    return np.asarray(layer.get_delta_weight("merged").detach().double())


@pytest.mark.filterwarnings("ignore:The density 1:UserWarning")
@pytest.mark.filterwarnings("ignore:.*PeftWarning")
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("strategy", [*sorted(PRUNING), MergeStrategy.LINEAR, MergeStrategy.SVD, MergeStrategy.CAT])
def test_every_strategy_equals_pefts(strategy: MergeStrategy, weights: tuple[float, ...]) -> None:
    given = members([4] * len(weights), [8, 2, 5][: len(weights)])
    for density in DENSITIES if strategy in PRUNING else [1.0]:
        for signs in SignMethod:
            recipe = MergeRecipe(weights, strategy, density, signs)
            expected = of_peft(given, recipe)
            result = delta(merge(given, recipe, SEED)[MODULE])
            np.testing.assert_allclose(result, expected, atol=2e-5 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("ranks", [(2, 4), (1, 8, 3)], ids=str)
def test_concatenation_is_exact_for_unequal_ranks(ranks: tuple[int, ...]) -> None:
    given = members(ranks, [8.0] * len(ranks))
    weights = (0.7, -0.4, 1.3)[: len(ranks)]
    expected = sum(weight * delta(member[MODULE]) for weight, member in zip(weights, given, strict=True))
    for strategy in (MergeStrategy.AUTO, MergeStrategy.CAT):
        merged = merge(given, MergeRecipe(weights, strategy), SEED)[MODULE]
        assert merged.a.shape[0] == sum(ranks)
        np.testing.assert_allclose(delta(merged), expected, atol=1e-4)


def test_svd_is_the_best_approximation_at_the_largest_rank() -> None:
    given = members((3, 5), (6.0, 4.0))
    weights = (0.7, -0.4)
    expected = sum(weight * delta(member[MODULE]) for weight, member in zip(weights, given, strict=True))
    merged = merge(given, MergeRecipe(weights, MergeStrategy.SVD), SEED)[MODULE]
    assert merged.a.shape[0] == 5
    u, singular, v = np.linalg.svd(expected)
    np.testing.assert_allclose(delta(merged), u[:, :5] * singular[:5] @ v[:5], atol=1e-4)


def test_one_member_with_weight_one_is_itself() -> None:
    given = members((4,), (8.0,))
    for strategy in set(MergeStrategy) - PRUNING:
        merged = merge(given, MergeRecipe((1.0,), strategy), SEED)[MODULE]
        np.testing.assert_allclose(delta(merged), delta(given[0][MODULE]), atol=1e-4)


def test_a_module_that_one_member_has_is_merged_from_that_one() -> None:
    first, second = members((4, 4), (8.0, 8.0))
    given = [{(0, 0): first[MODULE]}, {(0, 0): second[MODULE], (1, 3): second[MODULE]}]
    merged = merge(given, MergeRecipe((0.5, 2.0), MergeStrategy.LINEAR), SEED)
    np.testing.assert_allclose(delta(merged[1, 3]), 2 * delta(second[MODULE]), atol=1e-4)


def test_masks_are_the_seeds() -> None:
    given = members((4, 4), (8.0, 8.0))
    recipe = MergeRecipe((1.0, 1.0), MergeStrategy.DARE_TIES, 0.5)
    first, second = (merge(given, recipe, SEED)[MODULE].a for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (merge(given, recipe, b"another")[MODULE].a != first).any()
    assert abs(random_mask((100_000,), 0.3, SEED).mean() - 0.3) < 0.01


def test_unequal_ranks_are_refused_where_the_mathematics_needs_equal_ones() -> None:
    given = members((2, 4), (8.0, 8.0))
    for strategy in (*PRUNING, MergeStrategy.LINEAR):
        with pytest.raises(MergeImpossible, match="needs equal ranks, and in"):
            merge(given, MergeRecipe((1.0, 1.0), strategy, 0.5), SEED)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"num_members": 0}, "at least one adapter ID must be provided"),
        ({"num_members": MAX_MEMBERS + 1}, f"at most {MAX_MEMBERS} adapters"),
        ({"weights": [1.0]}, "number of adapter IDs must match number of adapter weights"),
        ({"weights": [1.0, float("nan")]}, "must be numbers between"),
        ({"weights": [1.0, 1e9]}, "must be numbers between"),
        ({"strategy": "mean"}, "unknown `merge_strategy` 'mean'"),
        ({"strategy": "auto"}, "unknown `merge_strategy` 'auto'"),
        ({"sign_method": "loudest"}, "unknown `majority_sign_method` 'loudest'"),
        ({"strategy": "ties"}, "`density` must be > 0.0 and <= 1.0 for `ties`"),
        ({"strategy": "ties", "density": 0.0}, "`density` must be > 0.0"),
        ({"strategy": "dare_linear", "density": 1.1}, "`density` must be > 0.0"),
        ({"strategy": "dare_ties", "density": float("nan")}, "`density` must be > 0.0"),
    ],
)
def test_a_wrong_recipe_is_refused_in_known_words(changed: dict[str, Any], text: str) -> None:
    given: dict[str, Any] = {
        "num_members": 2,
        "weights": [1.0, 0.5],
        "strategy": None,
        "density": None,
        "sign_method": None,
        **changed,
    }
    with pytest.raises(errors.InvalidParameter, match=text):
        read_recipe(**given)


def test_strategies_that_do_not_prune_ignore_the_density() -> None:
    recipe = read_recipe(2, [1.0, 1.0], "linear", 0.0, None)
    assert recipe == MergeRecipe((1.0, 1.0), MergeStrategy.LINEAR)
