"""Merging several adapters into one: linear, TIES, DARE, magnitude prune, SVD and concatenation. Without torch.

The formulas are those of PEFT's `add_weighted_adapter`. Sources: TIES, Yadav et al., arXiv 2306.01708; DARE, Yu et al.,
arXiv 2311.03099. Member i has the factors (A, B), the scale s and the weight w, and k = w·s. All strategies but SVD and
concatenation work on A and B apart, with sign(k)·√|k| on A and √|k| on B, so that a member's own product is w·s·BA.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from manylora.adapters.base_shape import Module, module_path
from manylora.adapters.peft.values import Float
from manylora.merging import PRUNING, MergeRecipe, MergeStrategy, SignMethod


class Factors(NamedTuple):
    """One module's LoRA factors: the weight changes by scale · b @ a. a (rank, in), b (out, rank), float32."""

    a: Float
    b: Float
    scale: float


class MergeImpossible(ValueError):
    """The members do not fit together under the strategy; the text says why."""


def merge(members: Sequence[Mapping[Module, Factors]], recipe: MergeRecipe, seed: bytes) -> dict[Module, Factors]:
    """Merge the members module by module, each from those members that have it. The results' scale is 1.

    `seed` (any bytes) makes the random masks of DARE: the same seed, module and member always give the same ones.
    Raises `MergeImpossible`.
    """
    strategy = _settled(members, recipe.strategy)
    merged: dict[Module, Factors] = {}
    for module in sorted({module for member in members for module in member}):
        present = [(index, member[module]) for index, member in enumerate(members) if module in member]
        factors = [found for _, found in present]
        weights = [recipe.weights[index] for index, _ in present]
        match strategy:
            case MergeStrategy.CAT:
                merged[module] = _concatenated(factors, weights)
            case MergeStrategy.SVD:
                merged[module] = _decomposed(factors, weights)
            case _:
                _require_equal_ranks(module, factors, strategy)
                seeds = [_mask_seed(seed, module, index) for index, _ in present]
                merged[module] = _combined(factors, weights, seeds, recipe, strategy)
    return merged


def _settled(members: Sequence[Mapping[Module, Factors]], strategy: MergeStrategy) -> MergeStrategy:
    """Return the strategy to carry out. A sole member is only scaled, and AUTO becomes the strategy it stands for."""
    if strategy is not MergeStrategy.AUTO:
        return strategy
    for module in {module for member in members for module in member}:
        if len({member[module].a.shape[0] for member in members if module in member}) > 1:
            return MergeStrategy.CAT
    return MergeStrategy.LINEAR


def _require_equal_ranks(module: Module, factors: Sequence[Factors], strategy: MergeStrategy) -> None:
    ranks = [found.a.shape[0] for found in factors]
    if len(set(ranks)) > 1:
        raise MergeImpossible(
            f"`{strategy}` needs equal ranks, and in {module_path(module)} they are {', '.join(map(str, ranks))}; "
            f"`{MergeStrategy.CAT}` and `{MergeStrategy.SVD}` do not"
        )


def _combined(
    factors: Sequence[Factors],
    weights: Sequence[float],
    seeds: Sequence[bytes],
    recipe: MergeRecipe,
    strategy: MergeStrategy,
) -> Factors:
    strengths = [weight * found.scale for weight, found in zip(weights, factors, strict=True)]
    roots = np.sqrt(np.abs(np.array(strengths, dtype=np.float32)))
    signs = np.where(np.array(strengths) >= 0, np.float32(1), np.float32(-1))
    sides = []
    for part, weighted in enumerate((signs * roots, roots)):
        tensors = [found.b if part else found.a for found in factors]
        if strategy in PRUNING and recipe.density < 1:
            tensors = [
                _pruned(tensor, recipe.density, strategy, own + bytes([part]))
                for tensor, own in zip(tensors, seeds, strict=True)
            ]
        stacked = np.stack(tensors)
        scaled = stacked * weighted[:, None, None]
        if strategy in (MergeStrategy.TIES, MergeStrategy.DARE_TIES):
            agrees = _agreement(stacked, recipe.signs)
            sides.append((scaled * agrees).sum(axis=0) / np.maximum(agrees.sum(axis=0, dtype=np.float32), 1))
        else:
            sides.append(scaled.sum(axis=0))
    return Factors(sides[0], sides[1], 1.0)


def _pruned(tensor: Float, density: float, strategy: MergeStrategy, seed: bytes) -> Float:
    if strategy in (MergeStrategy.DARE_LINEAR, MergeStrategy.DARE_TIES):
        return np.where(random_mask(tensor.shape, density, seed), tensor / np.float32(density), np.float32(0))
    keep = int(density * tensor.size)
    pruned = np.zeros_like(tensor)
    if keep:
        largest = np.argpartition(np.abs(tensor), tensor.size - keep, axis=None)[tensor.size - keep :]
        pruned.flat[largest] = tensor.flat[largest]
    return pruned


def random_mask(shape: tuple[int, ...], density: float, seed: bytes) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return a mask that is True with probability `density`.

    The same seed gives the same mask on every machine, because the raw bits of Philox are specified.
    """
    key = np.frombuffer(hashlib.sha256(seed).digest()[:16], dtype="<u8")
    bits = np.random.Philox(key=key).random_raw(int(np.prod(shape)))
    return ((bits >> np.uint64(11)) < np.uint64(density * 2**53)).reshape(shape)


def _mask_seed(seed: bytes, module: Module, member: int) -> bytes:
    return seed + b"%d %d %d " % (*module, member)


def _agreement(stacked: Float, method: SignMethod) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return a mask of the values that have the elected sign of their place; unweighted values vote."""
    signs = np.sign(stacked)
    votes = (stacked if method is SignMethod.TOTAL else signs).sum(axis=0)
    agrees: np.ndarray[Any, np.dtype[np.bool_]] = signs == np.where(votes >= 0, np.float32(1), np.float32(-1))
    return agrees


def _concatenated(factors: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Return the concatenation of the factors. It is exact for any ranks, and its rank is the sum of theirs."""
    a = np.concatenate(
        [np.float32(weight * found.scale) * found.a for weight, found in zip(weights, factors, strict=True)]
    )
    return Factors(a, np.concatenate([found.b for found in factors], axis=1), 1.0)


def _decomposed(factors: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Return the best approximation of the sum at the largest of the ranks: B = U·S, A = Vᵀ.

    The sum has a rank of at most Σr. So the function decomposes a small matrix between two orthogonal bases, not the
    whole sum.
    """
    rank = max(found.a.shape[0] for found in factors)
    a, b, _ = _concatenated(factors, weights)
    left, left_upper = np.linalg.qr(b.astype(np.float64))
    right, right_upper = np.linalg.qr(a.T.astype(np.float64))
    u, singular, v = np.linalg.svd(left_upper @ right_upper.T)
    rank = min(rank, len(singular))
    return Factors(
        (right @ v[:rank].T).T.astype(np.float32),
        ((left @ u[:, :rank]) * singular[:rank]).astype(np.float32),
        1.0,
    )
