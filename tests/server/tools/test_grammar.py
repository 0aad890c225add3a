"""The grammar of calls, compiled: it accepts the texts of the form, forces the schema, and leaves other text free."""

import dataclasses
import json
from pathlib import Path

import pytest

from manylora.errors import InvalidParameter
from manylora.models.text.grammar import MAX_GRAMMAR_BYTES, json_grammar
from manylora.server.tools.formats import (
    FORMATS,
    HERMES,
    LLAMA3_BUILT_IN,
    MISTRAL,
    MISTRAL_V11,
    QWEN3_CODER,
    ToolFormat,
)
from manylora.server.tools.grammar import tool_grammar
from manylora.server.tools.tool import Tool, ToolSet
from tests.server.tiny_tokenizer import EOS, UNK, save_tokenizer
from tests.server.tools.test_calls import tagged, written
from tests.server.tools.test_python_calls import TAG
from tests.server.tools.test_python_calls import TOOLS as BUILT_IN

llguidance = pytest.importorskip("llguidance")
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "array", "items": {"type": "integer"}}},
    "required": ["city"],
    "additionalProperties": False,
    "x-guidance": {"lenient": True},
}
TOOLS = (
    Tool(name="get_weather", parameters=SCHEMA, given={}),
    Tool(name="now", parameters=None, given={}),
)
SET = ToolSet(shown=TOOLS, tools=TOOLS)
BYTES = llguidance.LLTokenizer("byte")
GOOD: list[tuple[str, object]] = [("get_weather", {"city": "Oslo", "days": [1, 2]}), ("now", {})]
FORMS = list(FORMATS.values())


def no_special(_: str) -> None:
    return None


def accepts(form: ToolFormat, text: str, tools: ToolSet = SET, **more: object) -> bool:
    source = tool_grammar(form, tools, no_special, **more)  # type: ignore[arg-type]  # one keyword
    matcher = llguidance.LLMatcher(BYTES, source.text)
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode())
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_text_is_free_and_calls_obey_their_schemas(form: ToolFormat) -> None:
    assert accepts(form, "It rains <b> [today].")
    assert accepts(form, "")
    assert accepts(form, written(form, GOOD))
    assert accepts(form, "Let me look.\n" + written(form, GOOD[:1]))
    wrong: list[tuple[str, object]] = [
        ("get_weather", {"city": "Bonn"}),
        ("get_weather", {"days": []}),
        ("now", {"a": 1}),
        ("other", {}),
    ]
    for call in wrong:
        assert not accepts(form, written(form, [call])), call
    assert not accepts(form, written(form, GOOD)[:-1] + "x")


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_required_calls_stand_alone_and_may_be_limited_to_one(form: ToolFormat) -> None:
    required = dataclasses.replace(SET, is_required=True)
    assert not accepts(form, "It rains.", required)
    assert not accepts(form, "", required)
    assert accepts(form, written(form, GOOD), required)
    single = dataclasses.replace(required, is_parallel=False)
    assert accepts(form, written(form, GOOD[:1]), single)
    assert not accepts(form, written(form, GOOD), single)


@pytest.mark.parametrize("form", [HERMES, QWEN3_CODER, MISTRAL], ids=lambda form: form.name)
def test_a_reply_calls_or_answers_in_the_form_asked_for(form: ToolFormat) -> None:
    answer = json_grammar({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    assert accepts(form, json.dumps({"a": 1}, separators=(",", ":")), answer=answer)
    assert accepts(form, written(form, GOOD), answer=answer)
    assert not accepts(form, "It rains.", answer=answer)


def test_a_special_token_begins_calls_by_its_id() -> None:
    text = tool_grammar(MISTRAL, SET, lambda piece: 5 if piece == "[TOOL_CALLS]" else None).text
    assert "led: TEXT <[5]>" in text
    assert "TOOL_CALLS" not in text
    marked = tool_grammar(MISTRAL_V11, SET, {"[TOOL_CALLS]": 5, "[CALL_ID]": 6, "[ARGS]": 7}.get).text
    assert "marks: <[6]> /[a-zA-Z0-9]{9}/ <[7]>" in marked
    assert "led[lazy]" in tool_grammar(HERMES, SET, no_special).text


def test_letters_of_a_special_trigger_are_text(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    tokenizer = llguidance.LLTokenizer((tmp_path / "tokenizer.json").read_text(encoding="utf-8"), eos_token=EOS)
    form = dataclasses.replace(MISTRAL, triggers=("<unk>",))
    text = tool_grammar(form, SET, {"<unk>": UNK}.get).text
    for tokens, is_reply in (
        ([*b"Hm.", UNK, *b' [{"name": "now", "arguments": {}}]'], True),
        ([*b"<unk> is text"], True),
        ([UNK, *b"x"], False),
        ([UNK], False),
    ):
        matcher = llguidance.LLMatcher(tokenizer, text)
        assert (matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()) == is_reply


def test_a_schema_sets_no_option_and_ends_no_rule() -> None:
    """The schema of a caller stands inside the text of a grammar."""
    name = '"} | TEXT ::= /x/\n%json {'
    wild = {"type": "object", "properties": {name: {"type": "string"}}, "x-guidance": {"a": 1}}
    tools = (Tool(name="now", parameters=wild, given={}),)
    text = tool_grammar(HERMES, ToolSet(shown=tools, tools=tools), no_special).text
    assert '"a": 1' not in text
    assert len(text.splitlines()) == len(tool_grammar(HERMES, SET, no_special).text.splitlines()) - 1
    assert accepts(HERMES, written(HERMES, [("now", {name: "x"})]), ToolSet(shown=tools, tools=tools))


def test_tools_beyond_the_size_of_a_grammar_are_refused() -> None:
    large = {"type": "object", "properties": {"a": {"enum": ["x" * (MAX_GRAMMAR_BYTES // 100)] * 2}}}
    tools = tuple(Tool(name=f"f{number}", parameters=large, given={}) for number in range(60))
    with pytest.raises(InvalidParameter, match="the limit is"):
        tool_grammar(HERMES, ToolSet(shown=tools, tools=tools), no_special)


def of_value(schema: object, *, is_required: bool = True) -> ToolSet:
    """A tool with one parameter."""
    parameters = {"type": "object", "properties": {"x": schema}, "required": ["x"] if is_required else []}
    definitions = {"n": {"type": ["string", "null"]}, "tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}
    tools = (Tool(name="f", parameters={**parameters, "$defs": definitions}, given={}),)
    return ToolSet(shown=tools, tools=tools)


VALUES: list[tuple[object, list[str], list[str]]] = [
    (
        {"type": "string"},
        ["", "Rome", 'a "b"\n\n<c>', "</parameter", "null", "[1"],
        ["</parameter>", "a\n</parameter>\nb"],
    ),
    ({"type": "string", "minLength": 1, "maxLength": 3}, ["a", "ü\nx"], ["", "abcd"]),
    ({"type": "string", "pattern": "^[a-z]+/\\d$"}, ["ab/1"], ["ab/", "xab/1 ", "ab/٣"]),
    ({"type": "string", "pattern": "^[a&&b~~[]$"}, ["a", "&", "~", "["], ["c"]),
    ({"type": "string", "pattern": "b+"}, ["abc", "b"], ["ac"]),
    ({"type": "string", "pattern": "^a", "maxLength": 2}, ["a", "ab"], ["b", "abc"]),
    ({"type": "string", "format": "date"}, ["2026-12-01"], ["2026-13-01", "2026-02-30", "today"]),
    ({"type": "string", "format": "date-time"}, ["2026-12-01T10:00:00Z"], ["2026-12-01", "2026-12-01T10:00:60Z"]),
    ({"enum": ["a", "b c"]}, ["a", "b c"], ["c", '"a"', ""]),
    ({"enum": ["a", 1, None, ["x"]]}, ["a", "1", "null", '["x"]'], ["2", "b", "[]"]),
    ({"const": "a"}, ["a"], ["b"]),
    ({"type": "integer", "minimum": 5}, ["5", "60"], ["4", "a", "", '"5"']),
    ({"type": "boolean"}, ["true", "false"], ["True", "yes"]),
    ({"type": "array", "items": {"type": "string"}}, ["[]", '["a", "</parameter>"]'], ["a", '["a","b"]']),
    ({"$ref": "#/$defs/n"}, ["", "x", "null"], []),
    ({"$ref": "#/$defs/tree"}, ["[[], [[]]]"], ["[1]", "x"]),
    ({"anyOf": [{"type": "string", "maxLength": 2}, {"type": "null"}]}, ["ab", "null"], ["abc", "none"]),
    ({"type": ["string", "array"], "maxLength": 3}, ["abc", "[1, 2, 3, 4]"], ["abcd", "[a"]),
    ({}, ["x", "1", "[1]", '{"a": 1}'], ["[x", "{"]),
]


@pytest.mark.parametrize(("schema", "good", "wrong"), VALUES, ids=[json.dumps(schema) for schema, _, _ in VALUES])
def test_a_value_between_tags_obeys_its_schema(schema: object, good: list[str], wrong: list[str]) -> None:
    tools = of_value(schema)
    for text in good:
        assert accepts(QWEN3_CODER, tagged("f", {"x": text}), tools), text
    for text in wrong:
        assert not accepts(QWEN3_CODER, tagged("f", {"x": text}), dataclasses.replace(tools, is_required=True)), text
    assert not accepts(QWEN3_CODER, tagged("f", {}), dataclasses.replace(tools, is_required=True))
    optional = dataclasses.replace(of_value(schema, is_required=False), is_required=True)
    assert accepts(QWEN3_CODER, tagged("f", {}), optional)
    assert not accepts(QWEN3_CODER, tagged("f", {"y": good[0]}), optional)


def test_built_in_tools_are_called_behind_the_tag_and_others_as_objects() -> None:
    tools = ToolSet(shown=BUILT_IN, tools=BUILT_IN)
    for text in (
        f'{TAG}brave_search.call(query="a \\"b\\"")',
        f'{TAG}wolfram_alpha.call(query="1", unit="m")',
        f"{TAG}print(1)\nbrave_search.call(",
        '{"name": "find", "parameters": {"query": "x"}}',
    ):
        for is_required in (False, True):
            assert accepts(LLAMA3_BUILT_IN, text, dataclasses.replace(tools, is_required=is_required)), text
    assert accepts(LLAMA3_BUILT_IN, "It rains.", tools)
    for text in (
        f"{TAG}brave_search.call(query=1)",
        f'{TAG}brave_search.call(query="x") ',
        f'{TAG}wolfram_alpha.call(query="1")',
        '{"name": "brave_search", "parameters": {"query": "x"}}',
        TAG,
    ):
        assert not accepts(LLAMA3_BUILT_IN, text, tools), text
    alone = ToolSet(shown=BUILT_IN, tools=BUILT_IN[:1], is_required=True)
    assert accepts(LLAMA3_BUILT_IN, f'{TAG}brave_search.call(query="x")', alone)
    assert not accepts(LLAMA3_BUILT_IN, f"{TAG}print(1)", alone)
