"""Penalties and biases: how what a sequence already holds changes its next logits."""

import copy
from collections.abc import Iterable
from typing import Self

import numpy as np
from numpy.typing import NDArray

from manylora.engine.request import SamplingParams

_WEAKEST, _STRONGEST = 1e-30, 1e30
"""A repetition penalty beyond these does the same as at them, but could make an infinity of a sound logit."""


class Penalties:
    """The penalties and biases of one sequence, with the token counts they need, kept up token by token.

    A step costs the distinct tokens seen, not the vocabulary: `add` is O(1), `apply` one gather and one scatter.

    Semantics:
        for token in {prompt and generated}:     logits[token] /= repetition if logits[token] >= 0, else *= repetition
        for token, n in counts of generated:     logits[token] -= frequency * n + presence
        for token, bias in logit_bias:           logits[token] += bias
    Source: repetition penalty: CTRL (Keskar et al., arXiv 1909.05858), in the signed form of transformers; frequency
        and presence: OpenAI's API reference.
    """

    __slots__ = ("_bias", "_biased", "_counts", "_frequency", "_presence", "_repetition", "_seen", "_slots")

    def __init__(self, params: SamplingParams, prompt: Iterable[int]) -> None:
        # float32 scalars: a float64 one would promote the gathered logits, and round them once more on the way back.
        self._repetition = np.float32(min(max(params.repetition_penalty, _WEAKEST), _STRONGEST))
        self._frequency = np.float32(params.frequency_penalty)
        self._presence = np.float32(params.presence_penalty)
        biases: dict[int, float] = {}
        for token_id, bias in params.logit_bias:
            biases[token_id] = biases.get(token_id, 0.0) + bias
        self._biased = np.array(list(biases), dtype=np.int64)
        self._bias = np.array(list(biases.values()), dtype=np.float32)
        # Slot i holds the i-th distinct token and how often it was generated; the arrays have room to spare.
        self._slots: dict[int, int] = {}
        if params.repetition_penalty != 1.0:
            self._slots = {token_id: slot for slot, token_id in enumerate(dict.fromkeys(prompt))}
        self._seen = np.array(list(self._slots), dtype=np.int64)
        self._counts = np.zeros(len(self._slots), dtype=np.float32)

    @classmethod
    def of(cls, params: SamplingParams, prompt: Iterable[int]) -> Self | None:
        """Return the penalties a sequence needs; None if it asks for none, and then nothing is counted."""
        is_needed = (
            params.repetition_penalty != 1.0
            or params.frequency_penalty != 0.0
            or params.presence_penalty != 0.0
            or params.logit_bias
        )
        return cls(params, prompt) if is_needed else None

    def add(self, token_id: int) -> None:
        """Count one generated token; called once for each token committed, never for the prompt's."""
        slot = self._slots.setdefault(token_id, len(self._slots))
        if slot == len(self._seen):
            room = max(16, slot)
            self._seen = np.concatenate([self._seen, np.zeros(room, dtype=np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(room, dtype=np.float32)])
        self._seen[slot] = token_id
        self._counts[slot] += 1

    def after(self, token_id: int) -> Self:
        """Return what these are once the token is counted; they themselves stay as they are."""
        later = copy.copy(self)
        later._slots = dict(self._slots)
        later._seen, later._counts = self._seen.copy(), self._counts.copy()
        later.add(token_id)
        return later

    def apply(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a changed copy of one row's logits: (vocab,) float32; every id in it is below vocab."""
        changed = logits.copy()
        if self._slots:
            seen, counts = self._seen[: len(self._slots)], self._counts[: len(self._slots)]
            values = changed[seen]
            if self._repetition != 1.0:
                values = np.where(values < 0, values * self._repetition, values / self._repetition)
            changed[seen] = values - (self._frequency * counts + self._presence * (counts > 0))
        if len(self._biased):
            changed[self._biased] += self._bias
        return changed
