"""Each keyword of JSON Schema: applied to every value, or refused by its name, and never passed over.

Source: the vocabularies of JSON Schema draft 2020-12, and the keywords that older drafts and OpenAPI 3.0 have beyond.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import jsonschema_rs
import pytest

from manylora.bench.faults.tiny_base import write_tiny_base
from manylora.engine.grammars.compiling import CompiledGrammar, compiled
from manylora.errors import InvalidParameter
from manylora.models.text.grammar import json_grammar
from tests.engine.grammars.vocabulary import END, begun, compact, open_bytes, tokens_of
from tests.support.serving import make_cache, running_server

Json = Any  # a JSON value of any type
VOCABULARY = open_bytes()
INTEGER = {"type": "integer"}
STRING = {"type": "string"}
CYCLE = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
TREE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/t"}}, "additionalProperties": False}
KINDS: dict[str, list[Json]] = {
    "$anchor": [{"$ref": "#x", "$defs": {"a": {"$anchor": "x", **INTEGER}}}],
    "$comment": [{"$comment": "x", **INTEGER}],
    "$defs": [{"$defs": {"u": {"not": {}}}, **INTEGER}],
    "$dynamicAnchor": [{"$dynamicAnchor": "x", **INTEGER}],
    "$dynamicRef": [{"$dynamicRef": "#x"}],
    "$id": [{"$id": "http://a.b/c", "$ref": "#/$defs/x", "$defs": {"x": INTEGER}}],
    "$recursiveAnchor": [{"$recursiveAnchor": True, **INTEGER}],
    "$recursiveRef": [{"$recursiveRef": "#"}],
    "$ref": [
        {"$ref": "#/$defs/t", "$defs": {"t": TREE}},
        {"$ref": "#/$defs/a~1b", "$defs": {"a/b": INTEGER}},
        {"$ref": "#/$defs/%C3%BC", "$defs": {"ü": INTEGER}},
        {"$ref": "urn:x", "$defs": {"x": {"$id": "urn:x", **INTEGER}}},
    ],
    "$schema": [{"$schema": "https://json-schema.org/draft/2020-12/schema", **INTEGER}],
    "$vocabulary": [{"$vocabulary": {}, **INTEGER}],
    "additionalItems": [{"type": "array", "items": [INTEGER], "additionalItems": False}],
    "additionalProperties": [
        {"type": "object", "additionalProperties": INTEGER},
        {"type": "object", "properties": {"a": {}}, "additionalProperties": False},
    ],
    "allOf": [
        {"allOf": [INTEGER, {"minimum": 5}]},
        {"allOf": [{"properties": {"a": INTEGER}}, {"properties": {"b": INTEGER}}]},
        {"allOf": [{"type": "object", "properties": {"a": {}}, "additionalProperties": False}, {"type": "object"}]},
    ],
    "anyOf": [
        {"anyOf": [INTEGER, STRING]},
        {"type": "object", "properties": {"a": INTEGER}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {"anyOf": [False, INTEGER]},
    ],
    "const": [{"const": {"b": 1, "a": 2}}, {"const": [1, "x"]}, {"const": "a\nü"}, {"const": 10**20}, {"const": None}],
    "contains": [{"contains": {"const": 1}}],
    "contentEncoding": [{**STRING, "contentEncoding": "base64"}],
    "contentMediaType": [{**STRING, "contentMediaType": "application/json"}],
    "contentSchema": [{**STRING, "contentMediaType": "application/json", "contentSchema": {}}],
    "default": [{"default": {"not": {}}, **INTEGER}],
    "definitions": [{"$ref": "#/definitions/x", "definitions": {"x": INTEGER}}],
    "dependencies": [{"dependencies": {"a": ["b"]}}],
    "dependentRequired": [{"dependentRequired": {"a": ["b"]}}],
    "dependentSchemas": [{"dependentSchemas": {"a": {"required": ["b"]}}}],
    "deprecated": [{"deprecated": True, **INTEGER}],
    "description": [{"description": "x", **INTEGER}],
    "disallow": [{"disallow": "string"}],
    "discriminator": [{"type": "object", "discriminator": {"propertyName": "kind"}}],
    "divisibleBy": [{"divisibleBy": 5, **INTEGER}],
    "else": [{"else": False}],
    "enum": [{"enum": ["\\", '"', "\u0000", "ü", 1.5, {"a": 1}, [1]]}, {"enum": [None]}, {**STRING, "enum": ["a", 1]}],
    "examples": [{"examples": [1], **INTEGER}],
    "exclusiveMaximum": [{**INTEGER, "exclusiveMaximum": 5}, {"type": "number", "exclusiveMaximum": 0}],
    "exclusiveMinimum": [{**INTEGER, "exclusiveMinimum": 5}, {"exclusiveMinimum": 0.1}],
    "extends": [{"extends": INTEGER}],
    "format": [
        *(
            {**STRING, "format": name}
            for name in ("date", "time", "date-time", "duration", "email", "hostname", "uuid")
        ),
        *(
            {**STRING, "format": name}
            for name in ("ipv4", "ipv6", "uri", "unknown", "regex", "json-pointer", "", "DATE")
        ),
        *({**STRING, "format": name} for name in ("uri-reference", "iri", "idn-email", "idn-hostname", "uri-template")),
        {"format": "date"},
        {**STRING, "format": "date", "pattern": "^2026"},
    ],
    "formatMinimum": [{**STRING, "format": "date", "formatMinimum": "2030-01-01"}],
    "if": [{"if": {"const": 1}, "then": {"const": 1}}],
    "items": [
        {"type": "array", "items": INTEGER},
        {"type": "array", "items": False},
        {"items": INTEGER},
        {"type": "array", "items": [INTEGER, STRING]},
    ],
    "maxContains": [{"contains": {}, "maxContains": 1}],
    "maxItems": [{"type": "array", "maxItems": 1}, {"maxItems": 0}],
    "maxLength": [{**STRING, "maxLength": 1}, {"maxLength": 1}],
    "maxProperties": [{"type": "object", "maxProperties": 1}],
    "maximum": [{**INTEGER, "maximum": 5}, {"type": "number", "maximum": 1.25}, {**INTEGER, "maximum": -(10**17)}],
    "minContains": [{"minContains": 2}],
    "minItems": [{"type": "array", "minItems": 2}],
    "minLength": [{**STRING, "minLength": 2}, {"minLength": 2}],
    "minProperties": [{"type": "object", "minProperties": 1}, {"type": "object", "minProperties": 2}],
    "minimum": [{**INTEGER, "minimum": 5}, {"minimum": 1.25}, {**INTEGER, "minimum": 2**53}],
    "multipleOf": [
        {**INTEGER, "multipleOf": 5},
        {"multipleOf": 0.5},
        {**INTEGER, "multipleOf": 1.5},
        {**INTEGER, "multipleOf": 0},
        {**INTEGER, "multipleOf": -1},
    ],
    "not": [{"not": STRING}, {"properties": {"a": {"not": {}}}}],
    "nullable": [{"nullable": True, **INTEGER}],
    "oneOf": [
        {"oneOf": [INTEGER, STRING]},
        {"oneOf": [INTEGER, {"type": "number"}]},
        {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
    ],
    "pattern": [
        *(
            {**STRING, "pattern": one}
            for one in ("^a", "b$", "^a|b$", r"\d", r"^\w$", r"\p{L}", "(?i)A", "^.$", "[[a]")
        ),
        *({**STRING, "pattern": one} for one in ("a(?!b)", r"(a)\1", r"\bx", "[[:alpha:]]", "a++", "(")),
        {"pattern": "^a", "maxLength": 2},
    ],
    "patternProperties": [
        {"type": "object", "patternProperties": {"^a": INTEGER}},
        {"type": "object", "patternProperties": {"^p[0-9]$": INTEGER}, "additionalProperties": False},
        {"type": "object", "properties": {"a": INTEGER}, "patternProperties": {"^a": {"minimum": 5}}},
        {"type": "object", "patternProperties": {"a": INTEGER, "b": STRING}},
    ],
    "prefixItems": [
        {"type": "array", "prefixItems": [INTEGER, STRING]},
        {"type": "array", "prefixItems": [STRING], "items": False},
        {"type": "array", "prefixItems": [False]},
    ],
    "properties": [
        {"type": "object", "properties": {"ü": INTEGER, 'q"': INTEGER, "a b": INTEGER}, "additionalProperties": False},
        {"properties": {"$ref": STRING, "not": INTEGER, "a": False}},
    ],
    "propertyNames": [{"propertyNames": {"pattern": "^a"}}],
    "readOnly": [{"readOnly": True, **INTEGER}],
    "required": [
        {"type": "object", "required": ["a"]},
        {"required": ["a", "b"]},
        {**INTEGER, "required": True},
        {"type": "object", "required": ["a"], "additionalProperties": False},
    ],
    "then": [{"then": False}],
    "title": [{"title": "x", **INTEGER}],
    "type": [{"type": ["integer", "null"]}, {"type": []}, {"type": "any"}, {"type": None}],
    "unevaluatedItems": [{"type": "array", "prefixItems": [{}], "unevaluatedItems": False}],
    "unevaluatedProperties": [{"type": "object", "unevaluatedProperties": False}],
    "uniqueItems": [{"type": "array", "uniqueItems": True}],
    "writeOnly": [{"writeOnly": True, **INTEGER}],
}
"""Schemas of each keyword."""
VALUES: list[Json] = [
    *(None, True, False, 0, 1, -1, 2, 5, 10, 1.5, 0.1, 1.25, -0.5, 10**20, 2**53 + 1, -(2**53) - 1),
    *("", "a", "ab", "abc", "a1", "b", "x", "ü", "[", "😀", "\u0000", "a\nü", "a\n", "\\", '"', "1"),
    *("2026-12-01", "2030-02-30", "12:00:00Z", "2026-12-01T00:00:00Z", "a@b.cd", "192.168.0.1", "::1", "http://a.b/c"),
    *("a.example", "P1D", "123e4567-e89b-12d3-a456-426614174000", "/a/b", "{}"),
    *([], [1], [1, 1], [1, 2, 3], ["a"], [1, "a"], ["a", 1], [None], [[1]], [True, "x", None]),
    *(
        {},
        {"a": 1},
        {"a": "x"},
        {"b": 1},
        {"a": 1, "b": 2},
        {"b": 1, "a": 2},
        {"ü": 1},
        {'q"': 1},
        {"a b": "x"},
        {"p1": 1},
    ),
    *(
        {"p1": "x"},
        {"next": {"next": {}}},
        {"next": None},
        {"$ref": "#"},
        {"not": 1},
        {"not": "x"},
        {"ab": 7},
        {"kind": "x"},
    ),
]
WITHOUT_EFFECT = frozenset(
    {
        *(
            "$comment",
            "$defs",
            "$schema",
            "$vocabulary",
            "default",
            "definitions",
            "deprecated",
            "description",
            "examples",
        ),
        *("readOnly", "title", "writeOnly", "contentEncoding", "contentMediaType", "contentSchema"),
        *("discriminator", "nullable"),  # of OpenAPI: the schemas that they stand beside restrict the value as much
    }
)
"""Annotations, which restrict no value."""
CASES = [(keyword, schema) for keyword, schemas in KINDS.items() for schema in schemas]


def validator(schema: Json) -> Any:  # jsonschema_rs's classes have no common type
    """The validator of the draft in which a list of `items` has its meaning, or else of the latest."""
    kind = (
        jsonschema_rs.Draft7Validator if isinstance(schema.get("items"), list) else jsonschema_rs.Draft202012Validator
    )
    return kind(schema, validate_formats=True)


def takes(grammar: CompiledGrammar, value: Json) -> bool:
    matcher, tokens = begun(grammar), tokens_of(compact(value))
    if matcher.num_valid(tokens) != len(tokens):
        return False
    for token in tokens:
        matcher.advance(token)
    return matcher.is_over or matcher.num_valid([END]) == 1


def outcome(schema: Json) -> CompiledGrammar | str:
    """The grammar of a schema, or the text of its refusal."""
    try:
        return compiled(json_grammar(schema), VOCABULARY)
    except InvalidParameter as refused:
        return refused.message


@pytest.mark.parametrize(("keyword", "schema"), CASES, ids=[json.dumps(schema)[:60] for _, schema in CASES])
def test_a_keyword_is_applied_or_refused_by_its_name(keyword: str, schema: Json) -> None:
    if isinstance(grammar := outcome(schema), str):
        names = {keyword, *map(str, schema.values())} - {""}
        reasons = ("no text satisfies it", "unsatisfiable", "regex", "disjoint", "unknown format", "anyof is empty")
        assert [word for word in (*names, *reasons) if word.lower() in grammar.lower()], grammar
        assert len(grammar) < 600
        return
    valid = validator(schema).is_valid
    taken = [value for value in VALUES if takes(grammar, value)]
    assert [value for value in taken if not valid(value)] == []
    if keyword not in WITHOUT_EFFECT:
        assert len(taken) < len(VALUES), "it restricts nothing"


def test_a_cycle_of_references_alone_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="no text satisfies it"):
        compiled(json_grammar(CYCLE), VOCABULARY)


@pytest.mark.parametrize(
    ("schema", "accepted", "refused"),
    [
        ({**INTEGER, "format": "int32"}, [2**31 - 1, -(2**31)], [2**31, -(2**31) - 1]),
        ({**INTEGER, "format": "int32", "minimum": 5}, [5], [4, 2**31]),
        ({**INTEGER, "format": "int64"}, [2**62, -(2**62)], [2**62 + 1, -(2**62) - 1, 2**63]),
    ],
)
def test_the_formats_of_integers_are_their_bounds(schema: Json, accepted: list[int], refused: list[int]) -> None:
    grammar = compiled(json_grammar(schema), VOCABULARY)
    assert [takes(grammar, value) for value in accepted + refused] == [True] * len(accepted) + [False] * len(refused)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    folder = tmp_path_factory.mktemp("vocabulary")
    base = write_tiny_base(folder / "tiny")
    settings = {"model.cache_dir": make_cache(folder / "cache"), "model.threads": 1, "engine.kv_bytes": 1 << 21}
    flags = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    with (
        running_server(folder / "log", "--base", str(base), *flags) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
    ):
        yield client


@pytest.mark.long
def test_a_server_applies_a_schema_or_refuses_it_by_name(client: httpx2.Client) -> None:
    """One schema of each keyword; replies of a random model satisfy theirs."""
    answered = 0
    for keyword, (schema, *_) in KINDS.items():
        body = {"prompt": "x", "max_tokens": 40, "temperature": 1.0, "seed": 7, "guided_json": schema}
        reply = client.post("/v1/completions", json=body)
        if reply.status_code == 400:
            error = reply.json()["error"]
            assert error["param"] == "guided_json"
            assert keyword in error["message"]
            continue
        assert reply.status_code == 200, reply.text
        (choice,) = reply.json()["choices"]
        if choice["finish_reason"] == "stop":
            answered += 1
            assert validator(schema).is_valid(json.loads(choice["text"]))
    assert answered > 20
