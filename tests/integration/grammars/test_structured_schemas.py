"""Random schemas: a random model's replies satisfy them, and each value that they accept is accepted token by token."""

import json
import random
from collections.abc import Iterator, Sequence

import jsonschema_rs
import numpy as np
import pytest

from manylora import LLM, SamplingParams
from manylora.bench.faults.tiny_base import write_tiny_base
from manylora.config.declaration import Setting
from manylora.engine.grammars.compiling import CompiledGrammar, compiled
from manylora.models.text.grammar import json_grammar
from tests.conftest import thinned
from tests.engine.grammars.vocabulary import END, begun, compact, open_bytes, text_of, tokens_of
from tests.integration.grammars.schemas import SchemaMaker

SAMPLED = SamplingParams(temperature=1.0)
SEEDS = [*range(40), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(40, 500))]
VOCABULARY = open_bytes()


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    base = write_tiny_base(tmp_path_factory.mktemp("schemas") / "tiny")
    settings: dict[str, Setting] = {"model.kernels": "native", "model.threads": 1, "engine.kv_bytes": 1 << 21}
    with LLM(base, settings=settings) as llm:
        yield llm


@pytest.mark.parametrize("seed", SEEDS)
def test_replies_satisfy_their_schema(llm: LLM, seed: int) -> None:
    schema, _ = SchemaMaker(seed).schema()
    outputs = llm.generate(["a", "b", "c"], grammar=json_grammar(schema), sampling=SAMPLED, seed=seed, max_tokens=None)
    valid = jsonschema_rs.validator_for(schema, validate_formats=True).is_valid
    for output in outputs:
        if output.finish_reason == "stop":
            assert valid(json.loads(output.text)), (schema, output.text)
        else:
            assert output.finish_reason == "length"


CLOSING = [END, *tokens_of('}]",:n')]
"""Tokens that end a value, the most closing ones first, and that of null."""
IN_A_STRING = 64
"""Where more tokens than these may come, a string is open. It gets some characters, so that names differ."""


def completed(grammar: CompiledGrammar, tokens: Sequence[int], chance: random.Random) -> str:
    """Return a text of a grammar that begins with these tokens, and soon ends."""
    matcher, text = begun(grammar), list(tokens)
    assert matcher.num_valid(tokens) == len(tokens)
    for token in tokens:
        matcher.advance(token)
    mask = np.zeros((1, matcher.words), dtype=np.uint32)
    while not matcher.is_over:
        assert len(text) < 3000
        matcher.fill(mask, 0)
        allowed = np.flatnonzero(np.unpackbits(mask[0].view(np.uint8), bitorder="little")).tolist()
        may_close, share = (CLOSING, 0.05) if len(allowed) <= IN_A_STRING else (tokens_of('"'), 0.6)
        closing = [token for token in may_close if token in allowed]
        token = closing[0] if closing and chance.random() >= share else chance.choice(allowed)
        if token == END:
            break
        matcher.advance(token)
        text.append(token)
    return text_of(text)


@pytest.mark.parametrize("seed", thinned(range(500), 50))
def test_a_reply_that_spends_its_budget_begins_a_value_that_its_schema_accepts(llm: LLM, seed: int) -> None:
    schema, _ = SchemaMaker(seed).schema()
    chance = random.Random(seed)
    outputs = llm.generate(
        ["a", "b", "c"], grammar=json_grammar(schema), sampling=SAMPLED, seed=seed, max_tokens=chance.randint(1, 24)
    )
    grammar = compiled(json_grammar(schema), VOCABULARY)
    valid = jsonschema_rs.validator_for(schema, validate_formats=True).is_valid
    for output in outputs:
        if output.finish_reason == "length":
            texts = (completed(grammar, output.token_ids, chance) for _ in range(6))
            assert any(valid(json.loads(text)) for text in texts), (schema, output.text)


@pytest.mark.parametrize("seed", SEEDS)
def test_values_that_a_schema_accepts_are_accepted_token_by_token(seed: int) -> None:
    schema, make = SchemaMaker(seed).schema()
    grammar = compiled(json_grammar(schema), VOCABULARY)
    valid = jsonschema_rs.validator_for(schema, validate_formats=True).is_valid
    for _ in range(5):
        value = make()
        assert valid(value), "the generator is wrong"
        matcher, tokens = begun(grammar), tokens_of(compact(value))
        assert matcher.num_valid(tokens) == len(tokens), (schema, value)
        for token in tokens:
            matcher.advance(token)
        assert matcher.is_over or matcher.num_valid([END]) == 1, (schema, value)


@pytest.mark.parametrize(
    ("schema", "accepted", "refused"),
    [
        ({"type": "string", "format": "time"}, "23:59:59Z", "08:05:60Z"),
        ({"type": "string", "format": "date-time"}, "2026-12-01T10:00:00+01:00", "2026-12-01T10:00:60+01:00"),
        ({"type": "string", "format": "time", "pattern": "Z$"}, "10:00:00Z", "10:00:00+01:00"),
        ({"type": "string", "format": "time", "pattern": "Z$"}, "10:00:00Z", "10:00:60Z"),
    ],
)
def test_a_time_has_no_second_sixty(schema: dict[str, str], accepted: str, refused: str) -> None:
    grammar = compiled(json_grammar(schema), VOCABULARY)
    for text, is_accepted in ((accepted, True), (refused, False)):
        tokens = tokens_of(compact(text))
        assert (begun(grammar).num_valid(tokens) == len(tokens)) == is_accepted, text
