"""The recipe by which a request merges several adapters into one, checked. `adapters/packing/merge.py` computes it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from manylora.errors import InvalidParameter

MAX_MEMBERS = 8
MAX_WEIGHT = 1e3


class MergeStrategy(StrEnum):
    """The strategies of a merge. AUTO is LINEAR if all ranks are equal, else CAT, which works with different ranks."""

    AUTO = "auto"
    LINEAR = "linear"
    TIES = "ties"
    DARE_LINEAR = "dare_linear"
    DARE_TIES = "dare_ties"
    MAGNITUDE_PRUNE = "magnitude_prune"
    SVD = "svd"
    CAT = "cat"


class SignMethod(StrEnum):
    """The election of a sign in TIES: by the sum of the values, or by the number of members."""

    TOTAL = "total"
    FREQUENCY = "frequency"


PRUNING = frozenset(
    {MergeStrategy.TIES, MergeStrategy.DARE_LINEAR, MergeStrategy.DARE_TIES, MergeStrategy.MAGNITUDE_PRUNE}
)
"""Strategies that need a density."""


@dataclass(frozen=True, slots=True, order=True)
class MergeRecipe:
    """A merge of several members. `density` is 1 where the strategy does not prune.

    weights   one a member, in their order; they may be negative
    density   share of each tensor's values that stays, in (0, 1]
    """

    weights: tuple[float, ...]
    strategy: MergeStrategy = MergeStrategy.AUTO
    density: float = 1.0
    signs: SignMethod = SignMethod.TOTAL


def read_recipe(
    num_members: int,
    weights: Sequence[float],
    strategy: str | None,
    density: float | None,
    sign_method: str | None,
) -> MergeRecipe:
    """Check the merge of a request and return its recipe.

    Raises `InvalidParameter` with the messages that clients of LoRAX know.
    """
    if num_members == 0:
        raise _wrong("at least one adapter ID must be provided when setting `adapters`")
    if num_members > MAX_MEMBERS:
        raise _wrong(f"at most {MAX_MEMBERS} adapters can be merged. Given: {num_members}")
    if num_members != len(weights):
        raise _wrong("number of adapter IDs must match number of adapter weights")
    for weight in weights:
        if not abs(weight) <= MAX_WEIGHT:  # neither is NaN
            raise _wrong(f"adapter weights must be numbers between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}. Given: {weight}")
    if strategy is not None and strategy not in set(MergeStrategy) - {MergeStrategy.AUTO}:
        raise _wrong(f"unknown `merge_strategy` '{strategy[:40]}'")
    if sign_method is not None and sign_method not in set(SignMethod):
        raise _wrong(f"unknown `majority_sign_method` '{sign_method[:40]}'")
    chosen = MergeStrategy.AUTO if strategy is None else MergeStrategy(strategy)
    if chosen not in PRUNING:
        density = 1.0
    elif density is None or math.isnan(density) or not 0 < density <= 1:
        raise _wrong(f"`density` must be > 0.0 and <= 1.0 for `{chosen}`")
    signs = SignMethod.TOTAL if sign_method is None else SignMethod(sign_method)
    return MergeRecipe(tuple(map(float, weights)), chosen, float(density), signs)


def _wrong(message: str) -> InvalidParameter:
    return InvalidParameter(message, parameter="merged_adapters")
