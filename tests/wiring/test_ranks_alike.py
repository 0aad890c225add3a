"""Requests of every kind give on two ranks the tokens and scores of one process, and adapters that come and go."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from peft import LoraConfig

from manylora import LLM, SamplingParams
from manylora.config.declaration import Setting
from manylora.engine.execution.ranks.commands import Command, CommandKind
from manylora.engine.execution.ranks.processes import RankProcesses
from manylora.models.text.grammar import json_grammar
from manylora.server.generation.order import TextPrompt
from manylora.wiring.llm import TextOutput, _order
from tests.conftest import long
from tests.support.text_adapters import make_text_base
from tests.support.tiny import TinyBase, make_adapter

NAMES = ("a", "b", "c")
BANK_BYTES = 10_000
"""Room for one of the adapters, and not for two."""
TEXT = "the quick brown fox over the lazy dog "
SETTINGS: dict[str, Setting] = {
    "model.kernels": "reference",
    "model.rank_timeout_s": 25.0,
    "engine.block_size": 4,
    "engine.max_running": 8,
    "engine.max_step_tokens": 16,  # prompts come in chunks
    "engine.guess_width": 8,
}
Pair = tuple[LLM, LLM]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> TinyBase:
    base = make_text_base(tmp_path_factory.mktemp("alike") / "Tiny")
    for seed, name in enumerate(NAMES):
        folder = base.directory.parent / "adapters" / name
        make_adapter(base, folder, LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj"]), seed=seed)
    return base


def opened(base: TinyBase, ranks: int, **settings: Setting) -> LLM:
    own = {**SETTINGS, "model.tensor_parallel": ranks, **settings}
    return LLM(base.directory, adapters=base.directory.parent / "adapters", settings=own)


@pytest.fixture(scope="module")
def pair(base: TinyBase) -> Iterator[Pair]:
    with opened(base, 1) as one, opened(base, 2) as two:
        yield one, two


@pytest.fixture(scope="module")
def small_pair(base: TinyBase) -> Iterator[Pair]:
    """With keys and values of two windows of 40 positions, and room for one adapter."""
    few: dict[str, Setting] = {
        "engine.kv_bytes": kv_bytes(base, 80),
        "engine.max_model_len": 40,
        "adapters.bank_bytes": BANK_BYTES,
    }
    with opened(base, 1, **few) as one, opened(base, 2, **few) as two:
        yield one, two


def kv_bytes(base: TinyBase, positions: int) -> int:
    config = base.config
    head = config.hidden_size // config.num_attention_heads
    return int(positions * config.num_hidden_layers * config.num_key_value_heads * head * 2 * 4)


def require_alike(pair: Pair, ask: Callable[[LLM], list[TextOutput]]) -> list[TextOutput]:
    expected, found = map(ask, pair)
    assert [output.token_ids for output in found] == [output.token_ids for output in expected]
    assert [output.cached_tokens for output in found] == [output.cached_tokens for output in expected]
    for output, wanted in zip(found, expected, strict=True):
        scores, others = ([token.logprob for token in each.tokens] for each in (output, wanted))
        assert scores == pytest.approx(others, abs=1e-4)
    return expected


def generated(prompts: list[str], **options: Any) -> Callable[[LLM], list[TextOutput]]:
    sampling = SamplingParams(temperature=0.0, num_logprobs=2)
    names = [None, *NAMES]
    adapters = [names[number % len(names)] for number in range(len(prompts))]
    return lambda llm: llm.generate(prompts, adapters, **{"max_tokens": 12, "sampling": sampling, **options})


def scored(llm: LLM) -> list[TextOutput]:
    order = _order(TextPrompt(TEXT), "a", {"max_tokens": 4, "sampling": SamplingParams(temperature=0.0)})
    scores = replace(order, prompt_logprobs=2, sampling=replace(order.sampling, num_logprobs=2))
    return [llm._wait(llm._run(scores))]


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
PENALTIES = SamplingParams(
    temperature=0.0, num_logprobs=2, repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.2
)
CASES: dict[str, Callable[[LLM], list[TextOutput]]] = {
    "a grammar": generated([TEXT, "n"], grammar=json_grammar(SCHEMA), max_tokens=24),
    "scores of the prompt": scored,
    "penalties": generated([TEXT, "hello"], sampling=PENALTIES),
    "several replies": generated(
        [TEXT] * 4, sampling=SamplingParams(temperature=0.9, top_p=0.9, num_logprobs=2), seed=7
    ),
    "chunks of prompts": generated([TEXT * 2, TEXT, "hello " * 9]),
}


@pytest.mark.parametrize("case", long(*CASES))
def test_two_ranks_give_the_tokens_and_scores_of_one_process(pair: Pair, case: str) -> None:
    require_alike(pair, CASES[case])


@pytest.mark.long
def test_draft_tokens_on_two_ranks_change_no_reply(base: TinyBase) -> None:
    ask, found, accepted = generated([TEXT * 2, "a b a b a b a b", TEXT], max_tokens=32), [], []
    for guess_tokens in (0, 4):
        own: dict[str, Setting] = {"model.kernels": "native", "engine.guess_tokens": guess_tokens}
        with opened(base, 2, **own) as llm:  # rows of the reference depend on each other, so that it drafts nothing
            found.append([[(token.id, token.logprob) for token in output.tokens] for output in ask(llm)])
            stats = llm._wait(llm._client.stats())
            assert stats is not None
            accepted.append(stats.accepted_tokens)
    assert found[0] == found[1]
    assert accepted[0] == 0 < accepted[1]


@pytest.mark.long
def test_a_cached_prefix_gives_on_two_ranks_the_tokens_of_one_process(pair: Pair) -> None:
    ask = generated(["once more " + TEXT, "once more " + TEXT + "hello"], max_tokens=4)
    require_alike(pair, ask)
    assert all(output.cached_tokens for output in require_alike(pair, ask))


@pytest.mark.long
def test_preempted_requests_give_on_two_ranks_the_tokens_of_one_process(small_pair: Pair) -> None:
    sampling = SamplingParams(temperature=0.0, num_logprobs=2)
    prompts = ["hello", "fox", "dog"] * 2
    require_alike(small_pair, lambda llm: llm.generate(prompts, "a", max_tokens=30, sampling=sampling))
    for llm in small_pair:
        stats = llm._wait(llm._client.stats())
        assert stats is not None
        assert stats.preemptions > 0


@pytest.mark.long
def test_adapters_that_come_and_go_give_on_two_ranks_the_tokens_of_one_process(
    small_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = Counter[CommandKind]()
    send_to = RankProcesses.send_to

    def counted(ranks: RankProcesses, rank: int, command: Command) -> None:
        sent[command.kind] += 1
        send_to(ranks, rank, command)

    for llm in small_pair:  # the bank holds the last adapter, also after a test that left another there
        llm.generate("hello", NAMES[-1], max_tokens=1)
    monkeypatch.setattr(RankProcesses, "send_to", counted)

    def each(llm: LLM) -> list[TextOutput]:
        sampling = SamplingParams(temperature=0.0, num_logprobs=2)
        return [llm.generate("hello", name, max_tokens=4, sampling=sampling) for name in (*NAMES, *NAMES)]

    replies = require_alike(small_pair, each)
    assert len({tuple(reply.token_ids) for reply in replies}) > 1
    assert sent[CommandKind.PLACE] == sent[CommandKind.ERASE] == 6
