"""Schemas that calls of tags cannot have: each is refused with its function and the keyword."""

from typing import Any

import pytest

from manylora.errors import InvalidParameter
from manylora.server.tools.parameters import Steps, parameters_of
from manylora.server.tools.tool import Tool

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"properties": {}, "minProperties": 1}, "function 'f' has the keyword `minProperties`"),
    ({"properties": {}, "additionalProperties": {"type": "string"}}, "`additionalProperties`"),
    ({"properties": {}, "required": ["x"]}, "requires 'x', which `properties` lacks"),
    ({"properties": []}, "of another type"),
    ({"properties": {"x": {}}, "required": [[1]]}, "other values than names"),
    ({"properties": {"a>b": {}}}, "parameter 'a>b', a name that no tag can have"),
    ({"properties": {"": {}}}, "parameter ''"),
]
REFUSED_VALUES: list[tuple[Any, str]] = [
    ({"type": ["string", "integer"], "minimum": 1}, "a limited integer"),
    ({"anyOf": [{"type": "string"}, {"enum": [1]}]}, "a limited integer"),
    ({"enum": ["1", 2]}, "strings that read like the type integer"),
    ({"type": "string", "format": "ipv6"}, "the format 'ipv6'"),
    ({"type": "string", "contentEncoding": "base64"}, "`contentEncoding` beside a string"),
    ({"type": "string", "pattern": "(?=a)b"}, "a group of a special kind"),
    ({"type": "string", "pattern": "a^b"}, "`^` or `$` inside"),
    ({"type": "string", "pattern": "^a|b"}, "one of several alternatives"),
    ({"type": "string", "pattern": ""}, "empty or no string"),
    ({"type": "string", "pattern": r"\bx"}, r"with `\b`"),
    ({"type": "string", "minLength": "1"}, "no integer"),
    ({"type": "string", "enum": ["a"], "maxLength": 3}, "`enum` or `const` beside other keywords"),
    ({"allOf": [{"type": "string"}, {"maxLength": 2}]}, "`allOf` of several"),
    ({"type": "string", "anyOf": [{"maxLength": 2}]}, "`anyOf` beside others"),
    ({"maxLength": 2}, "`maxLength` without a `type`"),
    ({"type": "text"}, "the type 'text'"),
    ({"type": 5}, "the type 5"),
    ({"type": None}, "the type None"),
    ({"type": [[1]]}, "the type [1]"),
    ({"type": {"a": 1}}, "the type {'a': 1}"),
    ({"enum": [1], "type": 5}, "the type 5"),
    ({"type": "string", "format": [1]}, "the format [1]"),
    ({"type": "string", "minLength": True}, "no integer"),
    ({"type": "string", "maxLength": -1}, "no integer"),
    ({"enum": ["a</parameter>"]}, "lists a string with </parameter>"),
    ({"$ref": "#/properties/x"}, "no entry of `$defs`"),
    ({"$ref": "#/$defs/missing"}, "'missing', which `$defs` lacks"),
    ({"$ref": "#/$defs/loop"}, "refers to itself"),
    (False, "no schema of values"),
]


@pytest.mark.parametrize(("schema", "why"), REFUSED, ids=[why for _, why in REFUSED])
def test_parameters_that_no_call_has_are_refused(schema: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        parameters_of(Tool(name="f", parameters={"type": "object", **schema}, given={}), Steps())
    assert why in refused.value.message
    assert "qwen3-coder" in refused.value.message


@pytest.mark.parametrize(("schema", "why"), REFUSED_VALUES, ids=[why for _, why in REFUSED_VALUES])
def test_values_that_no_tag_has_are_refused(schema: object, why: str) -> None:
    definitions = {"loop": {"anyOf": [{"$ref": "#/$defs/loop"}]}}
    parameters = {"type": "object", "properties": {"x": schema}, "$defs": definitions}
    with pytest.raises(InvalidParameter) as refused:
        parameters_of(Tool(name="f", parameters=parameters, given={}), Steps())
    assert why in refused.value.message
    assert "function 'f', parameter 'x'" in refused.value.message
