"""What the composition root gives the engine of a base's tokenizer."""

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from manylora.config.declaration import Setting
from manylora.config.settings import load_config
from manylora.engine.engine import Engine
from manylora.engine.events import Finished, FinishReason
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.errors import MemoryPlanImpossible
from manylora.ids import Flow, mint_request_id
from manylora.models.checkpoint_files import expected_shapes
from manylora.models.spec import read_spec
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


def test_a_base_that_memory_cannot_hold_is_refused_before_it_is_read(base: Path) -> None:
    """The file has a header for 32 layers of 7B, and holes in place of its weights: a read would take minutes."""
    config = json.loads((base / "config.json").read_text()) | {"hidden_size": 4096, "num_hidden_layers": 32}
    config |= {"intermediate_size": 11008, "head_dim": 128, "num_attention_heads": 32, "num_key_value_heads": 32}
    (base / "config.json").write_text(json.dumps(config))
    (base / "model.safetensors").unlink()
    header, end = {}, 0
    for name, shape in expected_shapes(read_spec(base)).items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end := end + 2 * math.prod(shape)]}
    text = json.dumps(header).encode()
    with (base / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    flags: dict[str, Setting] = {"model.base": str(base), "model.kernels": "reference", "engine.memory_bytes": 8 << 30}
    lines: list[str] = []
    with pytest.raises(MemoryPlanImpossible, match=r"weights  2\d{4}"):
        build_engine(load_config(flags=flags, environ={}), lines.append)
    assert [line for line in lines if "weights loaded" in line] == []
