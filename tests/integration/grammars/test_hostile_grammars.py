"""Grammars that are made to cost much: each is refused, or ends its own request, and changes no token of another."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from manylora import LLM, SamplingParams
from manylora.bench.faults.tiny_base import write_tiny_base
from manylora.config.declaration import Setting
from manylora.errors import InvalidParameter, Unavailable
from manylora.models.text.grammar import GrammarSource, choice_grammar, json_grammar, lark_grammar, regex_grammar

SAMPLED = SamplingParams(temperature=1.0)


def nested(depth: int) -> Any:
    schema: Any = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema, "minItems": 1}
    return schema


def doubling(levels: int) -> Any:
    """A schema whose references double at each level, 2**levels values in all."""
    definitions: Any = {"d0": {"type": "integer"}}
    for level in range(1, levels):
        both = [{"$ref": f"#/$defs/d{level - 1}"}] * 2
        definitions[f"d{level}"] = {"type": "array", "prefixItems": both, "minItems": 2, "maxItems": 2}
    return {"$ref": f"#/$defs/d{levels - 1}", "$defs": definitions}


BOMBS: dict[str, GrammarSource] = {
    "nested repetition": regex_grammar("((a{1,1000}){1,1000}){1,1000}"),
    "repetition in a pattern": json_grammar({"type": "string", "pattern": "^((x?){500}y){500}$"}),
    "ambiguous alternatives": regex_grammar("(a|aa|aaa|aaaa|b)*(a|aa)*(a|b)*c{0,999}"),
    "intersections": json_grammar(
        {"allOf": [{"type": "string", "pattern": f"(a|b)*{'a' if bit else 'b'}(a|b){{{bit}}}$"} for bit in range(14)]}
    ),
    "deep": json_grammar(nested(60)),
    "wide enum": json_grammar({"enum": [f"value {number}" for number in range(8000)]}),
    "long enum": json_grammar({"enum": ["x" * 2000 + str(number) for number in range(100)]}),
    "many properties": json_grammar({"type": "object", "properties": {f"p{n}": {} for n in range(2000)}}),
    "many required": json_grammar({"type": "object", "required": [f"p{number}" for number in range(2000)]}),
    "doubling references": json_grammar(doubling(40)),
    "left recursion": lark_grammar('start: start start | "a" | ""'),
    "ambiguous rules": lark_grammar("start: a*\na: b | c | a a\nb: c? /x+/\nc: /x*y?/ | b"),
    "alternation": choice_grammar([f"{number:04d}" * 20 for number in range(2000)]),
    "long string": json_grammar({"type": "string", "minLength": 1_000_000}),
    "many items": json_grammar({"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000}),
    "many items at most": json_grammar({"type": "array", "items": {"type": "integer"}, "maxItems": 100_000_000}),
    "many properties at most": json_grammar({"type": "object", "minProperties": 9, "maxProperties": 100_000_000}),
    "long bounds": json_grammar({"type": "number", "minimum": -1e308, "maximum": 1e308}),
    "exponent": json_grammar({"type": "number", "multipleOf": 1e-9, "minimum": 0, "maximum": 1e15}),
    "all of": json_grammar({"allOf": [{"anyOf": [{"const": n}, {"type": "string"}]} for n in range(40)]}),
    "gbnf": lark_grammar("root ::= " + "(" * 400 + '"a"' + ")" * 400),
}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    base = write_tiny_base(tmp_path_factory.mktemp("bombs") / "tiny")
    settings: dict[str, Setting] = {"model.kernels": "native", "model.threads": 1, "engine.kv_bytes": 1 << 21}
    with LLM(base, settings=settings) as llm:
        yield llm


def ended(llm: LLM, grammar: GrammarSource) -> str:
    """The finish reason of a request, or its refusal. A trial that got no processor is repeated, as its answer says."""
    for _ in range(4):
        try:
            return llm.generate("x", grammar=grammar, sampling=SAMPLED, seed=3, max_tokens=24).finish_reason
        except InvalidParameter as refused:
            return refused.message
        except Unavailable:
            continue
    raise AssertionError("no trial got a processor")


SLOW = {"intersections"}
"""Bombs that no limit of size stops, so that the limit of time does."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name in SLOW else []) for name in sorted(BOMBS)]
)
def test_a_grammar_that_costs_much_disturbs_no_other_request(llm: LLM, name: str) -> None:
    def bystander() -> list[int]:
        return llm.generate("bystander", sampling=SAMPLED, seed=5, max_tokens=24).token_ids

    alone = bystander()
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(bystander)
        end = ended(llm, BOMBS[name])
        assert end in ("stop", "length") or ("is not supported: " in end and len(end) < 500)
        assert other.result() == alone
    assert llm.generate("x", grammar=regex_grammar("ok"), max_tokens=8).text == "ok"
