"""The grammar of replies with calls of tools: the arguments of each call are those that the tool's schema accepts."""

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from manylora.models.text.grammar import MAX_GRAMMAR_BYTES, GrammarKind, GrammarSource, json_grammar
from manylora.server.tools.formats import Syntax, ToolFormat
from manylora.server.tools.parameter_calls import END, HEAD, PARAMETER
from manylora.server.tools.parameters import CLOSER, Steps, ToolParameter, parameters_of
from manylora.server.tools.python_calls import CALL
from manylora.server.tools.tool import Tool, ToolSet

FIELD = "tools"
_SPACED = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False, "coerce_one_of": True}
"""The spelling of JSON in calls, which models learn from the chat template."""
_NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
_ANY_TEXT = r"/(.|\n)*/"
_NO_CLOSER = rf"~/(.|\n)*{re.escape(CLOSER).replace('/', chr(92) + '/')}(.|\n)*/"
"""Texts of parameters without the tag that ends them."""
_NO_CALL = r"/([^{\s](.|\n)*)?/"

SpecialId = Callable[[str], int | None]
"""Returns the id of a special token from its text; None: it is none."""


def tool_grammar(
    form: ToolFormat,
    tools: ToolSet,
    special_id: SpecialId,
    *,
    answer: GrammarSource | None = None,
) -> GrammarSource:
    """Return the grammar of a reply: calls, or text and maybe calls behind it.

    Args:    answer  the JSON form of a reply without calls; None: any text
    Raises:  `InvalidParameter` for schemas as `json_grammar` does, and for tools beyond the size of a grammar
    """
    trigger = form.triggers[0]
    opening = "" if trigger == "{" else _spelled(trigger, special_id)
    schemas = [json_grammar(dict(tool.parameters or _NO_ARGUMENTS), field=FIELD) for tool in tools.tools]
    checked = [
        dataclasses.replace(tool, parameters=json.loads(schema.text))
        for tool, schema in zip(tools.tools, schemas, strict=True)
    ]
    others = [number for number, tool in enumerate(tools.tools) if not form.is_built_in(tool)]
    known = [tool for number, tool in enumerate(checked) if number not in others]
    kinds = [*(["others"] if others else []), *(["known"] if known else [])]
    steps = Steps()
    lines = itertools.chain(
        [
            "%llguidance {}",
            f"start: {_start(form, is_required=tools.is_required, has_answer=answer is not None)}",
            *_text_rules(form, opening, special_id),
            *([] if answer is None else [f"answer: %json {answer.text}"]),
            f"calls: {' | '.join(kinds)}",
            *([f"others: {_calls(form, opening, is_parallel=tools.is_parallel)}"] if others else []),
            *_marks(form, special_id),
            *(["call: " + " | ".join(f"call_{number}" for number in others)] if others else []),
        ],
        (rule for number in others for rule in _call(form, checked[number], number, steps)),
        _built_in(form, known, special_id) if known else [],
    )
    return _sized(lines)


def _sized(lines: Iterable[str]) -> GrammarSource:
    """Return the grammar of some lines. Raises `InvalidParameter` beyond its size, before the rest is made."""
    kept, size = list[str](), 0
    for line in lines:
        size += len(line.encode("utf-8", "surrogatepass")) + 1
        if size > MAX_GRAMMAR_BYTES:
            raise GrammarSource(kind=GrammarKind.LARK, text="", field=FIELD).refusal(
                f"their grammar has more bytes; the limit is {MAX_GRAMMAR_BYTES}"
            )
        kept.append(line)
    return GrammarSource(kind=GrammarKind.LARK, text="\n".join(kept), field=FIELD)


def _start(form: ToolFormat, *, is_required: bool, has_answer: bool) -> str:
    if is_required:
        return "opened calls"
    if has_answer:
        return "answer | opened calls"
    return "TEXT | opened calls" if form.is_whole else "TEXT | led calls"


def _text_rules(form: ToolFormat, opening: str, special_id: SpecialId) -> list[str]:
    """Return the rules of free text, and of the trigger alone and behind text."""
    if form.is_whole:
        tag = form.triggers[-1]
        spelled = f" & ~/{re.escape(tag)}(.|\\n)*/" if form.built_in and special_id(tag) is None else ""
        return [f"TEXT: {_NO_CALL}{spelled}", 'opened: ""']
    if special_id(form.triggers[0]) is not None:
        return [f"TEXT: {_ANY_TEXT}", f"opened: {opening}", f"led: TEXT {opening}"]
    return [f"TEXT: {_ANY_TEXT}", f"opened: {opening}", f"led[lazy]: TEXT {opening}"]


def _calls(form: ToolFormat, opening: str, *, is_parallel: bool) -> str:
    """Return what follows the trigger of the first call."""
    if form.marks:
        call = f"call {json.dumps(form.closer)}" if form.closer else "call"
        return call + (f" ({opening} {call})*" if is_parallel else "")
    if form.closer == "]":
        more = ' (", " call)*' if is_parallel else ""
        return f'" "? "[" call{more} "]"'
    if form.closer:
        block, closer = '"\\n" call "\\n"', json.dumps(form.closer)
        return f"{block} {closer}" + (f' ("\\n" {opening} {block} {closer})*' if is_parallel else "")
    return "call" + (f' ("{form.separator} " call)*' if is_parallel else "")


def _marks(form: ToolFormat, special_id: SpecialId) -> list[str]:
    """Return the rule of what stands between a name and its arguments: marks, and an id between two of them."""
    if not form.marks:
        return []
    marks = " /[a-zA-Z0-9]{9}/ ".join(_spelled(mark, special_id) for mark in form.marks)
    return [f"marks: {marks}"]


def _call(form: ToolFormat, tool: Tool, number: int, steps: Steps) -> Iterator[str]:
    """Yield the rules of a call of one tool."""
    if form.syntax is Syntax.PARAMETERS:
        yield from _tagged_call(tool, number, steps)
        return
    schema = _spaced(tool.parameters or {})
    if form.syntax is Syntax.MARKED:
        yield f"call_{number}: {json.dumps(tool.name)} marks %json {schema}"
        return
    head = f'{{"name": {json.dumps(tool.name)}, "{form.arguments}": '
    yield f'call_{number}: {json.dumps(head)} %json {schema} "}}"'


def _tagged_call(tool: Tool, number: int, steps: Steps) -> Iterator[str]:
    """Yield the rules of a call of tags. Optional parameters may be absent; the order is that of the schema."""
    parameters = parameters_of(tool, steps)
    names = " ".join(f"p{number}_{index}{'' if each.is_required else '?'}" for index, each in enumerate(parameters))
    definitions = {key: value for key, value in (tool.parameters or {}).items() if key in ("$defs", "definitions")}
    yield f"call_{number}: {json.dumps(f'{HEAD}{tool.name}>' + chr(10))} {names} {json.dumps(END)}"
    for index, each in enumerate(parameters):
        yield from _parameter(each, definitions, f"{number}_{index}")


def _parameter(parameter: ToolParameter, definitions: Mapping[str, Any], suffix: str) -> Iterator[str]:
    """Yield the rules of one parameter with its tags, whose value is a text, JSON, or either."""
    value, behind = parameter.value, json.dumps(f"\n{CLOSER}\n")
    kinds = [*([f"t{suffix}"] if value.texts else []), *([f"j{suffix}"] if value.json is not None else [])]
    yield f"p{suffix}: {json.dumps(f'{PARAMETER}{parameter.name}>' + chr(10))} ({' | '.join(kinds)})"
    if value.texts:
        yield f"t{suffix}[lazy]: T{suffix} {behind}"
        yield f"T{suffix}: ({' | '.join(f'({text})' for text in value.texts)}) & {_NO_CLOSER}"
    if value.json is not None:
        schema = value.json if isinstance(value.json, dict) else {}
        yield f"j{suffix}: %json {_spaced({**schema, **definitions})} {behind}"


def _built_in(form: ToolFormat, tools: Sequence[Tool], special_id: SpecialId) -> list[str]:
    """Return the rules of the calls of built-in tools, of which a reply has one."""
    rules, heads = list[str](), [re.escape(tool.name + CALL) for tool in tools if tool.name != form.code]
    for tool in tools:
        if tool.name == form.code:
            calls = f" & ~/({'|'.join(heads)})(.|\\n)*/" if heads else ""
            rules.append(f"KNOWN: /[^{{\\s](.|\\n)*/{calls}")
        else:
            keys = (f"{json.dumps(key + '=')} %json {json.dumps(each)}" for key, each in tool.properties.items())
            rules.append(f"known_{len(rules)}: {json.dumps(tool.name + CALL)} " + ' ", " '.join(keys) + ' ")"')
    names = (rule.partition(":")[0] for rule in rules)
    return [f"known: {_spelled(form.triggers[-1], special_id)} ({' | '.join(names)})", *rules]


def _spaced(schema: Mapping[str, Any]) -> str:
    """Return a checked schema, from which its own options were removed, with ours."""
    return json.dumps({**schema, "x-guidance": _SPACED}, ensure_ascii=False)


def _spelled(trigger: str, special_id: SpecialId) -> str:
    found = special_id(trigger)
    return json.dumps(trigger) if found is None else f"<[{found}]>"
