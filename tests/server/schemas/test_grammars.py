"""The fields that give the text a form, in every dialect: read into one grammar, or refused."""

import json
from typing import Any

import pytest

from manylora.config.groups.server import ServerConfig
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
from manylora.server.routes.lorax.orders import read_generate
from manylora.server.routes.openai.orders import read_chat, read_completion

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
OTHER = {"type": "array"}
SETTINGS = ServerConfig()


def orders(fields: dict[str, Any]) -> list[GrammarSource | None]:
    """The grammars that the three kinds of bodies ask for by these fields."""
    chat = json.dumps({"messages": [{"role": "user", "content": "Hi"}], **fields}).encode()
    completion = json.dumps({"prompt": "Hi", **fields}).encode()
    generate = json.dumps({"inputs": "Hi", "parameters": fields}).encode()
    return [
        read_chat(chat, SETTINGS)[0].grammar,
        read_completion(completion, SETTINGS)[0].grammar,
        read_generate(generate, SETTINGS, max_input=100, is_stream=False)[0].grammar,
    ]


FORMS: list[tuple[dict[str, Any], GrammarSource | None]] = [
    ({}, None),
    ({"response_format": None}, None),
    *(({"response_format": {"type": kind}}, None) for kind in ("text", "Text")),
    *(({"response_format": {"type": kind}}, json_object_grammar()) for kind in ("json_object", "JsonObject")),
    *(({"response_format": {"type": kind}}, json_object_grammar()) for kind in ("json_schema", "JsonSchema")),
    *(
        ({"response_format": {"type": kind, "schema": SCHEMA}}, json_grammar(SCHEMA))
        for kind in ("json_object", "json_schema", "JsonObject", "JsonSchema")
    ),
    *(
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, **more}}},
            json_grammar(SCHEMA),
        )
        for more in ({}, {"strict": True}, {"strict": False, "description": "d"}, {"strict": None})
    ),
    ({"guided_json": SCHEMA}, json_grammar(SCHEMA)),
    ({"guided_json": json.dumps(SCHEMA)}, json_grammar(SCHEMA)),
    ({"guided_regex": "a+"}, regex_grammar("a+")),
    ({"guided_choice": ["a", "b"]}, choice_grammar(["a", "b"])),
    ({"guided_grammar": 'start: "a"'}, lark_grammar('start: "a"')),
    ({"guided_json_object": True}, json_object_grammar()),
    ({"guided_json": SCHEMA, "guided_whitespace_pattern": "[ ]?"}, json_grammar(SCHEMA, whitespace="[ ]?")),
    ({"guided_json": SCHEMA, "guided_decoding_backend": "auto"}, json_grammar(SCHEMA)),
    ({"structured_outputs": {"json": SCHEMA}}, json_grammar(SCHEMA)),
    ({"structured_outputs": {"json": json.dumps(SCHEMA), "regex": None}}, json_grammar(SCHEMA)),
    ({"structured_outputs": {"regex": "a+"}}, regex_grammar("a+")),
    ({"structured_outputs": {"choice": ["a"]}}, choice_grammar(["a"])),
    ({"structured_outputs": {"grammar": 'root ::= "a"'}}, lark_grammar('root ::= "a"')),
    ({"structured_outputs": {"json_object": True}}, json_object_grammar()),
    (
        {"structured_outputs": {"json": SCHEMA, "whitespace_pattern": "[ ]?"}},
        json_grammar(SCHEMA, whitespace="[ ]?"),
    ),
    (
        {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": False}},
        json_grammar(SCHEMA, whitespace=FLEXIBLE),
    ),
    ({"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}}, json_grammar(SCHEMA)),
    ({"structured_outputs": {"json": SCHEMA, "disable_fallback": True}}, json_grammar(SCHEMA)),
]


@pytest.mark.parametrize(("fields", "grammar"), FORMS, ids=lambda value: str(value)[:60])
def test_a_form_is_read_on_every_route(fields: dict[str, Any], grammar: GrammarSource | None) -> None:
    assert orders(fields) == [grammar] * 3


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"response_format": "json"}, "`response_format`: expected an object"),
    ({"response_format": {}}, "`type` is one of text, json_object, json_schema"),
    ({"response_format": {"type": "regex"}}, "`type` is one of"),
    ({"response_format": {"type": "structural_tag"}}, "`type` is one of"),
    ({"response_format": {"type": 3}}, "`type`: expected a string"),
    ({"response_format": {"type": "text", "schema": SCHEMA}}, "`text` takes no `schema`"),
    ({"response_format": {"type": "json_object", "value": SCHEMA}}, "use `schema`"),
    ({"response_format": {"type": "json_schema", "schema": "x"}}, "a schema is an object"),
    ({"response_format": {"type": "json_schema", "schema": {"not": {}}}}, "`not` (#)"),
    ({"response_format": {"type": "json_schema", "json_schema": {"strict": 1}}}, "`strict`: expected a boolean"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schem": {}}}}, "`schem` is not a known field"),
    (
        {"response_format": {"type": "json_schema", "schema": SCHEMA, "json_schema": {"schema": OTHER}}},
        "two schemas",
    ),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "both give the text a form"),
    ({"guided_json": "{"}, "`guided_json`: expected a JSON schema"),
    ({"guided_choice": [1]}, "`guided_choice`: expected an array of strings"),
    ({"guided_choice": ["a", ""]}, "none may be empty"),
    ({"guided_whitespace_pattern": "[ ]"}, "needs a JSON form"),
    ({"guided_regex": "a", "guided_whitespace_pattern": "[ ]"}, "needs a JSON form"),
    (
        {"structured_outputs": {"json": SCHEMA, "regex": "a"}},
        "`structured_outputs.json` and `structured_outputs.regex`",
    ),
    ({"structured_outputs": {"structural_tag": "{}"}}, "`structural_tag` is not supported by this server yet"),
    ({"structured_outputs": {"disable_additional_properties": True}}, "`disable_additional_properties`"),
    ({"structured_outputs": {"jsn": {}}}, "the nearest known one is `json`"),
    ({"guided_decoding_backend": "outlines", "guided_regex": "a"}, "`guided_decoding_backend` is not supported"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=lambda value: str(value)[:60])
def test_a_form_that_is_not_served_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    for names in ("chat", "completion", "generate"):
        with pytest.raises(InvalidParameter) as refused:
            orders(fields) if names == "chat" else read_one(names, fields)
        assert message in str(refused.value)


def read_one(kind: str, fields: dict[str, Any]) -> None:
    if kind == "completion":
        read_completion(json.dumps({"prompt": "Hi", **fields}).encode(), SETTINGS)
    else:
        read_generate(
            json.dumps({"inputs": "Hi", "parameters": fields}).encode(), SETTINGS, max_input=100, is_stream=False
        )
