"""What the composition root gives the engine of a base's tokenizer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from manylora.config.settings import load_config
from manylora.engine.engine import Engine
from manylora.engine.events import Finished, FinishReason
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import Flow, mint_request_id
from manylora.models.text.tokenizer import Tokenizer
from manylora.wiring.engine import build_engine
from tests.models.tiny_tokenizers import save_sentencepiece
from tests.support.tiny import make_base


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base whose configuration names no end token, so that the tokenizer's own counts."""
    make_base(tmp_path, vocab_size=400, eos_token_id=None)
    return save_sentencepiece(tmp_path)


@pytest.fixture
def engine(base: Path) -> Iterator[Engine]:
    config = load_config(flags={"model.base": str(base), "model.kernels": "reference"}, environ={})
    built, _ = build_engine(config, lambda line: None)
    yield built
    built.close()


def generate_always(engine: Engine, token_id: int, stop: StopParams) -> Finished:
    """The end of a generation that is made to say one token for ever."""
    sampling = SamplingParams(temperature=0.0, logit_bias=((token_id, 1e4),))
    engine.submit(
        Request(id=mint_request_id(), flow=Flow("t"), salt="", tokens=(5,), adapter=None, sampling=sampling, stop=stop)
    )
    while not (events := engine.step()).finished:
        pass
    return events.finished[0]


def test_the_tokenizer_s_end_token_ends_a_reply_where_the_base_names_none(engine: Engine, base: Path) -> None:
    (end,) = Tokenizer(base).eos_ids
    finished = generate_always(engine, end, StopParams(max_new_tokens=5))
    assert (finished.reason, finished.counts.completion_tokens) == (FinishReason.END_OF_SEQUENCE, 1)


def test_a_stop_string_sees_the_space_that_the_reply_begins_with(engine: Engine, base: Path) -> None:
    the = Tokenizer(base).token_id("▁the")
    assert the is not None
    finished = generate_always(engine, the, StopParams(max_new_tokens=5, stop_strings=(" the",)))
    assert (finished.reason, finished.counts.completion_tokens) == (FinishReason.STOP_STRING, 1)
