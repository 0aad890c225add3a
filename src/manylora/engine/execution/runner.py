"""The executor of a single process: builds a step's batch, runs the model, draws the tokens."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Protocol

from torch import Tensor

from manylora.engine.execution.batch import Batch, BatchBuilder, PooledChunk
from manylora.engine.execution.executor import Results
from manylora.engine.execution.heads import head_logits
from manylora.engine.execution.sampler import Draw, Drawn, Mask, Sampler, SamplingRows, Score
from manylora.engine.pooling import Floats
from manylora.engine.scheduling.plan import Plan
from manylora.engine.scheduling.sequence import Sequence
from manylora.ids import RequestId
from manylora.kernels.interface import Profile
from manylora.kernels.operands import KvCache, StepInput
from manylora.kernels.sampling import score_tokens


class Model(Protocol):
    """The part of a model that the runner uses."""

    def forward(self, step: StepInput, kv: KvCache, reuse: Tensor | None = None) -> Tensor:
        """Return the logits of `step.logit_rows`: (sampled, vocab) float32.

        Args:  reuse  an earlier result that the runner needs no more; the logits may take its memory
        """

    def start_profile(self) -> Profile | None:
        """As `Executor.start_profile`."""


class Runner:
    """An `Executor` that owns the model and its keys and values; the only part of the engine that computes."""

    def __init__(
        self, model: Model, kv: KvCache, builder: BatchBuilder, draw: Draw, mask: Mask, score: Score = score_tokens
    ) -> None:
        self._model = model
        self.kv = kv
        self._builder = builder
        self._logits: Tensor | None = None  # of the last step; an allocation takes tens of microseconds
        self._sampler = Sampler(draw, mask, score)

    def start_profile(self) -> Profile | None:
        return self._model.start_profile()

    def release(self) -> None:
        self._builder.release()

    def close(self) -> None:
        """End the thread of masks. The tensors go with the object."""
        self._sampler.close()

    def execute(self, plan: Plan, running: Mapping[RequestId, Sequence]) -> Results:
        # No tensor here wants a gradient, so no mode of torch is entered: each costs tens of microseconds a step.
        batch = self._builder.build(plan, running)
        self._sampler.begin_masks(
            [
                (sequence.matcher, chunk.draft_tokens)
                for chunk, sequence in batch.sampled
                if sequence.matcher is not None
            ]
        )
        try:
            logits = self._logits = self._model.forward(batch.step, self.kv, self._logits)
        except BaseException:
            self._sampler.drop_masks()
            raise
        drawn = self._scores_and_draws(batch, logits) if batch.scored else self._draws(batch, logits)
        if not batch.pooled:
            return drawn
        assert batch.step.hidden is not None  # it goes with `pooled`
        return {**drawn, **_pooled_rows(batch.pooled, batch.step.hidden.numpy())}

    def _scores_and_draws(self, batch: Batch[Sequence], logits: Tensor) -> dict[RequestId, tuple[Drawn, ...]]:
        """Return the scores of each scored chunk, with the draws of each sampled one behind them."""
        scored_rows, drawn_rows = batch.rows_of_logits()
        tokens, wanted = list[int](), list[int]()
        for chunk, sequence in batch.scored:
            first, last = chunk.scored
            tokens += sequence.tokens[first + 1 : last + 1]
            wanted += [sequence.request.prompt_logprobs or 0] * chunk.num_scored
        scores = iter(self._sampler.score(logits[scored_rows], tokens, wanted))
        found = {chunk.request_id: tuple(islice(scores, chunk.num_scored)) for chunk, _ in batch.scored}
        for request_id, drawn in self._draws(batch, logits[drawn_rows]).items():
            found[request_id] = (*found.get(request_id, ()), *drawn)
        return found

    def _draws(self, batch: Batch[Sequence], logits: Tensor) -> dict[RequestId, tuple[Drawn, ...]]:
        """Return the draws of each sampled chunk; `logits` has their rows alone."""
        sampled = batch.sampled
        rows = SamplingRows(
            params=[sequence.request.sampling for _, sequence in sampled],
            positions=[chunk.stop for chunk, _ in sampled],
            rules=[sequence.rules for _, sequence in sampled],
            matchers=[
                (row, sequence.matcher, ()) for row, (_, sequence) in enumerate(sampled) if sequence.matcher is not None
            ],
        )
        if not batch.has_drafts:
            alone = self._sampler.sample(logits, rows)
            return {chunk.request_id: (drawn,) for (chunk, _), drawn in zip(sampled, alone, strict=True)}
        ahead = self._sampler.sample_ahead(logits, rows, [chunk.draft_tokens for chunk, _ in sampled])
        return {chunk.request_id: drawn for (chunk, _), drawn in zip(sampled, ahead, strict=True)}


def _pooled_rows(chunks: Iterable[PooledChunk], hidden: Floats) -> dict[RequestId, Floats]:
    """Return the rows of each chunk: hidden states, or the logits of its adapter's head."""
    found: dict[RequestId, Floats] = {}
    start = 0
    for chunk in chunks:
        rows, start = hidden[start : start + chunk.num_rows], start + chunk.num_rows
        found[chunk.request_id] = rows if chunk.adapter is None else head_logits(rows, chunk.adapter)
    return found
