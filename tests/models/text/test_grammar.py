"""Grammars of requests: checked before they are compiled, and refused by the keyword or the limit."""

import json
from typing import Any

import pytest

from manylora.errors import InvalidParameter
from manylora.models.text.grammar import (
    MAX_CHOICES,
    MAX_DEPTH,
    MAX_GRAMMAR_BYTES,
    MAX_PLAIN_BYTES,
    MAX_SCHEMAS,
    UNSUPPORTED,
    choice_grammar,
    json_grammar,
    json_object_grammar,
    lark_grammar,
    regex_grammar,
    with_whitespace,
)
from manylora.models.text.lark import TOKENS


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def test_options_of_the_compiler_are_removed_where_a_schema_may_have_them() -> None:
    options = {"lenient": True, "whitespace_flexible": True}
    schema = {
        "x-guidance": options,
        "type": "object",
        "properties": {"x-guidance": {"type": "string", "x-guidance": options}},
        "patternProperties": {"^a": {"x-guidance": options}},
        "additionalProperties": {"x-guidance": options},
        "allOf": [{"x-guidance": options}],
        "$defs": {"d": {"items": {"x-guidance": options}, "enum": [{"x-guidance": 1}]}},
    }
    assert json.loads(json_grammar(schema).text) == {
        "type": "object",
        "properties": {"x-guidance": {"type": "string"}},
        "patternProperties": {"^a": {}},
        "additionalProperties": {},
        "allOf": [{}],
        "$defs": {"d": {"items": {}, "enum": [{"x-guidance": 1}]}},
    }
    assert schema["x-guidance"] is options, "the schema is not changed"


@pytest.mark.parametrize("keyword", sorted(UNSUPPORTED))
def test_a_keyword_that_cannot_be_enforced_is_refused_with_its_place(keyword: str) -> None:
    schema = {"type": "object", "properties": {"a": {"items": {keyword: {"type": "string"}}}}}
    with pytest.raises(InvalidParameter, match=rf"`{keyword.replace('$', '.')}` \(#/properties/a/items\)") as refused:
        json_grammar(schema, field="guided_json")
    assert refused.value.parameter == "guided_json"
    json_grammar({"properties": {keyword: {"const": {keyword: 1}}}})  # a property's name, and a value


def test_every_unsupported_keyword_is_listed() -> None:
    with pytest.raises(InvalidParameter, match=r"`not` \(#\), `if` \(#/anyOf/0\), `then` \(#/anyOf/0\)"):
        json_grammar({"not": {}, "anyOf": [{"if": {}, "then": {}}]})


def test_values_without_an_effect_are_no_refusal() -> None:
    schema = {"type": "array", "uniqueItems": False, "unevaluatedItems": True, "unevaluatedProperties": True}
    assert json.loads(json_grammar(schema).text) == {"type": "array"}


@pytest.mark.parametrize(
    ("schema", "limit"),
    [
        (nested(200), f"nested more than {MAX_DEPTH} levels"),
        ({"enum": ["x" * 100] * 100_000}, f"the limit is {MAX_GRAMMAR_BYTES}"),
        ({"anyOf": [{}] * (MAX_SCHEMAS + 1)}, f"more than {MAX_SCHEMAS} schemas"),
        ({"enum": [json.loads("[" * 300 + "]" * 300)]}, f"nested more than {MAX_DEPTH} levels"),
        (False, "a schema is an object"),
        ("object", "a schema is an object"),
        ([], "a schema is an object"),
    ],
    ids=["deep", "long", "many", "deep value", "false", "text", "array"],
)
def test_a_schema_beyond_a_limit_is_refused_with_it(schema: object, limit: str) -> None:
    with pytest.raises(InvalidParameter, match=limit):
        json_grammar(schema)


def test_a_schema_within_the_limits_is_taken() -> None:
    json_grammar(nested(30))
    json_grammar({"enum": [f"value-{number}" for number in range(5000)]})
    assert json_grammar(True) == json_grammar({})


def test_the_field_is_no_part_of_a_grammar() -> None:
    assert json_grammar({}, field="a") == json_grammar({}, field="b")
    assert json_object_grammar() == json_grammar({"type": "object"})


@pytest.mark.parametrize("choices", [[], ["a", ""], [str(number) for number in range(MAX_CHOICES + 1)]])
def test_choices_are_some_texts(choices: list[str]) -> None:
    with pytest.raises(InvalidParameter):
        choice_grammar(choices)


def test_other_grammars_are_bounded_too() -> None:
    for made in (regex_grammar, lark_grammar):
        with pytest.raises(InvalidParameter, match="empty"):
            made("")
        with pytest.raises(InvalidParameter, match="the limit is"):
            made("a" * (MAX_GRAMMAR_BYTES + 1))
    with pytest.raises(InvalidParameter, match="the limit is 16384"):
        lark_grammar('root ::= "' + "a" * 17_000 + '"')


def test_white_space_belongs_to_json() -> None:
    assert with_whitespace(json_object_grammar(), "[ ]?", field="w").whitespace == "[ ]?"
    for source in (None, regex_grammar("a")):
        with pytest.raises(InvalidParameter, match="`w` needs a JSON form"):
            with_whitespace(source, "[ ]?", field="w")
    with pytest.raises(InvalidParameter, match="the limit is 256"):
        with_whitespace(json_object_grammar(), " " * 257, field="w")


PLAIN = [
    {},
    {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False},
    {
        "anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}],
        "title": "t",
        "$defs": {"a": {"type": "string", "maxLength": 9}},
    },
    {"type": "string", "format": "date"},
    {"type": "array", "maxItems": 64, "items": {"type": "integer", "minimum": -(1 << 53)}},
]
NOT_PLAIN = [
    {"type": "string", "pattern": "a"},
    {"type": "string", "format": "time"},
    {"type": "string", "format": "date", "maxLength": 9},
    {"allOf": [{"type": "string"}]},
    {"anyOf": [{"type": "string"}], "type": "string"},
    {"items": {"patternProperties": {"a": {}}}},
    {"type": "array", "maxItems": 65},
    {"items": {"type": "array", "minItems": 1e9}},
    {"type": "object", "maxProperties": 65},
    {"type": "string", "minLength": (1 << 16) + 1},
    {"type": "number", "maximum": 1e300},
    {"type": "number", "exclusiveMinimum": -1e300},
    {"enum": ["x" * MAX_PLAIN_BYTES]},
]


@pytest.mark.parametrize(
    ("schema", "is_plain"), [*((each, True) for each in PLAIN), *((each, False) for each in NOT_PLAIN)]
)
def test_a_schema_is_plain_where_nothing_in_it_is_intersected(schema: dict[str, Any], is_plain: bool) -> None:
    assert json_grammar(schema).is_plain is is_plain


def test_expressions_rules_and_white_space_of_the_caller_are_not_plain() -> None:
    assert choice_grammar(["a", "b"]).is_plain
    plain = json_grammar({})
    for grammar in (regex_grammar("a"), lark_grammar("start: /a/"), with_whitespace(plain, "a*", field="x")):
        assert not grammar.is_plain


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"required": True}, r"`required` \(#/properties/a\) must be a list"),
        ({"multipleOf": 0}, r"`multipleOf` \(#/properties/a\) must be above 0"),
        ({"minimum": 2**53 + 1}, r"`minimum` \(#/properties/a\) is 9007199254740993, which has more digits"),
        ({"exclusiveMaximum": -(10**17) - 5}, r"`exclusiveMaximum` \(#/properties/a\) is -100000000000000005"),
        ({"format": "unknown"}, r"the `format` unknown \(#/properties/a\)"),
    ],
)
def test_a_value_that_the_compiler_would_pass_over_is_refused(schema: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidParameter, match=why):
        json_grammar({"type": "object", "properties": {"a": schema}})


def test_schemas_in_rules_are_checked_like_others() -> None:
    text = 'start: "%json {" | %json {"x-guidance": {"lenient": true}, "type": "null"} "x" // %json {\n'
    assert lark_grammar(text).text == 'start: "%json {" | %json {"type":"null"} "x" // %json {\n'
    with pytest.raises(InvalidParameter, match=r"`guided_grammar`.*`not` \(#\)"):
        lark_grammar('start: %json {"not": {}}', field="guided_grammar")
    with pytest.raises(InvalidParameter, match="no JSON follows"):
        lark_grammar("start: %json {")


@pytest.mark.parametrize(
    "rule", ["a[temperature=0.5]: /a/", "!b[max_tokens=3, capture]: /a/", '  c[capture="x"] : /a/']
)
def test_attributes_without_an_effect_are_refused(rule: str) -> None:
    with pytest.raises(InvalidParameter, match="of a rule has no effect"):
        lark_grammar(f"start: a\n{rule}")
    lark_grammar('start[max_tokens=3]: "a[capture]: " /b[temperature]:/')


HIDING = {
    "a comment with a quotation mark": 'start: a # "\na: %json {}',
    "a comment with a slash": "start: a # /\na: %json {}",
    "a comment with a bracket": "start: a // <[\na: %json {}",
    "a regular expression of two lines": 'start: a b\nb: /"\n/\na: %json {}',
}


@pytest.mark.parametrize("name", HIDING)
def test_no_text_hides_a_schema_from_its_check(name: str) -> None:
    open_schema = '{"x-guidance": {"lenient": true}, "type": "null"}'
    assert lark_grammar(HIDING[name].replace("{}", open_schema)).text == HIDING[name].replace("{}", '{"type":"null"}')
    with pytest.raises(InvalidParameter, match="`not`"):
        lark_grammar(HIDING[name].replace("{}", '{"not": {}, "x-guidance": {"lenient": true}}'))


@pytest.mark.parametrize("begin", ['"', "/", "<[", "#", "//"])
@pytest.mark.parametrize("rest", ['\\"', "\\/", "<[", "x"])
def test_the_reader_of_tokens_begins_at_no_character_twice(begin: str, rest: str) -> None:
    """A token without its end takes what it has read, so that the next one begins behind it."""
    text = begin + rest * 2000
    assert [token.span() for token in TOKENS.finditer(text)] == [(0, len(text))]


def test_each_schema_of_a_grammar_is_read_where_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    read, copied = json.JSONDecoder.raw_decode, list[int]()

    def counting(self: json.JSONDecoder, text: str, idx: int = 0) -> tuple[object, int]:
        copied.append(0 if text is whole else len(text))
        return read(self, text, idx)

    whole = "start: " + "%json {} " * 1000
    monkeypatch.setattr(json.JSONDecoder, "raw_decode", counting)
    lark_grammar(whole)
    assert copied == [0] * 1000
    with pytest.raises(InvalidParameter, match=f"more than {MAX_SCHEMAS} schemas"):
        lark_grammar("start: " + "%json {} " * (MAX_SCHEMAS + 1))
