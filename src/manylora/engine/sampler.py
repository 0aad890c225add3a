"""Draws each sequence's next token from its logits, so that no row's draw depends on another's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manylora.engine.penalties import Penalties
from manylora.engine.request import SamplingParams

_Floats = NDArray[np.float32]
_Indices = NDArray[np.int64]

_HEADS = (1024, 8192)
"""How many of the best tokens are ranked before the whole vocabulary is. A choice of speed only: a running sum over
the first n ranks has the same bits however many ranks follow."""

_GROUP = 16
"""Scores in one group when looking for the best few; a choice of speed only."""

_COLDEST = float(np.finfo(np.float32).tiny)
_HOTTEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRow:
    """What one row of logits is drawn with.

    position   index in its sequence of the token drawn: `len(tokens)` before it is appended
    penalties  the sequence's own, `Penalties.of(params, prompt)`; None where the parameters ask for none
    """

    params: SamplingParams
    position: int
    penalties: Penalties | None = None

    @property
    def is_plain_greedy(self) -> bool:
        """The row's best logit alone answers it."""
        return self.params.is_greedy and self.penalties is None and self.params.num_logprobs is None

    def after(self, token_id: int) -> "SamplingRow":
        """What the next token of the sequence is drawn with once this one is part of it."""
        penalties = None if self.penalties is None else self.penalties.after(token_id)
        return replace(self, position=self.position + 1, penalties=penalties)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One row's answer.

    logprob       as in `TokenEvent`: natural, penalties and biases applied, before temperature and filters, unclamped
    alternatives  the most likely (token id, logprob) pairs, best first, as many as asked for
    is_finite     False if the row holds a NaN or +Inf, or nothing but -Inf: `token_id` then only says where the worst
                  value stands, and the engine ends that row's request
    """

    token_id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
    is_finite: bool = True


def sample(logits: Tensor, rows: Sequence[SamplingRow]) -> list[Drawn]:
    """Draw one token for each row; the same row gives the same bits in any batch.

    Semantics, row by row: penalties and biases; greedy takes the highest logit, the lowest id among equals. Otherwise
    divide by temperature, then filter by top_k, top_p, min_p and typical_p in this order, each over what the one before
    left, and invert the running sum of the probabilities left, ranked from high to low (lowest id first among equals),
    at `uniform(seed, position)`.
    Args:       logits (len(rows), vocab) float32, on any device, left unchanged; -Inf marks tokens that may not come
    Returns:    one `Drawn` for each row, in order
    Complexity: greedy one pass over the row; sampled a few passes and a selection; a full sort only for a flat row
    Source:     top_k: arXiv 1805.04833; top_p: arXiv 1904.09751; typical_p: arXiv 2202.00666; min_p: arXiv 2407.01082.
                The order and the sets kept are those of transformers' logits processors, but for ties at the edge of
                top_k and top_p, where lower ids stay and higher ones go: exactly k tokens, and top_k = 1 is greedy.
    """
    return [drawn for (drawn,) in sample_ahead(logits, rows, [()] * len(rows))]


def sample_ahead(
    logits: Tensor, rows: Sequence[SamplingRow], guesses: Sequence[tuple[int, ...]]
) -> list[tuple[Drawn, ...]]:
    """Draw one token for each row, then one more after each guessed token that is the one drawn.

    Semantics, row by row:
        for guessed in (*guess, None):
            drawn = `sample` of the next logits of this row, at its position, with all drawn before it counted
            if drawn is not finite, or not the guessed: break
    So the tokens are those that as many calls of `sample` would give, and what a wrong guess led to is never read.
    Args:    logits (len(rows) + tokens guessed, vocab) float32: each row's own logits, then those after each guessed
             token; `rows` as for the first of these
    Returns: for each row, at least one `Drawn`: all but the last are its guess, as far as that was right
    """
    assert logits.dtype == torch.float32
    counts = [1 + len(guess) for guess in guesses]
    assert logits.shape[0] == sum(counts)
    if not rows:
        return []
    best, peaks = _peaks(logits)
    owners = [row for row, count in zip(rows, counts, strict=True) for _ in range(count)]
    whole = _on_host(logits, [index for index, row in enumerate(owners) if not row.is_plain_greedy])
    answered: list[tuple[Drawn, ...]] = []
    start = 0
    # Extreme penalties and temperatures may overflow to an infinity, which is then either a weight of 0 or not finite.
    with np.errstate(over="ignore", invalid="ignore"):
        for row, guess, count in zip(rows, guesses, counts, strict=True):
            drawn = [_answer_at(start, row, whole, best, peaks)]
            while len(drawn) < count and drawn[-1].is_finite and drawn[-1].token_id == guess[len(drawn) - 1]:
                row = row.after(drawn[-1].token_id)
                drawn.append(_answer_at(start + len(drawn), row, whole, best, peaks))
            answered.append(tuple(drawn))
            start += count
    return answered


def uniform(seed: int, position: int) -> float:
    """Return the number in [0, 1) that decides the draw at this position, a pure function of the two.

    Args:    seed uint64; position ≥ 0
    Source:  Philox4x64-10, a counter-based generator (Salmon et al., SC 2011): the seed is its key, the position its
             counter. The raw stream is used because numpy promises to keep that, and not `Generator.random`, for good.
    """
    bits = int(np.random.Philox(key=seed, counter=position).random_raw())
    return (bits >> 11) * 2.0**-53


def _peaks(logits: Tensor) -> tuple[list[int], list[float]]:
    """Each row's first best token and its logit. A NaN is best of all, so the logit also tells a broken row."""
    if logits.device.type == "cpu":
        # On a CPU numpy's argmax takes a tenth of the time of torch's, with the same rules for ties and NaN.
        matrix = logits.detach().numpy()
        columns = matrix.argmax(axis=1)
        return columns.tolist(), matrix[np.arange(len(matrix)), columns].tolist()
    values, indices = logits.max(dim=1)
    return indices.tolist(), values.tolist()


def _on_host(logits: Tensor, wanted: list[int]) -> dict[int, _Floats]:
    """The rows that need more than their peak, by index; from a device they come in one copy."""
    if not wanted:
        return {}
    if logits.device.type == "cpu":
        matrix = logits.detach().contiguous().numpy()
        return {index: matrix[index] for index in wanted}
    copied = logits[torch.tensor(wanted, device=logits.device)].cpu().numpy()
    return dict(zip(wanted, copied, strict=True))


def _answer_at(index: int, row: SamplingRow, whole: dict[int, _Floats], best: list[int], peaks: list[float]) -> Drawn:
    """Draw from the logits at `index`; `whole` holds them unless their peak is all that `row` needs."""
    if index in whole:
        return _answer(whole[index], row, best[index], peaks[index])
    return Drawn(token_id=best[index], is_finite=math.isfinite(peaks[index]))


def _answer(logits: _Floats, row: SamplingRow, best: int, peak: float) -> Drawn:
    if row.penalties is not None:
        logits = row.penalties.apply(logits)
        best = int(logits.argmax())
        peak = float(logits[best])
    if not math.isfinite(peak):
        return Drawn(token_id=best, is_finite=False)
    params = row.params
    token_id = best if params.is_greedy else _draw(logits, peak, params, uniform(params.seed, row.position))
    if params.num_logprobs is None:
        return Drawn(token_id=token_id)
    normaliser = peak + math.log(_sum(np.exp(logits - np.float32(peak))))
    return Drawn(
        token_id=token_id,
        logprob=float(logits[token_id]) - normaliser,
        alternatives=tuple(
            (token, float(logits[token]) - normaliser)
            for token in _ranked_best(logits, min(params.num_logprobs, len(logits))).tolist()
        ),
    )


@dataclass(frozen=True, slots=True)
class _Candidates:
    """The tokens still in the draw.

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
        """As `_ranked_to`, by likelihood."""
        if self.is_ranked:
            return np.arange(len(self.scores)), np.cumsum(self.weights, dtype=np.float64)
        return _ranked_to(self.scores, self.weights, mass)


def _draw(logits: _Floats, peak: float, params: SamplingParams, point: float) -> int:
    """Return the token at `point` of the filtered distribution. `logits` holds no NaN, and its finite peak."""
    left = _candidates(logits, peak, params)
    if params.top_p < 1.0:
        left = left.take(_nucleus(left, params.top_p), is_ranked=True)
    if params.min_p > 0.0:
        likely = np.flatnonzero(left.weights >= left.weights.max() * np.float32(params.min_p))
        left = left.take(likely, is_ranked=left.is_ranked)
    if params.typical_p is not None:
        left = left.take(_typical(left, params.typical_p), is_ranked=left.is_ranked)
    target = point * _sum(left.weights)
    ranked, running = left.ranked_to(target)
    # The two sums may differ in their last bit, and a point just below 1 then lies past the end.
    drawn = ranked[min(int(np.searchsorted(running, target, side="right")), len(ranked) - 1)]
    return int(drawn if left.tokens is None else left.tokens[drawn])


def _candidates(logits: _Floats, peak: float, params: SamplingParams) -> _Candidates:
    """Apply temperature and top_k, and drop what cannot be drawn: a weight of 0 is -Inf or too small for float32."""
    tokens: _Indices | None = None
    if params.top_k is not None and params.top_k < len(logits):
        tokens = _ranked_best(logits, params.top_k)
        logits = logits[tokens]
    # A temperature outside float32 would be 0 or infinite there, and make 0 / 0 of the best or Inf / Inf of a barred.
    temperature = np.float32(min(max(params.temperature, _COLDEST), _HOTTEST))
    scores = (logits - np.float32(peak)) / temperature
    weights = np.exp(scores)
    drawable = np.flatnonzero(weights > 0)
    left = _Candidates(tokens, scores, weights, is_ranked=tokens is not None)
    return left if len(drawable) == len(weights) else left.take(drawable, is_ranked=left.is_ranked)


def _nucleus(left: _Candidates, mass: float) -> _Indices:
    """The fewest of the most likely candidates that hold at least this share of the weight, ranked."""
    target = mass * _sum(left.weights)
    ranked, running = left.ranked_to(target)
    return ranked[: int(np.searchsorted(running, target, side="left")) + 1]


def _typical(left: _Candidates, mass: float) -> _Indices:
    """The candidates whose surprise is nearest the entropy and that hold at least this share, in the order given.

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
    """Rank until the running sum of weights passes `mass`, or all: indices from the highest score, and that sum."""
    head = 0
    reached, smallest = 0.0, 1.0
    for size in (*_HEADS, len(scores)):
        # What follows should weigh no more than the last ranked, so a head too short for the mass is passed over.
        if size < len(scores) and reached + (size - head) * smallest <= mass:
            continue
        head = min(size, len(scores))
        ranked = _ranked_best(scores, head)
        running = np.cumsum(weights[ranked], dtype=np.float64)
        reached, smallest = float(running[-1]), float(weights[ranked[-1]])
        if reached > mass or head == len(scores):
            break
    return ranked, running


def _ranked_best(scores: _Floats, count: int) -> _Indices:
    """Return the indices of the `count` highest scores, highest first, the lower index first among equals.

    Score and index are packed in one integer, so that a plain sort, which numpy vectorises, does what a stable sort
    would in five times as long.
    """
    if count == 0:
        return np.empty(0, dtype=np.int64)
    if count < len(scores):
        chosen = np.flatnonzero(scores >= _floor(scores, count))
        scores = scores[chosen]
    else:
        chosen = np.arange(len(scores))
    bits = (scores + np.float32(0)).view(np.uint32)  # the sum makes +0 of -0: equal scores must have equal bits
    # IEEE order as integer order, best first: a negative's bits grow as it falls, a positive's must be turned round.
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
