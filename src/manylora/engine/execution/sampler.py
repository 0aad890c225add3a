"""Draws each sequence's next token from its logits, so that no row's draw depends on another's."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manylora.engine.penalties import Penalties
from manylora.engine.request import SamplingParams
from manylora.kernels.sampling import RULE, Rules, draw_tokens, ranked_best

Draw = Callable[[Tensor, Rules], tuple[list[int], list[float]]]
"""A back end's `Kernels.draw`."""

_Floats = NDArray[np.float32]
MAX_TOP_K = 2**31 - 1
"""No vocabulary has as many tokens. A greater `top_k` may not fit a row of `RULE`, and would fail the whole step."""


class SamplingRow(NamedTuple):
    """What one row of logits is drawn with.

    position   index in its sequence of the token drawn: `len(tokens)` before it is appended
    penalties  the sequence's own, `Penalties.of(params, prompt)`; None where the parameters ask for none
    """

    params: SamplingParams
    position: int
    penalties: Penalties | None = None

    @property
    def rule(self) -> tuple[int, int, float, float, float, float, int]:
        """A row of `RULE`."""
        of, top_k = self.params, min(self.params.top_k or 0, MAX_TOP_K)
        return of.seed, self.position, of.temperature, of.top_p, of.min_p, of.typical_p or 0.0, top_k

    def after(self, token_id: int) -> "SamplingRow":
        """What the next token of the sequence is drawn with once this one is part of it."""
        penalties = None if self.penalties is None else self.penalties.after(token_id)
        return self._replace(position=self.position + 1, penalties=penalties)


class Drawn(NamedTuple):
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


def sample(logits: Tensor, rows: Sequence[SamplingRow], draw: Draw = draw_tokens) -> list[Drawn]:
    """Draw one token for each row, penalties and biases first; the same row gives the same bits in any batch.

    Args:       logits (len(rows), vocab) float32, on any device, left unchanged; -Inf marks tokens that may not come
                draw, how tokens are drawn (`sampling.py` has the semantics)
    Returns:    one `Drawn` for each row, in order
    """
    assert logits.dtype == torch.float32
    assert logits.shape[0] == len(rows)
    if not rows:
        return []
    rules = np.array([row.rule for row in rows], dtype=RULE)
    tokens, peaks = draw(logits, rules)
    changed = {index: row.penalties for index, row in enumerate(rows) if row.penalties is not None}
    own = _on_host(
        logits, [index for index, row in enumerate(rows) if index in changed or row.params.num_logprobs is not None]
    )
    # Extreme penalties may overflow to an infinity, which is then not finite.
    with np.errstate(over="ignore", invalid="ignore"):
        for index, penalties in changed.items():
            own[index] = penalties.apply(own[index])
    if changed:
        redrawn = draw(torch.from_numpy(np.stack([own[index] for index in changed])), rules[list(changed)])
        for index, token, peak in zip(changed, *redrawn, strict=True):
            tokens[index], peaks[index] = token, peak
    return [
        _answer(row, token, peak, own.get(index))
        for index, (row, token, peak) in enumerate(zip(rows, tokens, peaks, strict=True))
    ]


def sample_ahead(
    logits: Tensor, rows: Sequence[SamplingRow], drafts: Sequence[tuple[int, ...]], draw: Draw = draw_tokens
) -> list[tuple[Drawn, ...]]:
    """Draw one token for each row, then one more after each draft token that equals the token drawn.

    Semantics, row by row:
        for draft_token in (*draft, None):
            drawn = `sample` of the next logits of this row, at its position, with all drawn before it counted
            if drawn is not finite, or not the draft token: break
    So the tokens are those that as many calls of `sample` would give; draws after a rejected draft token are dropped.
    Args:    logits (len(rows) + draft tokens, vocab) float32: each row's own logits, then those after each draft
             token; `rows` as for the first of these
    Returns: for each row, at least one `Drawn`: all but the last are its accepted draft tokens
    """
    ahead = [later for row, draft in zip(rows, drafts, strict=True) for later in _ahead(row, draft)]
    drawn = iter(sample(logits, ahead, draw))
    return [_accept(tuple(islice(drawn, 1 + len(draft))), draft) for draft in drafts]


def _ahead(row: SamplingRow, draft: tuple[int, ...]) -> Iterator[SamplingRow]:
    """Yield the row, and then the row after each draft token, as if all before it were accepted."""
    yield row
    for token_id in draft:
        row = row.after(token_id)
        yield row


def _accept(drawn: tuple[Drawn, ...], draft: tuple[int, ...]) -> tuple[Drawn, ...]:
    """Return the draws up to the first that rejects its draft token or is not finite, this one included."""
    accepted = 0
    while accepted < len(draft) and drawn[accepted].is_finite and drawn[accepted].token_id == draft[accepted]:
        accepted += 1
    return drawn[: accepted + 1]


def _on_host(logits: Tensor, wanted: list[int]) -> dict[int, _Floats]:
    """The rows that need more than a draw, by index; from a device they come in one copy."""
    if not wanted:
        return {}
    if logits.device.type == "cpu":
        matrix = logits.detach().contiguous().numpy()
        return {index: matrix[index] for index in wanted}
    copied = logits[torch.tensor(wanted, device=logits.device)].cpu().numpy()
    return dict(zip(wanted, copied, strict=True))


def _answer(row: SamplingRow, token_id: int, peak: float, logits: _Floats | None) -> Drawn:
    if not math.isfinite(peak):
        return Drawn(token_id=token_id, is_finite=False)
    if row.params.num_logprobs is None or logits is None:
        return Drawn(token_id=token_id)
    normaliser = peak + math.log(float(np.exp(logits - np.float32(peak)).sum(dtype=np.float64)))
    return Drawn(
        token_id=token_id,
        logprob=float(logits[token_id]) - normaliser,
        alternatives=tuple(
            (token, float(logits[token]) - normaliser)
            for token in ranked_best(logits, min(row.params.num_logprobs, len(logits))).tolist()
        ),
    )
