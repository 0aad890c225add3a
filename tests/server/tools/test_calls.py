"""The reading of calls: the same deltas for any pieces of the text, and no part of a call as content."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.server.tools.calls import CallArguments, CallStart, Delta, ToolCallReader
from manylora.server.tools.formats import (
    FORMATS,
    HERMES,
    LLAMA3,
    LLAMA3_FUNCTION,
    MISTRAL,
    MISTRAL_V13,
    Syntax,
    ToolFormat,
    format_of,
)
from manylora.server.tools.tool import Tool

NAMES = ("now", "get_weather")
TOOLS = tuple(Tool(name=name, parameters=None, given={}) for name in NAMES)
OF_JSON = [form for form in FORMATS.values() if form.syntax is not Syntax.PARAMETERS]
"""The forms whose arguments are JSON; `test_parameter_calls.py` has the other one."""
Call = tuple[str, str]

texts = st.text(alphabet='ab<>[]{}"\\:, \n_tol/cALS', max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
calls = st.lists(st.tuples(st.sampled_from(NAMES), st.dictionaries(texts, values, max_size=3)), min_size=1, max_size=3)


def tagged(name: str, arguments: Mapping[str, object]) -> str:
    """A call as the template of Qwen3-Coder writes it."""
    text = f"<tool_call>\n<function={name}>\n"
    for key, value in arguments.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        text += f"<parameter={key}>\n{shown}\n</parameter>\n"
    return text + "</function>\n</tool_call>"


def written(form: ToolFormat, called: Sequence[tuple[str, Any]], indent: int | None = None) -> str:
    if form.marks:
        words = "abc123XYZ".join(form.marks)
        texts = (f"{name}{words}{json.dumps(given, indent=indent)}" for name, given in called)
        return "".join(f"{form.triggers[0]}{text}{form.closer}" for text in texts)
    if form.syntax is Syntax.PARAMETERS:
        return "\n".join(tagged(name, given) for name, given in called)
    objects = [json.dumps({"name": name, form.arguments: arguments}, indent=indent) for name, arguments in called]
    if form is HERMES:
        return "\n".join(f"<tool_call>\n{each}\n</tool_call>" for each in objects)
    return f"[TOOL_CALLS] [{', '.join(objects)}]" if form is MISTRAL else "; ".join(objects)


def read(
    form: ToolFormat, pieces: Sequence[str], *, tools: Sequence[Tool] = TOOLS, has_one_call: bool = False
) -> tuple[str, list[Call]]:
    """Return the content and the calls; what is told is never taken back, and arguments follow their call's start."""
    reader = ToolCallReader(form, tools, has_one_call=has_one_call)
    deltas: list[Delta] = [delta for piece in pieces for delta in reader.push(piece)] + reader.finish()
    content, found = "", list[Call]()
    for delta in deltas:
        match delta:
            case CallStart(index, name):
                assert index == len(found)
                found.append((name, ""))
            case CallArguments(index, text):
                assert index == len(found) - 1
                found[index] = (found[index][0], found[index][1] + text)
            case str():
                content += delta
    assert reader.num_calls == len(found)
    return content, found


@given(st.sampled_from(OF_JSON), calls, st.sampled_from(["", "Let me look."]), st.none() | st.just(1))
def test_calls_are_read_from_any_pieces_of_the_text(
    form: ToolFormat, called: list[tuple[str, object]], before: str, indent: int | None
) -> None:
    before = "" if form.is_whole else before
    text = (f"{before}\n" if before else "") + written(form, called, indent)
    content, found = read(form, [text])
    assert content == before
    assert [name for name, _ in found] == [name for name, _ in called]
    assert [json.loads(arguments) for _, arguments in found] == [arguments for _, arguments in called]
    for width in (1, 2, 3, 7):
        assert read(form, [text[at : at + width] for at in range(0, len(text), width)]) == (content, found)


@given(
    st.sampled_from(list(FORMATS.values())),
    st.lists(
        texts
        | st.sampled_from(
            [
                *("<tool_call>", "now[ARGS]{", "</tool_call>", "[TOOL_CALLS]", '{"name": "now"', ', "arguments": {'),
                *("<function=now>", "\n<parameter=a>", "\n</parameter>", "</function>", "<|python_tag|>", "now.call("),
            ]
        )
    ),
    st.booleans(),
)
def test_any_text_is_read_alike_in_any_pieces(form: ToolFormat, parts: list[str], has_one_call: bool) -> None:
    text = "".join(parts)
    whole = read(form, [text], has_one_call=has_one_call)
    assert read(form, list(text), has_one_call=has_one_call) == whole
    assert read(form, parts, has_one_call=has_one_call) == whole


@pytest.mark.parametrize(
    ("form", "text", "content"),
    [
        (HERMES, "no call < here", "no call < here"),
        (HERMES, "<tool_call>\nnot JSON\n</tool_call>", "<tool_call>\nnot JSON\n</tool_call>"),
        (HERMES, '<tool_call>{"name": "rm", "arguments": {}}</tool_call>', None),
        (HERMES, "text <tool_call>", "text <tool_call>"),
        (HERMES, '<tool_call>{"name": "no', None),
        (MISTRAL, "[TOOL_CALLS] none", None),
        (LLAMA3, 'so {"name": "now", "parameters": {}}', None),
        (LLAMA3, '{"answer": 42}', None),
        (LLAMA3_FUNCTION, "<function=rm>{}</function>", None),
        (LLAMA3_FUNCTION, "a <function> b", None),
    ],
)
def test_what_is_no_call_of_a_tool_is_content(form: ToolFormat, text: str, content: str | None) -> None:
    assert read(form, list(text)) == (text if content is None else content, [])


def test_a_call_goes_out_while_it_is_written() -> None:
    reader = ToolCallReader(HERMES, TOOLS)
    assert reader.push("I see.\n<tool") == ["I see."]
    assert reader.push('_call>\n{"name": "now"') == [CallStart(0, "now")]
    assert reader.push(', "arguments": {"a') == [CallArguments(0, '{"a')]
    assert reader.push('": 1}}\n</tool_call>') == [CallArguments(0, '": 1}')]
    assert reader.finish() == []


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('{"name": "now"}', "{}"),
        ('{"arguments": {"a": 1}, "name": "now"}', '{"a": 1}'),
        ('{"name": "now", "arguments": "{\\"a\\": 1}"}', '{"a": 1}'),
        ('{"id": 7, "name": "now", "arguments": null}', "{}"),
        ('{"name": "now", "arguments": {"a": [{"b": "}\\""}]}, "x": true}', '{"a": [{"b": "}\\""}]}'),
    ],
)
def test_other_spellings_of_a_call_are_read(text: str, arguments: str) -> None:
    assert read(HERMES, list(f"<tool_call>{text}</tool_call>")) == ("", [("now", arguments)])


def test_a_second_call_is_dropped_where_one_is_wanted() -> None:
    assert read(HERMES, [written(HERMES, 2 * [("now", {})])], has_one_call=True) == ("", [("now", "{}")])


def test_a_call_cut_by_the_budget_keeps_its_part() -> None:
    assert read(MISTRAL, list('[TOOL_CALLS] [{"name": "now", "arguments": {"a')) == ("", [("now", '{"a')])
    assert read(MISTRAL_V13, list('[TOOL_CALLS]now[ARGS]{"a')) == ("", [("now", '{"a')])


@pytest.mark.parametrize(
    "text",
    [
        "[TOOL_CALLS]later[ARGS]{}",
        "[TOOL_CALLS]now[ARG]{}",
        "[TOOL_CALLS]now{}",
        "[TOOL_CALLS]now",
        "[TOOL_CALLS]" + "n" * 300,
    ],
)
def test_marks_without_a_call_of_a_tool_are_content(text: str) -> None:
    assert read(MISTRAL_V13, list(text)) == (text, [])


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{% if tools %}<tool_call>{% endif %}", "hermes"),
        ("{% if tools %}[TOOL_CALLS]{% endif %}", "mistral"),
        ("{% if tools %}[TOOL_CALLS][CALL_ID][ARGS]{% endif %}", "mistral-v11"),
        ("{% if tools %}[TOOL_CALLS][ARGS]{% endif %}", "mistral-v13"),
        ('{% if tools %}{"name": f, "parameters": p} <|python_tag|>{% endif %}', "llama3"),
        ('{% if tools %}"parameters" <|python_tag|>{{ builtin_tools }}{% endif %}', "llama3-builtin"),
        ("{% if tools %}<function=f>{}</function>{% endif %}", "llama3-function"),
        ("{% if tools %}<tool_call><function=f><parameter=p>{% endif %}", "qwen3-coder"),
        ("{% if tools %}<tool_call><function=f>{% endif %}", None),
        ("{{ messages }}<tool_call>", None),
        ("", None),
    ],
)
def test_a_base_s_form_is_that_of_its_template(template: str, name: str | None) -> None:
    found = format_of(template)
    assert (found.name if found else None) == name
    assert format_of(template, "hermes") == (HERMES if "tools" in template else None)


def test_ids_are_those_that_the_templates_take() -> None:
    assert MISTRAL.new_id().isalnum()
    assert len(MISTRAL.new_id()) == 9
    assert HERMES.new_id().startswith("call_")
    assert HERMES.new_id() != HERMES.new_id()


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_white_space_is_kept_without_a_second_look(form: ToolFormat) -> None:
    """The held text grows by one piece a character; only the part of a trigger is compared."""
    reader = ToolCallReader(form, TOOLS)
    words = list[str]()
    seen = reader._start_of_trigger

    def noted(word: str) -> int:
        words.append(word)
        return seen(word)

    reader._start_of_trigger = noted  # type: ignore[method-assign]
    spaces = " \n" * 50_000
    assert reader.push(spaces) == []
    assert len(words) == len(spaces)
    assert max(map(len, words)) == 1
    assert [*reader.push("x"), *reader.finish()] == [spaces + "x"]
