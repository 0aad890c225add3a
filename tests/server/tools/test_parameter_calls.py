"""Calls of tags, as Qwen3-Coder writes them: read as JSON by the tool's schema from any pieces."""

import json
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.server.tools.calls import CallArguments, CallStart, ToolCallReader
from manylora.server.tools.formats import QWEN3_CODER
from manylora.server.tools.tool import Tool
from tests.server.tools.test_calls import read, tagged

Json = Any  # a JSON value of any type
OPTIONAL = {"anyOf": [{"type": "string"}, {"type": "null"}]}
SCHEMA: Json = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"enum": ["C", "F", None]},
        "note": OPTIONAL,
        "days": {"type": "array", "items": {"type": "integer"}},
        "either": {"type": ["string", "integer", "boolean", "array"]},
        "any": {},
        "deep": {"$ref": "#/$defs/deep"},
    },
    "required": ["city"],
    "$defs": {"deep": {"type": "object", "properties": {"a": {"type": "string"}}}},
}
TOOL = Tool(name="ask", parameters=SCHEMA, given={})
BARE = Tool(name="now", parameters=None, given={})
TOOLS = (TOOL, BARE)


texts = st.text(alphabet='ab<>/="\\\n{[1 é', max_size=12) | st.sampled_from(
    [
        "",
        "\n",
        "</parameter>",
        "a</function>",
        "nul",
        "nullx",
        "tru",
        "1e",
        "-",
        "\n\nx\n",
        '{"a": 1}',
        "</parameter",
        "</",
    ]
)
plain_texts = texts.filter(lambda text: "</parameter>" not in text)
scalars = st.none() | st.booleans() | st.integers(-99, 99)
arguments = st.fixed_dictionaries(
    {"city": plain_texts},
    optional={
        "unit": st.sampled_from(["C", "F", None]),
        "note": st.none() | plain_texts.filter(lambda text: text != "null"),
        "days": st.lists(st.integers(-9, 9), max_size=3),
        "either": st.integers(-99, 99) | st.booleans() | st.lists(scalars | texts, max_size=2),
        "any": scalars | st.lists(texts, max_size=2) | st.dictionaries(texts, scalars, max_size=2),
        "deep": st.fixed_dictionaries({"a": texts}),
    },
)


@given(st.lists(arguments, min_size=1, max_size=2), st.sampled_from(["", "Let me look."]))
def test_calls_are_read_from_any_pieces_of_the_text(called: list[dict[str, Json]], before: str) -> None:
    text = (f"{before}\n" if before else "") + "\n".join(tagged("ask", each) for each in called)
    content, found = read(QWEN3_CODER, [text], tools=TOOLS)
    assert content == before
    assert [(name, json.loads(given)) for name, given in found] == [("ask", each) for each in called]
    assert all(jsonschema_rs.is_valid(SCHEMA, json.loads(given)) for _, given in found)
    for width in (1, 2, 3, 7):
        pieces = [text[at : at + width] for at in range(0, len(text), width)]
        assert read(QWEN3_CODER, pieces, tools=TOOLS) == (content, found)


def test_a_call_goes_out_while_it_is_written() -> None:
    reader = ToolCallReader(QWEN3_CODER, TOOLS)
    assert reader.push("<tool_call>\n<function=ask>") == [CallStart(0, "ask")]
    assert reader.push("\n<parameter=city>\nRo") == [CallArguments(0, '{"city": "Ro')]
    assert reader.push('"m\n</par') == [CallArguments(0, '\\"m')]
    assert reader.push("e\n</parameter>") == [CallArguments(0, '\\n</pare"')]
    assert reader.push("\n<parameter=note>\nnul") == [CallArguments(0, ', "note": ')]
    assert reader.push("l\n</parameter>\n") == [CallArguments(0, "null")]
    assert reader.push("</function>\n</tool_call>") == [CallArguments(0, "}")]
    assert reader.finish() == []


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("7", 7),
        ("-7", -7),
        ("7.5", "7.5"),
        ("true", True),
        ("True", "True"),
        ("null", "null"),
        ("[1]", [1]),
        ("07", "07"),
    ],
)
def test_a_value_that_may_be_a_string_is_read_by_its_text(written: str, value: Json) -> None:
    text = tagged("ask", {"city": "x", "either": written})
    assert json.loads(read(QWEN3_CODER, list(text), tools=TOOLS)[1][0][1])["either"] == value


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\n<function=rm>\n</function>\n</tool_call>",
        "<tool_call>\n<functions",
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        "<tool_call>\n<function=" + "n" * 300,
    ],
)
def test_what_is_no_call_of_a_tool_is_content(text: str) -> None:
    assert read(QWEN3_CODER, list(text), tools=TOOLS) == (text, [])


def test_a_call_without_parameters_has_an_empty_object() -> None:
    assert read(QWEN3_CODER, [tagged("now", {})], tools=TOOLS) == ("", [("now", "{}")])


def test_a_call_cut_by_the_budget_keeps_its_part() -> None:
    text = "<tool_call>\n<function=ask>\n<parameter=city>\nRom"
    assert read(QWEN3_CODER, list(text), tools=TOOLS) == ("", [("ask", '{"city": "Rom')])


def test_a_value_without_line_ends_is_read() -> None:
    text = "<tool_call><function=ask><parameter=city>Rome</parameter></function></tool_call>"
    assert read(QWEN3_CODER, list(text), tools=TOOLS) == ("", [("ask", '{"city": "Rome"}')])


def test_a_tag_ends_a_value_that_has_no_line_end_of_its_own() -> None:
    """The line end behind the tag of an empty value is the one in front of its end as well."""
    text = "<tool_call>\n<function=ask>\n<parameter=city>\n</parameter>\n<parameter=note>\nx\n</parameter>\n</function>"
    expected = ("", [("ask", '{"city": "", "note": "x"}')])
    for width in (1, 2, 3, len(text)):
        assert read(QWEN3_CODER, [text[at : at + width] for at in range(0, len(text), width)], tools=TOOLS) == expected
    assert read(QWEN3_CODER, [text.replace("\nx\n", "\nx")], tools=TOOLS) == expected


def test_a_tag_in_a_string_of_json_ends_no_value() -> None:
    called = {"city": "x", "either": ["</parameter>", '\\"</parameter>'], "deep": {"a": "</parameter>"}}
    assert json.loads(read(QWEN3_CODER, list(tagged("ask", called)), tools=TOOLS)[1][0][1]) == called


def test_each_character_of_a_number_is_matched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = list[int]()

    def noted(text: str, _: frozenset[str]) -> bool:
        lengths.append(len(text))
        return True

    monkeypatch.setattr("manylora.server.tools.parameter_calls.is_scalar", noted)
    digits = "1" * 100_000
    text = tagged("ask", {"city": "x", "either": digits})
    assert read(QWEN3_CODER, [text], tools=TOOLS)[1] == [("ask", f'{{"city": "x", "either": {digits}}}')]
    assert lengths == [len(digits)]
