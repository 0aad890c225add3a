"""Draws, scores and masks of logits on the device, by the rules of `kernels/sampling.py`; ids and scores come back.

Weights are whole numbers here, in units of 2**-40 of the best token's. Sums of whole numbers are exact in any order, so
that a row's draw has no other row of the batch in it, whatever the device's order of summation is. A token may differ
from the specification's only where a target lies within such a unit of a running sum.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from manylora.kernels.sampling import RowNumbers, SamplingRules, TokenMasks, TokenScore, uniform

_UNITS = 2.0**40
_MOST_ELEMENTS = 1 << 21
"""Logits that are ranked at once: each takes some fifty bytes until its row has drawn."""
_COLDEST, _HOTTEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_COLUMNS = ("temperature", "top_p", "min_p", "typical_p", "top_k")


def sample_on_device(logits: Tensor, rules: SamplingRules) -> tuple[list[int], list[float]]:
    """Return each row's token and its highest logit, as `sampling.sample_tokens`; both come to the host in one copy."""
    if not len(logits):
        return [], []
    best = logits.argmax(dim=1)  # the first of equal ones
    peaks = logits.gather(1, best[:, None])[:, 0]
    drawn = np.flatnonzero(rules["temperature"])
    tokens = best
    if drawn.size:
        tokens = best.clone()
        for some in _parts(drawn.size, logits.shape[1]):
            rows = torch.from_numpy(drawn[some]).to(logits.device)
            is_finite = peaks[rows].isfinite()
            # Infinities and NaN would make places outside the vocabulary of such a row's draw.
            own, highest = logits[rows].where(is_finite[:, None], 0.0), peaks[rows].where(is_finite, 0.0)
            tokens[rows] = _draw(own, highest, rules[drawn[some]]).where(is_finite, best[rows])
    both = torch.stack((tokens.double(), peaks.double()))
    places, values = both.tolist()
    return [int(place) for place in places], values


def score_on_device(logits: Tensor, tokens: Sequence[int], num_alternatives: Sequence[int]) -> list[TokenScore]:
    """Return the scores of given tokens, as `sampling.score_tokens`; they come to the host in one copy."""
    if not tokens:
        return []
    count = min(max(num_alternatives), logits.shape[1])
    given = torch.tensor(tokens, device=logits.device)
    parts = [_scores(logits[rows], given[rows], count) for rows in _parts(*logits.shape)]
    found = torch.cat(parts).tolist()
    return [
        TokenScore(row[0], row[1], tuple(zip(map(int, row[2 : 2 + most]), row[2 + count :], strict=False)))
        if np.isfinite(row[0])
        else TokenScore(row[0])
        for row, most in zip(found, num_alternatives, strict=True)
    ]


def mask_on_device(logits: Tensor, rows: RowNumbers, masks: TokenMasks) -> None:
    """Set the logits of tokens outside their row's mask to -Inf, as `sampling.mask_logits`.

    Masks come to the device as they are, a bit a token, and are unpacked there.
    """
    tokens = torch.arange(logits.shape[1], device=logits.device)
    missing = max(0, -(-logits.shape[1] // 32) - masks.shape[1])
    words = torch.from_numpy(np.pad(masks, ((0, 0), (0, missing))).view(np.int32)).to(logits.device)
    may_come = (words.index_select(1, tokens >> 5) >> (tokens & 31)) & 1
    chosen = torch.from_numpy(rows).to(logits.device)
    logits.index_copy_(0, chosen, logits.index_select(0, chosen).masked_fill_(may_come == 0, -torch.inf))


def _parts(rows: int, vocab: int) -> Iterator[slice]:
    """Yield rows in order, as many at once as have `_MOST_ELEMENTS` logits, or one."""
    most = max(1, _MOST_ELEMENTS // vocab)
    for first in range(0, rows, most):
        yield slice(first, min(first + most, rows))


def _scores(logits: Tensor, tokens: Tensor, count: int) -> Tensor:
    """Return peak, own score, and ids and scores of the `count` best tokens: (rows, 2 + 2 * count) float64."""
    peaks = logits.max(dim=1, keepdim=True).values
    weights = _masses((logits - peaks).exp()).sum(dim=1, keepdim=True)
    normalisers = peaks.double() + (weights.double() / _UNITS).log()
    found = [peaks.double(), logits.gather(1, tokens[:, None]).double() - normalisers]
    if count:
        ids = _best(logits, count)
        found += [ids.double(), logits.gather(1, ids).double() - normalisers]
    return torch.cat(found, dim=1)


def _draw(logits: Tensor, peaks: Tensor, rules: SamplingRules) -> Tensor:
    """Return the token drawn from each row's filtered distribution.

    Args:  logits (rows, vocab), peaks (rows,), all of them finite
    """
    columns = [rules[name].astype(np.float64) for name in _COLUMNS]
    columns.append(np.array([uniform(int(rule["seed"]), int(rule["position"])) for rule in rules]))
    given = torch.from_numpy(np.stack(columns)).to(logits.device)[:, :, None]
    temperature, top_p, min_p, typical_p, top_k, target = given
    ranked, tokens = (logits + 0.0).sort(dim=1, descending=True, stable=True)  # +0.0 makes +0 of -0
    scores = (ranked - peaks[:, None]) / temperature.clamp(_COLDEST, _HOTTEST).float()
    weights = scores.exp()
    masses = _masses(weights)
    ranks = torch.arange(logits.shape[1], device=logits.device)
    if rules["top_k"].any():
        masses = masses.where((top_k == 0) | (ranks < top_k), 0)
    if (rules["top_p"] < 1.0).any():
        running = masses.cumsum(dim=1)
        last = (running.double() < top_p * running[:, -1:]).sum(dim=1, keepdim=True)
        masses = masses.where((top_p >= 1.0) | (ranks <= last), 0)
    if rules["min_p"].any():
        masses = masses.where(weights >= weights[:, :1] * min_p.float(), 0)
    if rules["typical_p"].any():
        masses = masses.where((typical_p == 0) | _are_typical(scores, weights, masses, typical_p), 0)
    running = masses.cumsum(dim=1)
    total = running[:, -1:]
    place = (running.double() <= target * total).sum(dim=1, keepdim=True)
    # A product just below the total may be rounded to it, and then lies past the last token.
    place = place.minimum((running < total).sum(dim=1, keepdim=True))
    return tokens.gather(1, place)[:, 0]


def _are_typical(scores: Tensor, weights: Tensor, masses: Tensor, typical_p: Tensor) -> Tensor:
    """Return the candidates with the surprise nearest the entropy that hold this share of the mass: (rows, vocab)."""
    total = masses.sum(dim=1, keepdim=True)
    surprise = (total.double() / _UNITS).log().float() - scores
    is_left = masses > 0
    terms = _masses((weights * surprise).where(is_left, 0)).sum(dim=1, keepdim=True)
    distance = (surprise - (terms.double() / total).float()).abs().where(is_left, torch.inf)
    nearest, order = distance.sort(dim=1, stable=True)
    running = masses.gather(1, order).cumsum(dim=1)
    last = (running.double() < typical_p * total).sum(dim=1, keepdim=True)
    last = last.minimum(is_left.sum(dim=1, keepdim=True) - 1)
    return distance <= nearest.gather(1, last)


def _masses(weights: Tensor) -> Tensor:
    """Return weights of at most some hundreds as whole numbers of `_UNITS`: int64, whose sums do not overflow."""
    return (weights.double() * _UNITS).round().long()


def _best(logits: Tensor, count: int) -> Tensor:
    """Return the ids of the `count` highest logits of each row, the lower id first among equals: (rows, count).

    Value and id are one whole number, so that no two are equal; cf. `sampling.ranked_best`.
    """
    bits = (logits + 0.0).contiguous().view(torch.int32).long()
    ascending = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # a negative's bits grow as it falls
    ids = torch.arange(logits.shape[1], device=logits.device)
    keys = (ascending << 32) | (0xFFFFFFFF - ids)
    return 0xFFFFFFFF - (keys.topk(count, dim=1).values & 0xFFFFFFFF)
