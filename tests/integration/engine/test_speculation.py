"""Real arithmetic: speculation changes no token, no log-probability and no end."""

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.config.settings import load_config
from manylora.engine.engine import Engine
from manylora.engine.events import Finished, FinishReason, TokenEvent
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import Flow, RequestId, mint_request_id
from manylora.kernels.select import select_kernels
from manylora.wiring.engine import build_engine
from tests.integration.engine.test_mixed_batch import SHAPES
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.serving import make_cache
from tests.support.tiny import BYTE_LEVEL_VOCAB, make_adapter, make_base

SAMPLINGS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.0, repetition_penalty=1.1, num_logprobs=3),
    SamplingParams(temperature=0.0, frequency_penalty=0.05, logit_bias=((7, 0.5),)),
    SamplingParams(temperature=0.0, bad_words=((7,), (9, 11), (5, 6, 7))),
    SamplingParams(temperature=0.1, seed=13, allowed_token_ids=tuple(range(3, 60)), presence_penalty=0.1),
    SamplingParams(temperature=0.05, seed=11),
    SamplingParams(temperature=0.1, top_k=4, top_p=0.9, seed=12, num_logprobs=2),
)
REFS = tuple(AdapterRef(SourceName.LOCAL, name) for name in SHAPES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speculation")
    base = make_base(folder / "base", vocab_size=BYTE_LEVEL_VOCAB)
    save_byte_level(folder / "base")
    for seed, (name, shape) in enumerate(SHAPES.items()):
        make_adapter(base, folder / "adapters" / name, shape, seed=seed)
    return folder


def open_engine(folder: Path, kernels: str) -> Engine:
    block_bytes = select_kernels(kernels, 1).form.kv_block_bytes(layers=3, block_size=4, kv_heads=2, head_dim=8)
    cache = make_cache(folder / f"cache-{kernels}")
    config = load_config(
        flags={
            "model.base": str(folder / "base"),
            "model.kernels": kernels,
            "model.threads": 2,
            "model.cache_dir": str(cache),
            "adapters.roots": (str(folder / "adapters"),),
            "engine.max_model_len": 128,
            "engine.block_size": 4,
            "engine.max_step_tokens": 48,
            "engine.max_running": 6,
            "engine.guess_tokens": 6,
            "engine.guess_width": 6,
            "engine.kv_bytes": 70 * block_bytes,  # short enough to preempt now and then
        },
        environ={},
    )
    return build_engine(config, lambda line: None)[0]


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    """An engine that has each adapter on the device, so that the moments of loads change no batch."""
    engine = open_engine(folder, "native")
    source = random.Random(4)
    run(engine, [dataclasses.replace(random_request(source, number), adapter=ref) for number, ref in enumerate(REFS)])
    yield engine
    engine.close()


def random_request(source: random.Random, number: int) -> Request:
    """A prompt that repeats itself, so that there is something to look up, and sampling cold enough to repeat it."""
    phrase = [source.randrange(3, BYTE_LEVEL_VOCAB) for _ in range(source.randint(1, 6))]
    return Request(
        id=mint_request_id(),
        flow=Flow(source.choice("ab")),
        salt="",
        tokens=tuple(phrase * source.randint(2, 5)),
        adapter=source.choice([None, *REFS]),
        sampling=SAMPLINGS[number % len(SAMPLINGS)],
        stop=StopParams(max_new_tokens=source.randint(30, 60), ignore_eos=True),
    )


def run(engine: Engine, requests: list[Request]) -> dict[RequestId, tuple[list[TokenEvent], Finished]]:
    tokens: dict[RequestId, list[TokenEvent]] = {request.id: [] for request in requests}
    ends: dict[RequestId, Finished] = {}
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        events = engine.step()
        for token in events.tokens:
            # Times, tiers and what is cached differ from run to run.
            told = token._replace(adapter=None, queue_ms=None, cached_tokens=0)
            tokens[token.request_id].append(told)
        ends.update({end.request_id: end for end in events.finished})
    engine.check()
    return {request.id: (tokens[request.id], ends[request.id]) for request in requests}


def same_either_way(engine: Engine, requests: list[Request]) -> list[Finished]:
    """Run the requests together with speculation and each alone without; return the ends."""
    speculating = run(engine, requests)
    for request in requests:
        plain, end = run(engine, [dataclasses.replace(request, speculation=False)])[request.id]
        told, ended = speculating[request.id]
        assert told == plain
        assert (ended.reason, ended.stop_string) == (end.reason, end.stop_string)
        assert ended.counts.completion_tokens == end.counts.completion_tokens
        assert ended.counts.prompt_tokens == end.counts.prompt_tokens
    return [end for _, end in speculating.values()]


def test_speculation_changes_no_token(engine: Engine) -> None:
    source = random.Random(5)
    before = engine.stats()
    same_either_way(engine, [random_request(source, number) for number in range(48)])
    after = engine.stats()
    accepted = after.accepted_tokens - before.accepted_tokens
    assert accepted > 100
    assert after.draft_tokens - before.draft_tokens > accepted
    assert after.preemptions > before.preemptions


def test_a_stop_inside_an_accepted_draft_ends_the_same_reply(engine: Engine) -> None:
    source = random.Random(6)
    stopped: list[Request] = []
    for number in range(12):
        request = dataclasses.replace(random_request(source, number), adapter=None)
        told, _ = run(engine, [request])[request.id]
        token = told[source.randrange(5, len(told))].token_id
        ends = [StopParams(max_new_tokens=40, stop_token_ids=(token,)), StopParams(max_new_tokens=7 + number)]
        stopped += [dataclasses.replace(request, id=mint_request_id(), stop=stop) for stop in ends]
    reasons = {end.reason for end in same_either_way(engine, stopped)}
    assert {FinishReason.STOP_TOKEN, FinishReason.LENGTH} <= reasons


def test_stop_strings_end_the_same_reply(engine: Engine) -> None:
    source = random.Random(7)
    requests = [
        dataclasses.replace(
            random_request(source, number),
            stop=StopParams(max_new_tokens=60, stop_strings=tuple("eaotins"), ignore_eos=True),
        )
        for number in range(20)
    ]
    assert FinishReason.STOP_STRING in {end.reason for end in same_either_way(engine, requests)}


def test_kernels_whose_rows_depend_on_each_other_do_not_speculate(folder: Path) -> None:
    engine = open_engine(folder, "reference")
    run(engine, [random_request(random.Random(8), 0)])
    assert engine.stats().draft_tokens == 0
    engine.close()
