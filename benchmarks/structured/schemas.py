"""Schemas of the benchmarks: each number gives another one, of the size that tool calls and extractions have."""

from collections.abc import Mapping
from typing import Any


def long_schema(number: int) -> dict[str, Any]:  # JSON values of several types
    """Return a schema whose shortest value has some hundred tokens, so that a reply spends any budget below that."""
    item = {
        "type": "object",
        "properties": {
            f"id_{number}": {"type": "integer", "minimum": 0, "maximum": 10_000 + number},
            "name": {"type": "string", "maxLength": 40},
            "state": {"enum": ["open", "waiting", "solved", f"state {number}"]},
            "due": {"type": "string", "format": "date"},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 4},
            "score": {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "null"}]},
        },
        "required": [f"id_{number}", "name", "state", "due", "tags", "score"],
        "additionalProperties": False,
    }
    return {"type": "array", "items": item, "minItems": 16, "maxItems": 64}


def hostile_form(number: int) -> dict[str, object]:
    """Return the field of a request whose schema or grammar is made to cost the compiler much; five kinds in turn."""
    deep: dict[str, Any] = {"const": number}
    for _ in range(200):
        deep = {"type": "array", "items": deep, "minItems": 1}
    levels: dict[str, Any] = {"0": {"const": number}}
    for level in range(1, 40):
        both = [{"$ref": f"#/$defs/{level - 1}"}] * 2
        levels[str(level)] = {"type": "array", "prefixItems": both, "minItems": 2, "maxItems": 2}
    kinds: tuple[dict[str, object], ...] = (
        {"guided_json": deep},
        {"guided_json": {"$ref": "#/$defs/39", "$defs": levels}},
        {"guided_json": {"type": "string", "pattern": f"^((x?){{500}}{number}){{500}}$"}},
        {"guided_regex": f"((a{{1,1000}}){{1,1000}}{number}){{1,1000}}"},
        {"guided_grammar": "start: " + "(" * 4000 + f'"{number}"' + ")" * 4000},
    )
    return kinds[number % len(kinds)]


def form(schema: Mapping[str, Any]) -> dict[str, object]:
    """Return the field of a request that asks for a schema."""
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema}}}
