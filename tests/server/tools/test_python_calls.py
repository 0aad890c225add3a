"""Calls of Llama's built-in tools: `name.call(…)` and code, beside calls of other tools, from any pieces."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.server.tools.calls import CallArguments, CallStart, ToolCallReader
from manylora.server.tools.formats import LLAMA3_BUILT_IN
from manylora.server.tools.tool import Tool
from tests.server.tools.test_calls import read

TAG = "<|python_tag|>"


def tool(name: str, *keys: str, **more: Any) -> Tool:
    """A tool with strings as arguments."""
    properties = {key: {"type": "string"} for key in keys}
    schema = {"type": "object", "properties": properties, "required": list(keys), **more}
    return Tool(name=name, parameters=schema, given={"type": "function", "function": {"name": name}})


SEARCH, CODE, OTHER = tool("brave_search", "query"), tool("code_interpreter", "code"), tool("find", "query")
TOOLS = (SEARCH, tool("wolfram_alpha", "query", "unit"), CODE, OTHER)
texts = st.text(alphabet='ab"\\(){},.=\n é', max_size=12)


@given(st.fixed_dictionaries({"query": texts, "unit": texts}))
def test_a_call_is_read_from_any_pieces(arguments: dict[str, str]) -> None:
    keys = ", ".join(f"{key}={json.dumps(value)}" for key, value in arguments.items())
    text = f"{TAG}wolfram_alpha.call({keys})"
    content, found = read(LLAMA3_BUILT_IN, [text], tools=TOOLS)
    assert (content, [(name, json.loads(given)) for name, given in found]) == ("", [("wolfram_alpha", arguments)])
    for width in (1, 2, 3, 7):
        pieces = [text[at : at + width] for at in range(0, len(text), width)]
        assert read(LLAMA3_BUILT_IN, pieces, tools=TOOLS) == (content, found)


@given(texts.filter(lambda text: text and not text[0].isspace() and text[0] != "{"))
def test_other_text_behind_the_tag_is_code(text: str) -> None:
    expected = ("", [("code_interpreter", {"code": text})])
    for pieces in ([TAG + text], list(TAG + text)):
        content, found = read(LLAMA3_BUILT_IN, pieces, tools=TOOLS)
        assert (content, [(name, json.loads(given)) for name, given in found]) == expected


def test_code_that_begins_like_a_call_is_code() -> None:
    assert read(LLAMA3_BUILT_IN, list(f"{TAG}brave"), tools=TOOLS)[1] == [("code_interpreter", '{"code": "brave"}')]
    (call,) = read(LLAMA3_BUILT_IN, list(f"{TAG}brave_search(1)"), tools=TOOLS)[1]
    assert call == ("code_interpreter", '{"code": "brave_search(1)"}')


def test_code_goes_out_while_it_is_written() -> None:
    reader = ToolCallReader(LLAMA3_BUILT_IN, TOOLS)
    assert reader.push(f"{TAG}pri") == [CallStart(0, "code_interpreter"), CallArguments(0, '{"code": "pri')]
    assert reader.push('nt("x")\n') == [CallArguments(0, 'nt(\\"x\\")\\n')]
    assert reader.finish() == [CallArguments(0, '"}')]


@pytest.mark.parametrize(
    "text", [f"{TAG}find.call(query=1)", f"{TAG}", f'{TAG}brave_search.cal(query="x")', "print(1)"]
)
def test_without_a_tool_for_code_other_text_is_content(text: str) -> None:
    assert read(LLAMA3_BUILT_IN, list(text), tools=(SEARCH, OTHER)) == (text, [])


def test_other_tools_are_called_as_objects() -> None:
    text = '{"name": "find", "parameters": {"query": "x"}}'
    assert read(LLAMA3_BUILT_IN, list(text), tools=TOOLS) == ("", [("find", '{"query": "x"}')])


@pytest.mark.parametrize("wrong", ["query=1", "query", "=", "query='x'", 'a b="x"', 'query="x" 1'])
def test_a_broken_call_keeps_its_begin(wrong: str) -> None:
    ((name, arguments),) = read(LLAMA3_BUILT_IN, list(f"{TAG}brave_search.call({wrong})"), tools=TOOLS)[1]
    assert name == "brave_search"
    assert not arguments.endswith("}")


@pytest.mark.parametrize(
    ("given", "is_known"),
    [
        (SEARCH, True),
        (CODE, True),
        (OTHER, False),
        (tool("code_interpreter", "code", "language"), False),
        (tool("brave_search", "query", additionalProperties=False), True),
        (tool("brave_search", "query", required=[]), False),
        (tool("brave_search", "query", required=[[1]]), False),
        (tool("brave_search", "query", minProperties=1), False),
        (tool("brave_search", "a b"), False),
        (tool("brave_search"), False),
        (Tool(name="brave_search", parameters=None, given={}), False),
    ],
)
def test_a_tool_is_built_in_by_its_name_and_its_arguments(given: Tool, is_known: bool) -> None:
    assert LLAMA3_BUILT_IN.is_built_in(given) == is_known


def test_a_template_is_shown_built_in_tools_by_name() -> None:
    fields = LLAMA3_BUILT_IN.template_fields(TOOLS)
    assert fields == {"tools": [OTHER.given], "builtin_tools": ["brave_search", "wolfram_alpha", "code_interpreter"]}
    assert LLAMA3_BUILT_IN.template_fields((SEARCH,)) == {"tools": None, "builtin_tools": ["brave_search"]}
    assert LLAMA3_BUILT_IN.template_fields((OTHER,)) == {"tools": [OTHER.given]}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("a\nb\tc", "a\nb\tc"),
        (r"it\'s", "it's"),
        (r"\"\\\/\n", '"\\/\n'),
        (r"\u00e9x", "éx"),
        (r"\u00gx", r"\u00gx"),
        (r"\u\"", r"\u" + '"'),
        (r"\d\x41", r"\d\x41"),
    ],
)
def test_arguments_are_json_whatever_stands_in_the_string(written: str, value: str) -> None:
    text = f'{TAG}brave_search.call(query="{written}")'
    for width in (1, 2, 3, len(text)):
        pieces = [text[at : at + width] for at in range(0, len(text), width)]
        ((_, arguments),) = read(LLAMA3_BUILT_IN, pieces, tools=TOOLS)[1]
        assert json.loads(arguments) == {"query": value}


def test_a_long_string_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = list[int]()

    def noted(text: str) -> str:
        taken.append(len(text))
        return text

    monkeypatch.setattr("manylora.server.tools.python_calls.json_text", noted)
    text = f'{TAG}brave_search.call(query="{"a" * 100_000}")'
    assert len(read(LLAMA3_BUILT_IN, [text], tools=TOOLS)[1][0][1]) == 100_000 + len('{"query": ""}')
    assert sum(taken) == 100_000
