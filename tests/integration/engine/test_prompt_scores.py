"""Scores of prompts beside transformers and PEFT in float32, with adapters and a prefix cache in use."""

from collections.abc import Iterator

import pytest
import torch
from peft import LoraConfig

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.config.settings import load_config
from manylora.engine.engine import Engine
from manylora.engine.events import PromptScore
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import Flow, mint_request_id
from manylora.wiring.engine import build_engine
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.serving import make_cache
from tests.support.tiny import ALL, BYTE_LEVEL_VOCAB, TinyBase, make_adapter, make_base, oracle_logits

SHAPES = {
    "plain": LoraConfig(r=4, lora_alpha=16, target_modules=ALL),
    "head": LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "lm_head"]),
}
PROMPT = [(5 + 7 * position * position) % 250 + 3 for position in range(45)]
NUM_ALTERNATIVES = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> TinyBase:
    folder = tmp_path_factory.mktemp("scores")
    base = make_base(folder / "base", vocab_size=BYTE_LEVEL_VOCAB)
    save_byte_level(folder / "base")
    for name, shape in SHAPES.items():
        make_adapter(base, folder / "adapters" / name, shape, seed=3)
    return base


@pytest.fixture(scope="module")
def engine(base: TinyBase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = base.directory.parent
    config = load_config(
        flags={
            "model.base": str(base.directory),
            "model.kernels": "reference",  # float32
            "model.threads": 1,
            "model.cache_dir": str(make_cache(folder / "cache")),
            "adapters.roots": (str(folder / "adapters"),),
            "engine.max_model_len": 128,
            "engine.block_size": 4,
            "engine.max_step_tokens": 32,
            "engine.max_running": 7,  # positions scored in one step, too: fewer than the prompts have
        },
        environ={},
    )
    engine = build_engine(config, lambda line: None)[0]
    yield engine
    engine.close()


def request(name: str | None, prompt_logprobs: int | None, *, budget: int = 1) -> Request:
    return Request(
        id=mint_request_id(),
        flow=Flow("a"),
        salt="",
        tokens=tuple(PROMPT),
        adapter=None if name is None else AdapterRef(SourceName.LOCAL, name),
        sampling=SamplingParams(temperature=0.0),
        stop=StopParams(max_new_tokens=budget),
        prompt_logprobs=prompt_logprobs,
    )


def test_scores_equal_those_of_transformers_and_peft(engine: Engine, base: TinyBase) -> None:
    """Unscored requests run before and beside: their blocks are in the cache, and their rows in the same steps."""
    names = (None, *SHAPES)
    wanted = [request(name, NUM_ALTERNATIVES, budget=budget) for name in names for budget in (0, 2)]
    engine.submit(request(None, None))
    while engine.has_work:
        engine.step()
    for each in (*wanted, *(request(name, None) for name in names)):
        engine.submit(each)
    found: dict[str, tuple[PromptScore, ...]] = {}
    while engine.has_work:
        events = engine.step()
        for event in (*events.tokens, *events.finished):
            if event.prompt is not None:
                assert event.request_id not in found
                found[event.request_id] = event.prompt
    assert set(found) == {each.id for each in wanted}
    assert engine.stats().cached_tokens == 44  # of the unscored request of the base alone
    for each in wanted:
        folder = None if each.adapter is None else base.directory.parent / "adapters" / each.adapter.id
        expected = torch.log_softmax(oracle_logits(base, folder, PROMPT).float(), dim=-1)
        scores = found[each.id]
        assert len(scores) == len(PROMPT) - 1
        for position, score in enumerate(scores):
            row = expected[position]
            assert score.logprob == pytest.approx(float(row[PROMPT[position + 1]]), abs=1e-4)
            best = row.topk(NUM_ALTERNATIVES)
            assert [value for _, value in score.alternatives] == pytest.approx(best.values.tolist(), abs=1e-4)
