"""The grammar of replies with calls of tools: the arguments of each call are those that the tool's schema accepts."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from manylora.models.text.grammar import MAX_GRAMMAR_BYTES, GrammarKind, GrammarSource, json_grammar
from manylora.server.tools.formats import ToolFormat
from manylora.server.tools.tool import Tool, ToolSet

FIELD = "tools"
_SPACED = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False, "coerce_one_of": True}
"""The spelling of JSON in calls, which models learn from the chat template."""
_NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
_ANY_TEXT = r"/(.|\n)*/"
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
    text = "\n".join(
        [
            "%llguidance {}",
            f"start: {_start(form, is_required=tools.is_required, has_answer=answer is not None)}",
            *_text_rules(form, opening, special_id),
            *([] if answer is None else [f"answer: %json {_json(answer, {})}"]),
            f"calls: {_calls(form, opening, is_parallel=tools.is_parallel)}",
            *_marks(form, special_id),
            "call: " + " | ".join(f"call_{number}" for number in range(len(tools.tools))),
            *(_call(form, tool, number) for number, tool in enumerate(tools.tools)),
        ]
    )
    source = GrammarSource(kind=GrammarKind.LARK, text=text, field=FIELD)
    if (size := len(text.encode("utf-8", "surrogatepass"))) > MAX_GRAMMAR_BYTES:
        raise source.refusal(f"they have {size} bytes; the limit is {MAX_GRAMMAR_BYTES}")
    return source


def _start(form: ToolFormat, *, is_required: bool, has_answer: bool) -> str:
    if is_required:
        return "opened calls"
    if has_answer:
        return "answer | opened calls"
    return "TEXT | opened calls" if form.is_whole else "TEXT | led calls"


def _text_rules(form: ToolFormat, opening: str, special_id: SpecialId) -> list[str]:
    """Return the rules of free text, and of the trigger alone and behind text."""
    if form.is_whole:
        return [f"TEXT: {_NO_CALL}", 'opened: ""']
    if special_id(form.triggers[0]) is not None:
        return [f"TEXT: {_ANY_TEXT}", f"opened: {opening}", f"led: TEXT {opening}"]
    return [f"TEXT: {_ANY_TEXT}", f"opened: {opening}", f"led[lazy]: TEXT {opening}"]


def _calls(form: ToolFormat, opening: str, *, is_parallel: bool) -> str:
    """Return what follows the trigger of the first call."""
    if form.marks:
        return "call" + (f" ({opening} call)*" if is_parallel else "")
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


def _call(form: ToolFormat, tool: Tool, number: int) -> str:
    if form.marks:
        schema = json_grammar(dict(tool.parameters or _NO_ARGUMENTS), field=FIELD)
        return f"call_{number}: {json.dumps(tool.name)} marks %json {_json(schema, _SPACED)}"
    head = f'{{"name": {json.dumps(tool.name)}, "{form.arguments}": '
    schema = json_grammar(dict(tool.parameters or _NO_ARGUMENTS), field=FIELD)
    return f'call_{number}: {json.dumps(head)} %json {_json(schema, _SPACED)} "}}"'


def _json(schema: GrammarSource, options: Mapping[str, Any]) -> str:
    """Return a checked schema, from which its own options were removed, with ours."""
    return json.dumps({**json.loads(schema.text), **({"x-guidance": options} if options else {})}, ensure_ascii=False)


def _spelled(trigger: str, special_id: SpecialId) -> str:
    found = special_id(trigger)
    return json.dumps(trigger) if found is None else f"<[{found}]>"
