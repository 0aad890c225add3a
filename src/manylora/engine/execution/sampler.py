"""Draws each sequence's next token from its logits, so that no row's draw depends on another's."""

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from manylora.engine.events import PromptScore
from manylora.engine.grammars.masks import MaskFiller, Matched
from manylora.engine.grammars.matcher import GrammarMatcher
from manylora.engine.logits_rules import LogitsRules
from manylora.engine.request import SamplingParams
from manylora.engine.ruled_logits import apply_rules
from manylora.kernels.sampling import (
    SAMPLING_RULE,
    RowNumbers,
    SamplingRules,
    TokenMasks,
    TokenScore,
    mask_logits,
    sample_tokens,
    score_tokens,
)

Draw = Callable[[Tensor, SamplingRules], tuple[list[int], list[float]]]
"""A back end's `Kernels.sample`."""
Mask = Callable[[Tensor, RowNumbers, TokenMasks], None]
"""A back end's `Kernels.mask_logits`."""
Score = Callable[[Tensor, Sequence[int], Sequence[int]], list[TokenScore]]
"""A back end's `Kernels.score`."""
MatchedRow = tuple[int, GrammarMatcher, tuple[int, ...]]

MAX_TOP_K = 2**31 - 1
"""No vocabulary has as many tokens. A greater `top_k` may not fit a `SAMPLING_RULE` and would fail the whole step."""


@dataclass(slots=True)
class SamplingRows:
    """The parameters of a draw, column by column; each list has one entry a row.

    positions  index in its sequence of the token drawn: `len(tokens)` before it is appended
    rules      the sequence's own logits rules; None if its parameters ask for none
    matchers   (row, matcher, draft tokens) of the rows with a grammar: their masks are the last rule, and those of the
               draft tokens are of the rows after this one
    """

    params: list[SamplingParams]
    positions: list[int]
    rules: list[LogitsRules | None]
    matchers: list[MatchedRow] = field(default_factory=list)

    def ahead(self, drafts: Sequence[tuple[int, ...]]) -> "SamplingRows":
        """Return each row, and after it a row for each of its draft tokens, as if all before it were accepted."""
        params, positions, rules = list[SamplingParams](), list[int](), list[LogitsRules | None]()
        starts = list[int]()
        for own, position, state, draft in zip(self.params, self.positions, self.rules, drafts, strict=True):
            starts.append(len(params))
            params += [own] * (1 + len(draft))
            positions += range(position, position + 1 + len(draft))
            rules.append(state)
            for token_id in draft:
                state = None if state is None else state.after(token_id)
                rules.append(state)
        matchers = [(starts[row], matcher, drafts[row]) for row, matcher, _ in self.matchers]
        return SamplingRows(params, positions, rules, matchers)


class Drawn(NamedTuple):
    """One row's answer.

    logprob       as in `TokenEvent`: natural, logits rules applied, before temperature and filters, unclamped
    alternatives  the most likely (token id, logprob) pairs, best first, as many as asked for
    is_finite     False if the row holds a NaN or +Inf, or nothing but -Inf: `token_id` is then the place of the
                  highest value, or of the NaN, and the engine ends that row's request
    is_barred     True if the logits are finite, but the row's rules bar every token; `token_id` then means nothing
    """

    token_id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
    is_finite: bool = True
    is_barred: bool = False

    @property
    def is_token(self) -> bool:
        """Return whether a token was drawn."""
        return self.is_finite and not self.is_barred


class Sampler:
    """Draws the tokens of each step. A row gives the same bits in any batch.

    The parameters of a batch's rows rarely change from one step to the next, so their array is kept; a step then
    writes the positions alone.

    Args:    draw, mask, score  how a back end draws tokens, masks logits and scores tokens; `kernels/sampling.py` has
                                the semantics
    Thread:  one at a time
    """

    def __init__(self, draw: Draw = sample_tokens, mask: Mask = mask_logits, score: Score = score_tokens) -> None:
        self._draw = draw
        self._mask = mask
        self._score = score
        self._filler = MaskFiller()
        self._params: list[SamplingParams] = []
        self._array: SamplingRules = np.empty(0, dtype=SAMPLING_RULE)
        self._positions = self._array["position"]
        self._reported: list[int] = []  # rows whose log-probabilities are wanted

    def begin_masks(self, matched: Sequence[Matched]) -> None:
        """Begin the masks of the next rows, on a thread: their matchers and draft tokens, in order."""
        self._filler.begin(matched)

    def drop_masks(self) -> None:
        """Forget masks that were begun: the rows do not come."""
        self._filler.drop()

    def close(self) -> None:
        """End the thread of the masks."""
        self._filler.close()

    def sample(self, logits: Tensor, rows: SamplingRows) -> list[Drawn]:
        """Draw one token for each row, after its logits rules.

        Args:     logits  (rows, vocab) float32, on any device; -Inf marks tokens that may not come. Rows with a grammar
                          are masked in place, the others are left unchanged
        Returns:  one `Drawn` for each row, in order
        """
        if not rows.params:
            return []
        array = self._array_of(rows)
        masked = self._mask_rows(logits, rows.matchers)
        tokens, peaks = self._draw(logits, array)
        ruled = [index for index, rules in enumerate(rows.rules) if rules is not None]
        if not ruled and not self._reported and math.isfinite(sum(peaks)):
            return [Drawn(token_id) for token_id in tokens]
        sound = [math.isfinite(peak) or (peak == -math.inf and row in masked) for row, peak in enumerate(peaks)]
        changed = self._redraw(rows, ruled, logits, tokens, peaks) if ruled else logits[:0]
        reported = [index for index in self._reported if math.isfinite(peaks[index])]
        places = {index: place for place, index in enumerate(ruled)}
        scores = self._scores(
            [changed[places[index]] if index in places else logits[index] for index in reported],
            [tokens[index] for index in reported],
            [rows.params[index].num_logprobs or 0 for index in reported],
        )
        own = dict(zip(reported, scores, strict=True))
        return [
            _answer(token_id, peak, own.get(index), was_sound=was_sound)
            for index, (token_id, peak, was_sound) in enumerate(zip(tokens, peaks, sound, strict=True))
        ]

    def sample_ahead(
        self, logits: Tensor, rows: SamplingRows, drafts: Sequence[tuple[int, ...]]
    ) -> list[tuple[Drawn, ...]]:
        """Draw one token for each row, then one more after each draft token that equals the token drawn.

        Semantics, row by row:
            for draft_token in (*draft, None):
                drawn = `sample` of the next logits of this row, at its position, with all drawn before it counted
                if no token is drawn, or not the draft token: break
        So the tokens are those that as many calls of `sample` would give; draws after a rejected draft token are
        dropped, and `rows.rules` stay as they are.
        Args:    logits (rows + draft tokens, vocab) float32: each row's own logits, then those after each draft
                 token; `rows` as for the first of these
        Returns: for each row, at least one `Drawn`: all but the last are its accepted draft tokens
        """
        every = iter(self.sample(logits, rows.ahead(drafts)))
        return [_accept(tuple(islice(every, 1 + len(draft))), draft) for draft in drafts]

    def score(self, logits: Tensor, tokens: Sequence[int], num_alternatives: Sequence[int]) -> list[Drawn]:
        """Return the scores of given tokens, one for each row.

        Args:  logits            (rows, vocab) float32, on any device
               tokens            the token of each row
               num_alternatives  alternatives beside each, 0..20
        """
        scores = self._score(logits, tokens, num_alternatives)
        return [_answer(token, score.peak, score, was_sound=True) for token, score in zip(tokens, scores, strict=True)]

    def _scores(self, rows: list[Tensor], tokens: list[int], num_alternatives: list[int]) -> list[TokenScore]:
        return self._score(torch.stack(rows), tokens, num_alternatives) if rows else []

    def _array_of(self, rows: SamplingRows) -> SamplingRules:
        """Return the rows of `SAMPLING_RULE`, in an array that the next call may reuse."""
        if rows.params != self._params:  # the same objects, as a rule
            self._array = np.array([_rule(params) for params in rows.params], dtype=SAMPLING_RULE)
            self._positions = self._array["position"]
            self._params = rows.params
            self._reported = [index for index, params in enumerate(rows.params) if params.num_logprobs is not None]
        self._positions[:] = rows.positions
        return self._array

    def _mask_rows(self, logits: Tensor, matchers: list[MatchedRow]) -> Set[int]:
        """Mask the rows of matchers and of their draft tokens; return these rows.

        The masks commute with the other rules, which leave -Inf where it is.
        """
        if not matchers:
            return frozenset()
        rows = [row + ahead for row, _, draft in matchers for ahead in range(1 + len(draft))]
        masks = self._filler.take([(matcher, draft) for _, matcher, draft in matchers])
        self._mask(logits, np.array(rows, dtype=np.int64), masks)
        return frozenset(rows)

    def _redraw(
        self, rows: SamplingRows, ruled: list[int], logits: Tensor, tokens: list[int], peaks: list[float]
    ) -> Tensor:
        """Return the rows `ruled` after their rules, (len(ruled), vocab), and put their tokens and peaks in place."""
        own = [rules for rules in rows.rules if rules is not None]
        changed = apply_rules(logits, ruled, own)
        redrawn = self._draw(changed, self._array[ruled])
        for index, token, peak in zip(ruled, *redrawn, strict=True):
            tokens[index], peaks[index] = token, peak
        return changed


def _rule(of: SamplingParams) -> tuple[int, int, float, float, float, float, int]:
    """Return a row of `SAMPLING_RULE` without its position."""
    return of.seed, 0, of.temperature, of.top_p, of.min_p, of.typical_p or 0.0, min(of.top_k or 0, MAX_TOP_K)


def prompt_scores(scores: Sequence[Drawn]) -> list[PromptScore] | None:
    """Return the scores of a prompt's tokens; None if the logits of one were not finite."""
    if not all(score.is_token for score in scores):
        return None
    return [PromptScore(score.logprob or 0.0, score.alternatives) for score in scores]


def _accept(drawn: tuple[Drawn, ...], draft: tuple[int, ...]) -> tuple[Drawn, ...]:
    """Return the draws up to the first that rejects its draft token or is no token, this one included."""
    accepted = 0
    while accepted < len(draft) and drawn[accepted].is_token and drawn[accepted].token_id == draft[accepted]:
        accepted += 1
    return drawn[: accepted + 1]


def _answer(token_id: int, peak: float, score: TokenScore | None, *, was_sound: bool) -> Drawn:
    """Return the answer of one row. `was_sound`: its highest logit was finite before its rules."""
    if not math.isfinite(peak):
        is_barred = was_sound and peak == -math.inf
        return Drawn(token_id=token_id, is_finite=is_barred, is_barred=is_barred)
    if score is None:
        return Drawn(token_id=token_id)
    return Drawn(token_id=token_id, logprob=score.logprob, alternatives=score.alternatives)
