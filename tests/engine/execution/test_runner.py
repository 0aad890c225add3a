"""The runner begins a step's masks before the forward pass, and waits for them if it fails."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from manylora.engine.execution.runner import Runner
from manylora.kernels.sampling import mask_logits, sample_tokens
from manylora.models.text.grammar import regex_grammar
from tests.engine.grammars.vocabulary import matcher_of


class StepFailed(Exception):
    pass


class FailingModel:
    """Notes whether masks were begun when its forward pass ran, and fails."""

    def __init__(self) -> None:
        self.runner: Runner | None = None
        self.were_begun = False

    def forward(self, *_: object) -> None:
        assert self.runner is not None
        self.were_begun = self.runner._sampler._filler._filling is not None
        raise StepFailed


def test_masks_are_begun_before_the_forward_pass_and_ended_with_one_that_fails() -> None:
    sequence, chunk = SimpleNamespace(matcher=matcher_of(regex_grammar("[a-z]{9}"))), SimpleNamespace(draft_tokens=())
    batch = SimpleNamespace(sampled=[(chunk, sequence)], step=None)
    model, builder = FailingModel(), SimpleNamespace(build=lambda *_: batch)
    runner = Runner(cast(Any, model), cast(Any, None), cast(Any, builder), sample_tokens, mask_logits)
    model.runner = runner
    with pytest.raises(StepFailed):
        runner.execute(cast(Any, None), {})
    assert model.were_begun
    assert runner._sampler._filler._filling is None
    runner.close()
