"""Random schemas: a random model's replies satisfy them, and each value that they accept is accepted token by token."""

import json
from collections.abc import Iterator

import jsonschema_rs
import pytest

from manylora import LLM, SamplingParams
from manylora.bench.faults.tiny_base import write_tiny_base
from manylora.config.declaration import Setting
from manylora.engine.grammars.compiling import compiled
from manylora.models.text.grammar import json_grammar
from tests.engine.grammars.vocabulary import END, begun, compact, open_bytes, tokens_of
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
