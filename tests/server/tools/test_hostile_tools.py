"""Schemas of tools that are made to cost much: their reading ends after a bounded number of steps."""

import json
from typing import Any

import pytest

from manylora.errors import InvalidParameter
from manylora.models.text.grammar import MAX_GRAMMAR_BYTES
from manylora.server.tools import grammar as tool_grammars
from manylora.server.tools.formats import FORMATS
from manylora.server.tools.grammar import tool_grammar
from manylora.server.tools.parameters import MAX_STEPS, Steps, parameters_of
from manylora.server.tools.tool import Tool, ToolSet

QWEN = FORMATS["qwen3-coder"]


def tool(parameters: dict[str, Any], name: str = "f") -> Tool:
    return Tool(name=name, parameters={"type": "object", **parameters}, given={})


def doubling(levels: int, width: int, kind: str = "string") -> dict[str, Any]:
    """One parameter whose references branch at each level, width**levels values in all."""
    definitions: dict[str, Any] = {"d0": {"type": kind}}
    for level in range(1, levels):
        definitions[f"d{level}"] = {"anyOf": [{"$ref": f"#/$defs/d{level - 1}"}] * width}
    return {"properties": {"x": {"$ref": f"#/$defs/d{levels - 1}"}}, "$defs": definitions}


LONG = "x" * 100_000
BOMBS: dict[str, dict[str, Any]] = {
    "references double": doubling(7, 8),
    "a reference to a long list": {
        "properties": {"x": {"anyOf": [{"$ref": "#/$defs/d"}] * 2000}},
        "$defs": {"d": {"enum": [f"value {number}" for number in range(5000)]}},
    },
    "a reference to many types": {
        "properties": {"x": {"anyOf": [{"$ref": "#/$defs/d"}] * 2000}},
        "$defs": {"d": {"type": ["string", "null"] * 5000}},
    },
    "a reference to a long text": {
        "properties": {"x": {"anyOf": [{"$ref": "#/$defs/d"}] * 2000}},
        "$defs": {"d": {"enum": [LONG]}},
    },
    "a reference to a long pattern": {
        "properties": {"x": {"anyOf": [{"$ref": "#/$defs/d"}] * 2000}},
        "$defs": {"d": {"type": "string", "pattern": LONG}},
    },
    "references of many parameters": {
        **doubling(4, 16),
        "properties": {f"p{n}": {"$ref": "#/$defs/d3"} for n in range(500)},
    },
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_fan_of_references_is_refused_after_a_bounded_number_of_steps(name: str) -> None:
    steps = Steps()
    with pytest.raises(InvalidParameter, match=f"more than {MAX_STEPS} values through its references"):
        parameters_of(tool(BOMBS[name]), steps)
    assert steps.count <= MAX_STEPS + 20_000, "one list or text at most lies beyond the bound"


def test_all_tools_of_a_request_share_the_steps() -> None:
    tools = tuple(tool(doubling(4, 10, "null"), name=f"f{number}") for number in range(60))
    with pytest.raises(InvalidParameter, match=f"more than {MAX_STEPS} values"):
        tool_grammar(QWEN, ToolSet(shown=tools, tools=tools), lambda _: None)


def test_the_largest_schema_without_references_has_fewer_steps() -> None:
    listed = [f"v{number}" for number in range(12_000)]
    wide = {"properties": {"x": {"enum": listed[:10_000]}, "y": {"type": "string", "pattern": "^" + "a" * 60_000}}}
    assert len(json.dumps(wide)) < MAX_GRAMMAR_BYTES
    steps = Steps()
    assert len(parameters_of(tool(wide), steps)) == 2
    assert steps.count < MAX_STEPS


def test_each_type_and_each_required_name_is_looked_up_once() -> None:
    class Counted(str):
        compared = 0

        def __eq__(self, other: object) -> bool:
            Counted.compared += 1
            return str.__eq__(self, other)

        def __hash__(self) -> int:
            return str.__hash__(self)

    names = [Counted(f"p{number}") for number in range(1000)]
    wide = {"properties": {name: {"type": "string"} for name in names}, "required": [Counted(name) for name in names]}
    assert all(each.is_required for each in parameters_of(tool(wide), Steps()))
    assert Counted.compared < 20 * len(names)


def test_a_grammar_beyond_its_size_is_not_made_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    written, spaced = list[int](), tool_grammars._spaced

    def counting(schema: Any) -> str:
        text = spaced(schema)
        written.append(len(text))
        return text

    monkeypatch.setattr(tool_grammars, "_spaced", counting)
    wide = {
        "properties": {f"p{number}": {"type": "array"} for number in range(1000)},
        "$defs": {"d": {"enum": [LONG]}},
    }
    with pytest.raises(InvalidParameter, match=f"the limit is {MAX_GRAMMAR_BYTES}"):
        tool_grammar(QWEN, ToolSet(shown=(tool(wide),), tools=(tool(wide),)), lambda _: None)
    assert sum(written) < 2 * MAX_GRAMMAR_BYTES
