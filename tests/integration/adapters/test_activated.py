"""Activated LoRA in the whole engine: up to its invocation it is the base, with the base's own keys and values."""

from collections.abc import Iterator

import pytest
from peft import LoraConfig

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.config.settings import load_config
from manylora.engine.engine import Engine
from manylora.engine.events import FinishReason
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import Flow, mint_request_id
from manylora.wiring.engine import build_engine
from tests.integration.engine.test_mixed_batch import run
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.peft_grid import Case, save_case
from tests.support.tiny import ALL, BYTE_LEVEL_VOCAB, make_adapter, make_base

BLOCK = 8
INVOCATION = (50, 51)
PLAIN = LoraConfig(r=8, lora_alpha=16, target_modules=ALL)
ACTIVATED = LoraConfig(
    r=8, lora_alpha=16, target_modules=ALL, alora_invocation_tokens=list(INVOCATION), task_type="CAUSAL_LM"
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("activated")
    base = make_base(folder / "base", vocab_size=BYTE_LEVEL_VOCAB)
    save_byte_level(folder / "base")
    make_adapter(base, folder / "adapters" / "activated", ACTIVATED, seed=1)
    make_adapter(base, folder / "adapters" / "plain", PLAIN, seed=1)
    save_case(Case({"r": 4, "target_modules": ["q_proj"]}, added=4), base, folder / "adapters" / "added", seed=2)
    config = load_config(
        flags={
            "model.base": str(folder / "base"),
            "model.kernels": "native",
            "adapters.roots": (str(folder / "adapters"),),
            "engine.max_model_len": 128,
            "engine.block_size": BLOCK,
        },
        environ={},
    )
    built, _ = build_engine(config, lambda line: None)
    yield built
    built.close()


def request(tokens: tuple[int, ...], adapter: str | None, *, length: int = 12) -> Request:
    return Request(
        id=mint_request_id(),
        flow=Flow("a"),
        salt="",
        tokens=tokens,
        adapter=None if adapter is None else AdapterRef(SourceName.LOCAL, adapter),
        sampling=SamplingParams(temperature=0.0),
        stop=StopParams(max_new_tokens=length, ignore_eos=True),
    )


def answer(engine: Engine, tokens: tuple[int, ...], adapter: str | None) -> tuple[list[int], int]:
    """The tokens, and how many of the prompt's were cached."""
    asked = request(tokens, adapter)
    found, ends = run(engine, [asked])
    assert ends[asked.id].reason is FinishReason.LENGTH
    return found[asked.id], ends[asked.id].counts.cached_tokens


def test_without_its_invocation_it_is_the_base(engine: Engine) -> None:
    prompt = tuple(range(60, 100))
    assert answer(engine, prompt, "activated")[0] == answer(engine, prompt, None)[0]
    assert answer(engine, prompt, "plain")[0] != answer(engine, prompt, None)[0]


def test_an_invocation_at_the_start_makes_it_a_plain_adapter(engine: Engine) -> None:
    prompt = (*INVOCATION, *range(100, 130))
    assert answer(engine, prompt, "activated")[0] == answer(engine, prompt, "plain")[0]


def test_blocks_before_the_invocation_are_shared_with_the_base_and_those_after_with_nobody(engine: Engine) -> None:
    context = tuple(range(3, 3 + 4 * BLOCK))
    tail = (*INVOCATION, *range(150, 150 + 2 * BLOCK))
    _, cached = answer(engine, (*context, 199 - 3, *tail), None)
    assert cached == 0
    # The base has computed the whole prompt; only what is wholly before the invocation may be taken from it.
    first, cached = answer(engine, (*context, 199 - 3, *tail), "activated")
    assert cached == 4 * BLOCK
    again, cached = answer(engine, (*context, 199 - 3, *tail), "activated")
    assert again == first
    assert cached == 6 * BLOCK  # its own blocks by now
    assert answer(engine, (*context, 199 - 3, *tail), None)[1] == 6 * BLOCK
    assert answer(engine, (*context, 199 - 3, *tail), "plain")[1] == 0


def test_an_invocation_on_a_block_boundary_shares_all_before_it(engine: Engine) -> None:
    context = tuple(range(40, 40 + 2 * BLOCK))
    prompt = (*context[:9], 7, *context[10:], *INVOCATION, *range(160, 175))
    answer(engine, prompt, None)
    assert answer(engine, prompt, "activated")[1] == 2 * BLOCK


def test_tokens_an_adapter_adds_are_its_own(engine: Engine) -> None:
    prompt = (5, 6, BYTE_LEVEL_VOCAB, BYTE_LEVEL_VOCAB + 3, 9)
    found, _ = answer(engine, prompt, "added")
    assert all(0 <= token < BYTE_LEVEL_VOCAB + 4 for token in found)
    for adapter, tokens in (("plain", prompt), ("added", (5, BYTE_LEVEL_VOCAB + 4)), (None, prompt)):
        asked = request(tokens, adapter)
        _, ends = run(engine, [asked])
        failure = ends[asked.id].failure
        assert failure is not None
        assert failure.error == "InvalidParameter"
        known = BYTE_LEVEL_VOCAB + 4 if adapter == "added" else BYTE_LEVEL_VOCAB
        assert failure.message == f"token ids must be >= 0 and < {known}"
