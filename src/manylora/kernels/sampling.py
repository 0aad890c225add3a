"""Sampling of tokens from logits, in numpy: the specification for every back end.

Semantics, row by row: greedy (temperature 0) takes the highest logit, the lowest id among equals. Otherwise divide by
temperature, then filter by top_k, top_p, min_p and typical_p in this order, each over the rest of the one before, and
invert the running sum of the probabilities left, ranked from high to low (lowest id first among equals), at
`uniform(seed, position)`.

Source: top_k: arXiv 1805.04833; top_p: arXiv 1904.09751; typical_p: arXiv 2202.00666; min_p: arXiv 2407.01082. The
order and the sets kept are those of transformers' logits processors, but for ties at the edge of top_k and top_p, where
lower ids stay and higher ones go: exactly k tokens, and top_k = 1 is greedy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SamplingRules = NDArray[Any]
"""(rows,) of `SAMPLING_RULE`: the sampling parameters of each row of logits."""

SAMPLING_RULE = np.dtype(
    [
        ("seed", np.uint64),
        ("position", np.uint64),  # of the token drawn, in its sequence
        ("temperature", np.float64),  # 0: greedy
        ("top_p", np.float64),
        ("min_p", np.float64),
        ("typical_p", np.float64),  # 0: off
        ("top_k", np.int64),  # 0: all
    ]
)

TokenMasks = NDArray[np.uint32]
"""(masks, words): bit `token % 32` of word `token // 32` is set if the token may come; later tokens may not."""
RowNumbers = NDArray[np.int64]
"""(masks,) indices of rows of logits, each once."""

_Floats = NDArray[np.float32]
_Indices = NDArray[np.int64]

_HEADS = (1024, 8192)
"""Numbers of best tokens to rank before the whole vocabulary. They change the speed only: a running sum over the
first n ranks has the same bits however many ranks follow."""

_GROUP = 16
"""Scores in one group when looking for the best few; a choice of speed only."""

_COLDEST = float(np.finfo(np.float32).tiny)
_HOTTEST = float(np.finfo(np.float32).max)


def sample_tokens(logits: Tensor, rules: SamplingRules) -> tuple[list[int], list[float]]:
    """Return each row's token and its highest logit; a row whose highest is not finite gets the index of that one.

    Args:       logits (len(rules), vocab) float32, on any device, left unchanged; -Inf excludes a token
    Complexity: greedy one pass over the row; sampled a few passes and a selection; a full sort only for a flat row
    """
    matrix = logits.detach().cpu().numpy()
    best = matrix.argmax(axis=1)
    peaks = matrix[np.arange(len(matrix)), best].tolist()
    tokens = best.tolist()
    # Extreme temperatures may overflow to an infinity, which is then a weight of 0.
    with np.errstate(over="ignore", invalid="ignore"):
        for index in np.flatnonzero(rules["temperature"]).tolist():
            if math.isfinite(peaks[index]):
                tokens[index] = _draw(matrix[index], peaks[index], rules[index])
    return tokens, peaks


class TokenScore(NamedTuple):
    """The score of one token of one row of logits.

    peak          the row's highest logit, NaN if the row has one; if it is not finite, the others mean nothing
    logprob       natural, before temperature and filters
    alternatives  the most likely (token id, logprob) pairs, best first, as many as asked for
    """

    peak: float
    logprob: float = 0.0
    alternatives: tuple[tuple[int, float], ...] = ()


def score_tokens(logits: Tensor, tokens: Sequence[int], num_alternatives: Sequence[int]) -> list[TokenScore]:
    """Return the scores of given tokens, one for each row, with as many alternatives beside each.

    Args:  logits (len(tokens), vocab) float32, in host memory, left unchanged
    """
    matrix = logits.detach().contiguous().numpy()
    rows = zip(matrix, tokens, num_alternatives, strict=True)
    return [_score(row, token, most) for row, token, most in rows]


def _score(logits: _Floats, token: int, num_alternatives: int) -> TokenScore:
    peak = float(logits.max())
    if not math.isfinite(peak):
        return TokenScore(peak)
    normaliser = peak + math.log(float(np.exp(logits - np.float32(peak)).sum(dtype=np.float64)))
    best = ranked_best(logits, min(num_alternatives, len(logits))).tolist()
    alternatives = tuple((each, float(logits[each]) - normaliser) for each in best)
    return TokenScore(peak, float(logits[token]) - normaliser, alternatives)


def mask_logits(logits: Tensor, rows: RowNumbers, masks: TokenMasks) -> None:
    """Set the logits of tokens outside their row's mask to -Inf, in place; mask i is that of row `rows[i]`.

    Args:  logits (rows, vocab) float32, on any device; the words of a mask may be more or fewer than the vocabulary's
    """
    vocab = logits.shape[1]
    bits = np.unpackbits(masks.astype("<u4", copy=False).view(np.uint8), axis=1, bitorder="little")[:, :vocab]
    barred = torch.from_numpy(np.pad(bits == 0, ((0, 0), (0, vocab - bits.shape[1])), constant_values=True))
    chosen = torch.from_numpy(rows).to(logits.device)
    logits[chosen] = logits[chosen].masked_fill(barred.to(logits.device), -math.inf)


def uniform(seed: int, position: int) -> float:
    """Return the number in [0, 1) that decides the draw at this position, a pure function of the two.

    Args:    seed uint64; position ≥ 0
    Source:  Philox4x64-10, a counter-based generator (Salmon et al., SC 2011): the seed is its key, the position its
             counter. numpy promises to keep the raw stream for good, but not `Generator.random`.
    """
    bits = int(np.random.Philox(key=seed, counter=position).random_raw())
    return (bits >> 11) * 2.0**-53


@dataclass(frozen=True, slots=True)
class _Candidates:
    """The tokens that a draw still considers.

    tokens     (n,) their ids; None is the whole vocabulary
    scores     (n,) (logit - highest logit) / temperature, at most 0
    weights    (n,) exp(scores), more than 0: probabilities but for a common factor
    is_ranked  from the highest score to the lowest, lower ids first among equals; else ids ascend
    """

    tokens: _Indices | None
    scores: _Floats
    weights: _Floats
    is_ranked: bool

    def take(self, kept: _Indices, *, is_ranked: bool) -> "_Candidates":
        tokens = kept if self.tokens is None else self.tokens[kept]
        return _Candidates(tokens, self.scores[kept], self.weights[kept], is_ranked)

    def ranked_to(self, mass: float) -> tuple[_Indices, NDArray[np.float64]]:
        """Return the candidates as `_ranked_to` does, by likelihood."""
        if self.is_ranked:
            return np.arange(len(self.scores)), np.cumsum(self.weights, dtype=np.float64)
        return _ranked_to(self.scores, self.weights, mass)


def _draw(logits: _Floats, peak: float, rule: Any) -> int:
    """Return the token drawn from the filtered distribution. `logits` holds no NaN, and its finite peak."""
    left = _candidates(logits, peak, int(rule["top_k"]), float(rule["temperature"]))
    if rule["top_p"] < 1.0:
        left = left.take(_nucleus(left, float(rule["top_p"])), is_ranked=True)
    if rule["min_p"] > 0.0:
        likely = np.flatnonzero(left.weights >= left.weights.max() * np.float32(rule["min_p"]))
        left = left.take(likely, is_ranked=left.is_ranked)
    if rule["typical_p"] > 0.0:
        left = left.take(_typical(left, float(rule["typical_p"])), is_ranked=left.is_ranked)
    target = uniform(int(rule["seed"]), int(rule["position"])) * _sum(left.weights)
    ranked, running = left.ranked_to(target)
    # The two sums may differ in their last bit, and a point just below 1 then lies past the end.
    drawn = ranked[min(int(np.searchsorted(running, target, side="right")), len(ranked) - 1)]
    return int(drawn if left.tokens is None else left.tokens[drawn])


def _candidates(logits: _Floats, peak: float, top_k: int, temperature: float) -> _Candidates:
    """Apply temperature and top_k, and drop tokens of weight 0, as a logit of -Inf has it."""
    tokens: _Indices | None = None
    if 0 < top_k < len(logits):
        tokens = ranked_best(logits, top_k)
        logits = logits[tokens]
    # A temperature outside float32 would be 0 or infinite: 0 / 0 for the best, Inf / Inf for an excluded token.
    scores = (logits - np.float32(peak)) / np.float32(min(max(temperature, _COLDEST), _HOTTEST))
    weights = np.exp(scores)
    drawable = np.flatnonzero(weights > 0)
    left = _Candidates(tokens, scores, weights, is_ranked=tokens is not None)
    return left if len(drawable) == len(weights) else left.take(drawable, is_ranked=left.is_ranked)


def _nucleus(left: _Candidates, mass: float) -> _Indices:
    """Return the fewest of the most likely candidates that hold at least this share of the weight, ranked."""
    target = mass * _sum(left.weights)
    ranked, running = left.ranked_to(target)
    return ranked[: int(np.searchsorted(running, target, side="left")) + 1]


def _typical(left: _Candidates, mass: float) -> _Indices:
    """Return the candidates with the surprise nearest the entropy that hold at least this share, in the order given.

    Candidates equally near stay together.
    """
    total = _sum(left.weights)
    surprise = np.float32(math.log(total)) - left.scores
    entropy = _sum(left.weights * surprise) / total
    distance = np.abs(surprise - np.float32(entropy))
    target = mass * total
    ranked, running = _ranked_to(-distance, left.weights, target)
    last = ranked[min(int(np.searchsorted(running, target, side="left")), len(ranked) - 1)]
    return np.flatnonzero(distance <= distance[last])


def _sum(values: _Floats) -> float:
    # numpy adds pairwise in a fixed order; a BLAS dot would not promise one, and so not the same bits in every batch.
    return float(values.sum(dtype=np.float64))


def _ranked_to(scores: _Floats, weights: _Floats, mass: float) -> tuple[_Indices, NDArray[np.float64]]:
    """Return indices from the highest score, and their running sum of weights, until it passes `mass`."""
    head = 0
    reached, smallest = 0.0, 1.0
    for size in (*_HEADS, len(scores)):
        # Later ranks weigh no more than the last one, so a head that is too short for the mass is not ranked.
        if size < len(scores) and reached + (size - head) * smallest <= mass:
            continue
        head = min(size, len(scores))
        ranked = ranked_best(scores, head)
        running = np.cumsum(weights[ranked], dtype=np.float64)
        reached, smallest = float(running[-1]), float(weights[ranked[-1]])
        if reached > mass or head == len(scores):
            break
    return ranked, running


def ranked_best(scores: _Floats, count: int) -> _Indices:
    """Return the indices of the `count` highest scores, highest first, the lower index first among equals.

    Score and index are packed in one integer, so that a plain sort, which numpy vectorises, takes a fifth of the time
    of a stable sort.
    """
    if count == 0:
        return np.empty(0, dtype=np.int64)
    if count < len(scores):
        chosen = np.flatnonzero(scores >= _floor(scores, count))
        scores = scores[chosen]
    else:
        chosen = np.arange(len(scores))
    bits = (scores + np.float32(0)).view(np.uint32)  # the sum makes +0 of -0: equal scores must have equal bits
    # IEEE order as integer order, best first: a negative's bits grow as it falls, a positive's must be inverted.
    bits ^= ((bits >> np.uint32(31)) - np.uint32(1)) & np.uint32(0x7FFFFFFF)
    keys = bits.astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= chosen.view(np.uint64)
    keys.sort()
    return (keys[:count] & np.uint64(0xFFFFFFFF)).view(np.int64)


def _floor(scores: _Floats, count: int) -> np.float32:
    """Return a value that at least `count` scores reach, and few more: 0 < count < len(scores).

    Each of the `count` best of the groups' maxima is such a score, and there are far fewer groups than scores.
    """
    groups = len(scores) // _GROUP
    if count <= groups // 2:
        scores = scores[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
    floor: np.float32 = np.partition(scores, len(scores) - count)[len(scores) - count]
    return floor
