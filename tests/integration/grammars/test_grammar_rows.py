"""Rows with a grammar in an engine's steps: penalties, drafts, and a row that no token is left for."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from manylora.bench.faults.tiny_base import tiny_engine, write_tiny_base
from manylora.engine.engine import Engine
from manylora.engine.events import Finished, FinishReason, StepEvents
from manylora.engine.grammars.matcher import GrammarMatcher
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.errors import InvalidParameter
from manylora.ids import Flow, RequestId, mint_request_id
from manylora.kernels.sampling import TokenMasks
from manylora.models.llama import LlamaModel
from manylora.models.text.grammar import GrammarSource, json_grammar, regex_grammar
from tests.conftest import long
from tests.engine.grammars.vocabulary import compact, text_of, tokens_of
from tests.support.forward import load_model
from tests.support.forward import run as logits_of

GREEDY = SamplingParams(temperature=0.0)
PROMPTS = ["[1,1,1,ab", "b1", "x", "12 12 12 12", ",[,[,[", "ab]ba]"]
VALUES = {"type": "array", "items": {"enum": ["ab", "ba", 1, 12]}, "minItems": 3, "maxItems": 4}
DOCUMENTS = [
    compact(values)
    for count in (3, 4)
    for values in product(VALUES["items"]["enum"], repeat=count)  # type: ignore[index]  # a literal above
]
"""Every text that the schema accepts."""
TOLERANCE = 1e-3
"""Difference of two logits that the order of sums may make. The engine's choice is compared with the best by value."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("grammar-rows") / "tiny")


@pytest.fixture(scope="module")
def engine(base: Path) -> Iterator[Engine]:
    root = base.parent / "adapters"
    root.mkdir()
    engine = tiny_engine(base, base.parent / "scratch", root, engine__guess_tokens=6, engine__guess_width=6)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def model(base: Path) -> LlamaModel:
    """The base on the engine's kernels, outside an engine."""
    return load_model(base, "native", 1)


def request(
    prompt: str, grammar: GrammarSource | None, sampling: SamplingParams = GREEDY, *, budget: int = 60
) -> Request:
    return Request(
        id=mint_request_id(),
        flow=Flow("a"),
        salt="",
        tokens=tuple(tokens_of(prompt)),
        adapter=None,
        sampling=sampling,
        stop=StopParams(max_new_tokens=budget),
        grammar=grammar,
    )


class Run:
    """The replies of requests that run together."""

    def __init__(self, engine: Engine, requests: Sequence[Request]) -> None:
        self.tokens: dict[RequestId, list[int]] = {each.id: [] for each in requests}
        self.ends: dict[RequestId, Finished] = {}
        self.steps: list[StepEvents] = []
        for each in requests:
            engine.submit(each)
        while engine.has_work:
            events = engine.step()
            if engine.is_waiting_for_adapters:
                time.sleep(0.001)  # a thread compiles its grammar
            self.steps.append(events)
            for token in events.tokens:
                self.tokens[token.request_id].append(token.token_id)
            self.ends.update({end.request_id: end for end in events.finished})
        engine.check()

    def reply(self, of: Request) -> str:
        assert self.ends[of.id].failure is None
        return text_of(self.tokens[of.id])


# ── penalties ────────────────────────────────────────────────────────────────────────────────────────────────────────


def ruled(logits: NDArray[np.float32], params: SamplingParams, prompt: Sequence[int], reply: Sequence[int]) -> None:
    """Apply the penalties to one row of logits, one token after the other, as their definitions say."""
    for token in {*prompt, *reply}:
        if params.repetition_penalty != 1.0:
            value = logits[token]
            logits[token] = value * params.repetition_penalty if value < 0 else value / params.repetition_penalty
    for token in set(reply):
        logits[token] -= params.frequency_penalty * reply.count(token) + params.presence_penalty


def allowed(reply: str) -> set[int]:
    """The tokens by which some text of the schema goes on."""
    return {tokens_of(each[len(reply)])[0] for each in DOCUMENTS if each.startswith(reply) and each != reply}


@pytest.mark.parametrize(
    "penalties",
    [
        {"repetition_penalty": 1.4, "frequency_penalty": 0.5, "presence_penalty": -0.75},
        *long({"frequency_penalty": 0.75}, {"presence_penalty": 1.5}, {"repetition_penalty": 2.5}),
    ],
    ids=["all", "frequency", "presence", "repetition"],
)
def test_the_best_token_after_penalties_and_grammar_is_drawn(
    engine: Engine,
    model: LlamaModel,
    penalties: dict[str, Any],  # fields of `SamplingParams`
) -> None:
    params = dataclasses.replace(GREEDY, **penalties)
    asked = [request(prompt, json_grammar(VALUES), params) for prompt in PROMPTS]
    made = Run(engine, asked)
    num_changed = 0
    for each in asked:
        prompt, tokens = list(each.tokens), made.tokens[each.id]
        assert made.reply(each) in DOCUMENTS
        logits = logits_of(model, [(prompt + tokens, None)])[0].numpy()
        for index, token in enumerate(tokens):
            row = logits[len(prompt) - 1 + index].copy()
            may_come = allowed(text_of(tokens[:index]))
            unpenalised = max(may_come, key=lambda each: row[each])
            ruled(row, params, prompt, tokens[:index])
            assert token in may_come
            assert row[token] >= max(row[each] for each in may_come) - TOLERANCE
            num_changed += row[unpenalised] < row[token] - TOLERANCE
    assert num_changed > 0, "without the penalties these tokens would have been drawn as well"


# ── drafts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("grammar", "prompt"),
    [
        (regex_grammar("[ab]{60}"), "abababab"),  # no place without a choice: drafts are looked up
        (
            json_grammar(
                {"type": "object", "properties": {"temperature": {"enum": [1, 2]}}, "required": ["temperature"]}
            ),
            "x",
        ),
        (json_grammar(VALUES), compact(["ab", "ab", "ab", "ab"])),
    ],
    ids=["looked up", "without a choice", "both"],
)
@pytest.mark.parametrize(
    "sampling",
    [GREEDY, *long(SamplingParams(temperature=0.3, seed=5, frequency_penalty=0.01))],
    ids=["greedy", "sampled"],
)
def test_accepted_drafts_give_the_reply_that_comes_without_them(
    engine: Engine, grammar: GrammarSource, prompt: str, sampling: SamplingParams
) -> None:
    asked = request(prompt, grammar, sampling)
    without = dataclasses.replace(asked, id=mint_request_id(), speculation=False)
    before = engine.stats()
    plain = Run(engine, [without])
    assert engine.stats().draft_tokens == before.draft_tokens
    drafted = Run(engine, [asked])
    after = engine.stats()
    assert 0 < after.accepted_tokens - before.accepted_tokens <= after.draft_tokens - before.draft_tokens
    assert drafted.tokens[asked.id] == plain.tokens[without.id]
    assert drafted.ends[asked.id].reason == plain.ends[without.id].reason
    assert len(drafted.steps) < len(plain.steps)


# ── no token left ────────────────────────────────────────────────────────────────────────────────────────────────────


def bar_by_rules(asked: Request, monkeypatch: pytest.MonkeyPatch) -> Request:
    """Bar the third token by the request's rules."""
    (letter,) = tokens_of("q")
    return dataclasses.replace(asked, sampling=dataclasses.replace(GREEDY, bad_words=((letter,) * 3,)))


def empty_mask(asked: Request, monkeypatch: pytest.MonkeyPatch) -> Request:
    """Empty the mask of the third token."""
    fill = GrammarMatcher.fill
    begun: list[GrammarMatcher] = []

    def filled(self: GrammarMatcher, masks: TokenMasks, row: int, draft: Sequence[int] = ()) -> None:
        fill(self, masks, row, draft)
        if self._source == asked.grammar:
            begun.append(self)
            if len(begun) > 2:
                masks[row : row + 1 + len(draft)] = 0

    monkeypatch.setattr(GrammarMatcher, "fill", filled)
    return asked


@pytest.mark.parametrize("dead_end", [bar_by_rules, empty_mask])
@pytest.mark.parametrize(
    "other",
    [request("bystander", None, budget=24), request("bystander", regex_grammar("[a-f]{30}"), budget=24)],
    ids=["text", "grammar"],
)
def test_a_row_without_a_token_left_ends_alone_in_its_step(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    dead_end: Callable[[Request, pytest.MonkeyPatch], Request],
    other: Request,
) -> None:
    sampled = SamplingParams(temperature=1.0, seed=9, frequency_penalty=0.1)
    beside = [
        dataclasses.replace(other, id=mint_request_id(), sampling=sampling, speculation=False)
        for sampling in (GREEDY, sampled)
    ]
    asked = dataclasses.replace(request("x", regex_grammar("q{9}")), speculation=False)
    Run(engine, [dataclasses.replace(asked, id=mint_request_id())])  # its grammar is compiled from now on
    asked = dead_end(asked, monkeypatch)
    alone = [Run(engine, [each]).tokens[each.id] for each in beside]
    before = engine.stats()
    made = Run(engine, [*beside, asked])
    end = made.ends[asked.id]
    assert end.reason is FinishReason.REJECTED
    assert end.failure is not None
    assert end.failure.kind is InvalidParameter
    assert "no token may come next" in end.failure.message
    assert len(made.tokens[asked.id]) == 2
    assert engine.stats().dead_ends - before.dead_ends == 1
    (step,) = [events for events in made.steps if end in events.finished]
    assert {each.id for each in beside} <= {token.request_id for token in step.tokens}, "the others' rows are in it"
    assert [made.tokens[each.id] for each in beside] == alone
    assert [made.ends[each.id].failure for each in beside] == [None, None]
    assert json.loads(Run(engine, [last := request("x", json_grammar(VALUES))]).reply(last))
