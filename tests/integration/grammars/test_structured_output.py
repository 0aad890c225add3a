"""Replies of a random model have the form that was asked for, beside other requests and every other field."""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from manylora import LLM, SamplingParams
from manylora.bench.faults.tiny_base import write_tiny_base
from manylora.config.declaration import Setting
from manylora.errors import InvalidParameter
from manylora.models.text.grammar import (
    FLEXIBLE,
    GrammarSource,
    choice_grammar,
    json_grammar,
    json_object_grammar,
    lark_grammar,
    regex_grammar,
)
from tests.conftest import long

SAMPLED = SamplingParams(temperature=1.0)
LONG = {"type": "array", "items": {"enum": ["alpha", "beta", {"gamma": None}]}, "minItems": 2, "maxItems": 9}
FEW_BYTES = 10 * 16 * 320
"""Ten blocks of the tiny base: room for one sequence of 128 tokens and little more, so that others are preempted."""
INTENT = {
    "type": "object",
    "properties": {"intent": {"enum": ["up", "down"]}, "level": {"type": "integer", "minimum": 0, "maximum": 100}},
    "required": ["intent", "level"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("structured") / "tiny")


@pytest.fixture(scope="module")
def llm(base: Path) -> Iterator[LLM]:
    settings: dict[str, Setting] = {
        "model.kernels": "native",
        "model.threads": 1,
        "engine.kv_bytes": 1 << 21,
        "engine.max_model_len": 256,
    }
    with LLM(base, settings=settings) as llm:
        yield llm


def replies(llm: LLM, grammar: GrammarSource, count: int = 8, **sampling: Any) -> list[str]:
    params = replace(SAMPLED, **sampling)
    outputs = llm.generate(["x" * number for number in range(1, count + 1)], grammar=grammar, sampling=params, seed=7)
    return [output.text for output in outputs if output.finish_reason == "stop"]


def test_a_reply_is_what_its_schema_accepts(llm: LLM) -> None:
    texts = replies(llm, json_grammar(INTENT))
    assert len(texts) == 8
    assert len(set(texts)) > 1
    for text in texts:
        assert jsonschema_rs.is_valid(INTENT, value := json.loads(text))
        assert text == json.dumps(value, separators=(",", ":"))


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (regex_grammar("[a-c]{3}-[0-9]{2}"), "[a-c]{3}-[0-9]{2}"),
        (choice_grammar(["yes", "no", 'a "b"\n', "ü"]), 'yes|no|a "b"\n|ü'),
        (lark_grammar('start: "a" /[0-9]/ ("," /[0-9]/)?'), "a[0-9](,[0-9])?"),
        (lark_grammar('root ::= "a" [0-9] ("," [0-9])?'), "a[0-9](,[0-9])?"),
        (json_grammar({"type": "array", "items": {"enum": [1]}, "maxItems": 2}, whitespace="[ ]?"), r"\[[ 1,]*\]"),
    ],
    ids=["regex", "choice", "lark", "gbnf", "white space"],
)
def test_a_reply_has_the_form_of_its_grammar(llm: LLM, grammar: GrammarSource, pattern: str) -> None:
    texts = replies(llm, grammar)
    assert len(texts) == 8
    assert [text for text in texts if not re.fullmatch(pattern, text)] == []


def test_a_reply_that_spends_its_budget_is_the_beginning_of_the_form(llm: LLM) -> None:
    output = llm.generate("x", grammar=json_grammar(INTENT), max_tokens=5)
    assert (output.finish_reason, len(output.tokens)) == ("length", 5)
    assert output.text == '{"int'


def test_rows_with_and_without_grammars_do_not_change_each_other(llm: LLM) -> None:
    chance = random.Random(3)
    grammars = [None, json_grammar(INTENT), None, regex_grammar("[a-z]{3,9}"), json_object_grammar(), None]
    prompts = [chance.randbytes(6).hex() for _ in grammars]

    def tokens(number: int) -> list[int]:
        output = llm.generate(
            prompts[number], grammar=grammars[number], sampling=SAMPLED, seed=11 + number, max_tokens=20
        )
        return output.token_ids

    from concurrent.futures import ThreadPoolExecutor

    alone = [tokens(number) for number in range(len(grammars))]
    with ThreadPoolExecutor(len(grammars)) as pool:
        for _ in range(3):
            assert list(pool.map(tokens, range(len(grammars)))) == alone


def test_other_rules_of_a_row_hold_beside_its_grammar(llm: LLM) -> None:
    digit_1 = llm.generate("x", grammar=regex_grammar("1")).token_ids[0]
    grammar = regex_grammar("[12]{6}")
    assert replies(llm, grammar, logit_bias=((digit_1, 100.0),)) == ["111111"] * 8
    assert replies(llm, grammar, allowed_token_ids=(digit_1,)) == ["111111"] * 8
    assert replies(llm, grammar, bad_words=((digit_1,),)) == ["222222"] * 8
    output = llm.generate("x", grammar=grammar, sampling=replace(SAMPLED, num_logprobs=3), max_tokens=1)
    (token,) = output.tokens
    assert token.logprob is not None
    shown = [alternative for alternative in token.alternatives if alternative.logprob > -1e3]
    assert {alternative.text for alternative in shown} == {"1", "2"}


def test_rules_that_leave_no_token_end_the_request_alone(llm: LLM) -> None:
    digit_1 = llm.generate("x", grammar=regex_grammar("1")).token_ids[0]
    with pytest.raises(InvalidParameter, match="no token may come next"):
        llm.generate("x", grammar=regex_grammar("1+"), sampling=replace(SAMPLED, bad_words=((digit_1,),)))
    assert llm.generate("x", grammar=regex_grammar("1")).text == "1"


@pytest.mark.parametrize(
    "grammar",
    [regex_grammar("(", field="guided_regex"), json_grammar({"type": "string", "format": "nope"})],
    ids=["regex", "format"],
)
def test_a_grammar_that_cannot_be_compiled_ends_its_request_alone(llm: LLM, grammar: GrammarSource) -> None:
    with pytest.raises(InvalidParameter, match=f"`{grammar.field}`"):
        llm.generate("x", grammar=grammar)
    assert llm.generate("x", max_tokens=2).finish_reason in ("length", "stop")


def test_white_space_is_bounded(llm: LLM) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    for text in replies(llm, json_grammar(schema, whitespace=FLEXIBLE)):
        assert jsonschema_rs.is_valid(schema, json.loads(text))
        assert max(map(len, re.findall(r"\s+", text)), default=0) <= 32


@pytest.mark.parametrize(
    "settings",
    [
        {"engine.guess_tokens": 8, "engine.guess_width": 64},
        *long({"engine.guess_tokens": 0}, {"engine.kv_bytes": FEW_BYTES}),
    ],
    ids=["drafts in every step", "no drafts", "preemption"],
)
def test_how_a_reply_is_computed_changes_no_token(llm: LLM, base: Path, settings: dict[str, Setting]) -> None:
    fixed: dict[str, Setting] = {"model.kernels": "native", "model.threads": 1, "engine.max_model_len": 128}

    def tokens(of: LLM) -> list[list[int]]:
        prompts = [f"prompt {number}" for number in range(6)]
        outputs = of.generate(prompts, grammar=json_grammar(LONG), sampling=SAMPLED, seed=9, max_tokens=60)
        return [output.token_ids for output in outputs]

    with LLM(base, settings={**fixed, "engine.kv_bytes": 1 << 21, **settings}) as other:
        assert tokens(other) == tokens(llm)
