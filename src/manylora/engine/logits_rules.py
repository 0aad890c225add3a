"""Logits rules: changes of a sequence's next logits by its parameters and tokens, before the draw.

Each rule is a small object with the state that it needs of one sequence. A sequence has an ordered list of them.
"""

import copy
from collections.abc import Collection, Iterable, Sequence
from typing import ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from manylora.engine.request import Request, SamplingParams

Logits = NDArray[np.float32]
"""(vocab,) float32: one row of logits."""

TokenIds = NDArray[np.int64]
"""(ids,) int64."""

_BARRED = np.float32(-np.inf)
_WEAKEST, _STRONGEST = 1e-30, 1e30
"""A repetition penalty beyond these does the same as at them, but could make an infinity of a sound logit."""


class LogitsRule(Protocol):
    """One rule of one sequence. A row may be wider than the sequence's vocabulary, with -Inf there, or narrower.

    bars_others  True: the rule bars all tokens that it does not read; False: it leaves them as they are
    """

    bars_others: ClassVar[bool]

    def apply(self, logits: Logits) -> None:
        """Change one row of logits in place."""

    def reads(self, width: int) -> TokenIds:
        """Return the tokens of a row of `width` logits whose logits the next `apply` reads or changes, each once."""

    def advance(self, token_id: int) -> None:
        """Take one generated token into the state; called once for each committed token, never for the prompt's."""

    def copy(self) -> Self:
        """Return a rule with an independent state, for draft tokens that may be rejected."""


class LogitsRules:
    """The rules of one sequence, applied in order. A preempted sequence keeps them: they hold no computed position."""

    __slots__ = ("_rules",)

    def __init__(self, rules: Iterable[LogitsRule]) -> None:
        self._rules = tuple(rules)

    def apply(self, logits: Logits) -> Logits:
        """Return a changed copy of one row of logits."""
        changed = logits.copy()
        for rule in self._rules:
            rule.apply(changed)
        return changed

    @property
    def bars_others(self) -> bool:
        """Return whether the rules bar all tokens that they do not read."""
        return any(rule.bars_others for rule in self._rules)

    def reads(self, width: int) -> TokenIds:
        """Return the tokens of a row of `width` logits that `apply` reads or changes, ascending."""
        return np.unique(np.concatenate([rule.reads(width) for rule in self._rules]))

    def advance(self, token_id: int) -> None:
        """Take one generated token into the state of every rule."""
        for rule in self._rules:
            rule.advance(token_id)

    def after(self, token_id: int) -> "LogitsRules":
        """Return the rules as they are once the token is generated; these rules do not change."""
        later = LogitsRules(rule.copy() for rule in self._rules)
        later.advance(token_id)
        return later


def logits_rules(request: Request, ends: Collection[int]) -> LogitsRules | None:
    """Return the rules that a request asks for, in their order; None if it asks for none, and then nothing is counted.

    Args:  ends  the tokens that end this request's generation
    """
    params, rules = request.sampling, list[LogitsRule]()
    if Penalties.are_wanted(params):
        rules.append(Penalties(params, request.tokens))
    if params.logit_bias:
        rules.append(LogitBias(params.logit_bias))
    if request.stop.min_new_tokens > 0 and ends:
        rules.append(MinNewTokens(request.stop.min_new_tokens, ends))
    if params.bad_words:
        rules.append(BadWords(params.bad_words, request.tokens))
    if params.allowed_token_ids is not None:
        rules.append(AllowedTokens(params.allowed_token_ids))
    return LogitsRules(rules) if rules else None


class Penalties:
    """Repetition, frequency and presence penalties, with the token counts they need.

    A step costs the distinct tokens seen, not the vocabulary: `advance` is O(1), `apply` one gather and one scatter.

    Semantics:
        for token in {prompt and generated}:     logits[token] /= repetition if logits[token] >= 0, else *= repetition
        for token, n in counts of generated:     logits[token] -= frequency * n + presence
    Source: repetition penalty: CTRL (Keskar et al., arXiv 1909.05858), in the signed form of transformers; frequency
        and presence: OpenAI's API reference.
    """

    __slots__ = ("_counts", "_frequency", "_presence", "_repetition", "_seen", "_slots")
    bars_others: ClassVar[bool] = False

    def __init__(self, params: SamplingParams, prompt: Iterable[int]) -> None:
        # float32 scalars: a float64 one would promote the gathered logits, and round them once more on the way back.
        self._repetition = np.float32(min(max(params.repetition_penalty, _WEAKEST), _STRONGEST))
        self._frequency = np.float32(params.frequency_penalty)
        self._presence = np.float32(params.presence_penalty)
        # Slot i holds the i-th distinct token and how often it was generated; the arrays have room to spare.
        self._slots: dict[int, int] = {}
        if params.repetition_penalty != 1.0:
            self._slots = {token_id: slot for slot, token_id in enumerate(dict.fromkeys(prompt))}
        self._seen = np.array(list(self._slots), dtype=np.int64)
        self._counts = np.zeros(len(self._slots), dtype=np.float32)

    @staticmethod
    def are_wanted(params: SamplingParams) -> bool:
        """Return whether a request asks for any of the three."""
        return params.repetition_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0

    def apply(self, logits: Logits) -> None:
        if not self._slots:
            return
        seen, counts = self._seen[: len(self._slots)], self._counts[: len(self._slots)]
        values = logits[seen]
        if self._repetition != 1.0:
            values = np.where(values < 0, values * self._repetition, values / self._repetition)
        logits[seen] = values - (self._frequency * counts + self._presence * (counts > 0))

    def reads(self, width: int) -> TokenIds:
        return self._seen[: len(self._slots)]

    def advance(self, token_id: int) -> None:
        slot = self._slots.setdefault(token_id, len(self._slots))
        if slot == len(self._seen):
            room = max(16, slot)
            self._seen = np.concatenate([self._seen, np.zeros(room, dtype=np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(room, dtype=np.float32)])
        self._seen[slot] = token_id
        self._counts[slot] += 1

    def copy(self) -> Self:
        other = copy.copy(self)
        other._slots = dict(self._slots)
        other._seen, other._counts = self._seen.copy(), self._counts.copy()
        return other


class LogitBias:
    """Adds a value to the logits of some tokens. Values of one token add up. Source: OpenAI's API reference."""

    __slots__ = ("_bias", "_biased")
    bars_others: ClassVar[bool] = False

    def __init__(self, logit_bias: Iterable[tuple[int, float]]) -> None:
        biases: dict[int, float] = {}
        for token_id, bias in logit_bias:
            biases[token_id] = biases.get(token_id, 0.0) + bias
        self._biased = _ids(biases)
        self._bias = np.array([biases[token_id] for token_id in self._biased.tolist()], dtype=np.float32)

    def apply(self, logits: Logits) -> None:
        biased = _below(self._biased, len(logits))
        logits[biased] += self._bias[: len(biased)]

    def reads(self, width: int) -> TokenIds:
        return _below(self._biased, width)

    def advance(self, token_id: int) -> None:
        """Change nothing: the bias depends on no token."""

    def copy(self) -> Self:
        return self


class MinNewTokens:
    """Bars every token that ends the generation until `least` tokens are generated.

    Source: transformers' `MinNewTokensLengthLogitsProcessor`, vLLM's `min_tokens`.
    """

    __slots__ = ("_ends", "_left")
    bars_others: ClassVar[bool] = False

    def __init__(self, least: int, ends: Collection[int]) -> None:
        self._left = least
        self._ends = _ids(ends)

    def apply(self, logits: Logits) -> None:
        if self._left > 0:
            logits[_below(self._ends, len(logits))] = _BARRED

    def reads(self, width: int) -> TokenIds:
        return _below(self._ends, width) if self._left > 0 else self._ends[:0]

    def advance(self, token_id: int) -> None:
        self._left -= 1

    def copy(self) -> Self:
        return copy.copy(self)


class BadWords:
    """Bars the token that would complete one of several token sequences, begun in the prompt or the reply.

    The words are grouped by the token before their last, so that a step costs the words that end like the sequence.
    Source: transformers' `NoBadWordsLogitsProcessor`.
    """

    __slots__ = ("_longer", "_reach", "_single", "_tail")
    bars_others: ClassVar[bool] = False

    def __init__(self, words: Iterable[Sequence[int]], prompt: Sequence[int]) -> None:
        own = [tuple(word) for word in words]
        assert all(own), "an empty word is completed by every token; the edge refuses it"
        self._single = _ids(word[0] for word in own if len(word) == 1)
        self._longer: dict[int, list[tuple[int, ...]]] = {}
        for word in own:
            if len(word) > 1:
                self._longer.setdefault(word[-2], []).append(word)
        self._reach = max((len(word) for word in own), default=1) - 1
        self._tail = tuple(prompt[-self._reach :]) if self._reach else ()  # the sequence's last tokens

    def apply(self, logits: Logits) -> None:
        logits[self.reads(len(logits))] = _BARRED

    def reads(self, width: int) -> TokenIds:
        return _below(np.union1d(self._single, self._completed()), width)

    def _completed(self) -> TokenIds:
        """Return the tokens that complete a longer word now, ascending."""
        ending = self._longer.get(self._tail[-1], ()) if self._tail else ()
        return _ids(word[-1] for word in ending if self._tail[1 - len(word) :] == word[:-1])

    def advance(self, token_id: int) -> None:
        if self._reach:
            self._tail = (*self._tail, token_id)[-self._reach :]

    def copy(self) -> Self:
        return copy.copy(self)


class AllowedTokens:
    """Bars every token but some. Source: vLLM's `allowed_token_ids`."""

    __slots__ = ("_allowed",)
    bars_others: ClassVar[bool] = True

    def __init__(self, allowed: Iterable[int]) -> None:
        self._allowed = _ids(allowed)

    def apply(self, logits: Logits) -> None:
        allowed = _below(self._allowed, len(logits))
        kept = logits[allowed]
        logits.fill(_BARRED)
        logits[allowed] = kept

    def reads(self, width: int) -> TokenIds:
        return _below(self._allowed, width)

    def advance(self, token_id: int) -> None:
        """Change nothing: the set depends on no token."""

    def copy(self) -> Self:
        return self


def _ids(token_ids: Iterable[int]) -> NDArray[np.int64]:
    """Return token ids in ascending order, each once: (ids,) int64."""
    return np.array(sorted(set(token_ids)), dtype=np.int64)


def _below(token_ids: TokenIds, width: int) -> TokenIds:
    """Return the ascending ids that a row has: one of the base's has no column for the tokens of adapters."""
    return token_ids if not len(token_ids) or token_ids[-1] < width else token_ids[token_ids < width]
