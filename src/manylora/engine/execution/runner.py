"""Runs one planned step: builds its batch, runs the model, draws the tokens."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from manylora.engine.execution.batch import BatchBuilder
from manylora.engine.execution.sampler import Draw, Drawn, SamplingRow, sample_ahead
from manylora.engine.scheduling.scheduler import Plan
from manylora.engine.scheduling.sequence import Sequence
from manylora.ids import RequestId
from manylora.kernels.interface import KvCache, Profile, StepInput


class Model(Protocol):
    """What the runner needs of a model."""

    def forward(self, step: StepInput, kv: KvCache) -> Tensor:
        """Return the logits of `step.logit_rows`: (sampled, vocab) float32."""

    def start_profile(self) -> Profile | None: ...


class Runner:
    """Owns the model and its keys and values; the only part of the engine that computes."""

    def __init__(self, model: Model, kv: KvCache, builder: BatchBuilder, draw: Draw) -> None:
        self._model = model
        self._kv = kv
        self._builder = builder
        self._draw = draw

    def start_profile(self) -> Profile | None:
        return self._model.start_profile()

    @torch.inference_mode()
    def run(self, plan: Plan, running: Mapping[RequestId, Sequence]) -> dict[RequestId, tuple[Drawn, ...]]:
        """Compute every chunk of the plan; draw a token for each sampled one and after each accepted draft token."""
        batch = self._builder.build(plan, running)
        logits = self._model.forward(batch.step, self._kv)
        rows = [
            SamplingRow(params=sequence.request.sampling, position=len(sequence.tokens), penalties=sequence.penalties)
            for _, sequence in batch.sampled
        ]
        drawn = sample_ahead(logits, rows, [chunk.draft_tokens for chunk, _ in batch.sampled], self._draw)
        return {chunk.request_id: answers for (chunk, _), answers in zip(batch.sampled, drawn, strict=True)}
