"""The values of a call's parameters where strings stand without quotation marks: their texts, by the tool's schema.

Source: the parser of calls that comes with Qwen3-Coder, which reads a value by the type in the schema.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from manylora.errors import InvalidParameter
from manylora.server.tools.patterns import terminal_of_pattern
from manylora.server.tools.tool import Tool

CLOSER = "</parameter>"
"""The tag that ends a value."""
Schema = Any  # a JSON schema
MAX_DEPTH = 16
"""Levels of references and alternatives above the type of one value."""
MAX_STEPS = 1 << 15
"""Schemas, types, listed values and sixteens of characters that are read in all tools together. Without references, no
tools of the size of a grammar have more; references may lead to one schema often."""
_STEP_CHARACTERS = 16
TYPES = ("string", "null", "boolean", "integer", "number", "array", "object")
SCALARS: Mapping[str, str] = {
    "null": "null",
    "boolean": "true|false",
    "integer": "-?(0|[1-9][0-9]*)",
    "number": r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?",
}
"""The texts of values that may stand where a string may, too."""
_OF_NUMBERS = frozenset("-+.eE0123456789")
_DATE = (
    "[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
)
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_FORMATS: Mapping[str, str] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
}
_ANNOTATIONS = frozenset({"title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated"})
_OF_STRINGS = frozenset({"type", "minLength", "maxLength", "pattern", "format", "enum", "const"})
_OF_TYPES = {
    **dict.fromkeys(("minLength", "maxLength", "pattern", "format"), ("string",)),
    **dict.fromkeys(
        ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), ("integer", "number")
    ),
    **dict.fromkeys(("items", "prefixItems", "additionalItems", "minItems", "maxItems"), ("array",)),
    **dict.fromkeys(("properties", "patternProperties", "additionalProperties", "required"), ("object",)),
}
"""The types that a keyword restricts, where these are not all."""
_MAX_SHOWN = 80
"""Characters of a caller's value in an error."""
_OF_CALLS = _ANNOTATIONS | {"type", "properties", "required", "additionalProperties", "$defs", "definitions"}


class Steps:
    """The steps of the reading of tools, of which there are `MAX_STEPS`."""

    def __init__(self) -> None:
        self.count = 0

    def take(self, count: int, where: str) -> None:
        """Note steps. Raises `InvalidParameter` beyond the bound, in front of the work."""
        self.count += count
        if self.count > MAX_STEPS:
            raise _refusal(where, f"has with the tools before it more than {MAX_STEPS} values through its references")


@dataclass(frozen=True, slots=True)
class Value:
    """The texts of one parameter.

    texts    terminals of the grammar, one for each kind of string, and for each value of `scalars`; none: no string
    scalars  the types beside strings whose values are read as JSON where a text is one
    json     the schema of the values that are JSON; None: there are none
    """

    texts: tuple[str, ...]
    scalars: frozenset[str]
    json: Schema | None


@dataclass(frozen=True, slots=True)
class ToolParameter:
    """One parameter of a tool."""

    name: str
    is_required: bool
    value: Value


def parameters_of(tool: Tool, steps: Steps) -> tuple[ToolParameter, ...]:
    """Return the parameters of a tool, in the schema's order. A call has these alone. `steps`: of all tools so far.

    Raises: `InvalidParameter` for a schema whose values this form cannot have, and beyond the bound on steps
    """
    root = tool.parameters or {}
    where = f"function {tool.name!r}"
    if unknown := sorted(root.keys() - _OF_CALLS):
        raise _refusal(where, f"has the keyword `{unknown[0]}` beside its properties")
    if isinstance(root.get("additionalProperties"), dict):
        raise _refusal(where, "has a schema in `additionalProperties`")
    properties, required = root.get("properties", {}), root.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        raise _refusal(where, "has `properties` or `required` of another type")
    if not all(isinstance(name, str) for name in required):
        raise _refusal(where, "has a `required` with other values than names")
    if missing := [name for name in required if name not in properties]:
        raise _refusal(where, f"requires {missing[0]!r}, which `properties` lacks")
    names = frozenset(required)
    return tuple(
        ToolParameter(
            _checked(name, where),
            name in names,
            _ValueReader(root, f"{where}, parameter {name!r}", steps).value(schema),
        )
        for name, schema in properties.items()
    )


def _checked(name: str, where: str) -> str:
    if not name or set(name) & set("<>\n\r") or name != name.strip():
        raise _refusal(where, f"has the parameter {name!r}, a name that no tag can have,")
    return name


def _refusal(where: str, why: str) -> InvalidParameter:
    return InvalidParameter(
        f"`tools` schema is not supported: {where} {why}, which calls of the form qwen3-coder cannot have",
        parameter="tools",
    )


class _ValueReader:
    """Reads one parameter's schema."""

    def __init__(self, root: Schema, where: str, steps: Steps) -> None:
        self._root = root
        self._where = where
        self._steps = steps
        self._texts: list[str] = []
        self._scalars: set[str] = set()
        self._limited = ""  # a scalar type with limits
        self._listed: dict[str, str] = {}  # the types of listed values, by their text
        self._has_open_text = False
        self._json: list[Schema] = []

    def value(self, schema: Schema) -> Value:
        """Return the values of a schema. Raises `InvalidParameter`."""
        for each in self._alternatives(schema, MAX_DEPTH):
            self._take(each)
        if "string" not in self._listed.values() and not self._has_open_text:
            return Value((), frozenset(), schema)
        self._check_scalars()
        if self._json:
            self._texts = [rf"({text}) & /([^\[{{](.|\n)*)?/" for text in self._texts]
        self._texts += [f"/{SCALARS[kind]}/" for kind in sorted(self._scalars)]
        scalars = self._scalars | (set(self._listed.values()) & SCALARS.keys())
        return Value(tuple(self._texts), frozenset(scalars), {"anyOf": self._json} if self._json else None)

    def _check_scalars(self) -> None:
        """Raise `InvalidParameter` where a text could be read as a value that the schema does not accept."""
        listed = {kind for kind in self._listed.values() if kind != "string"} - self._scalars
        limited = self._limited or (min(listed) if listed and self._has_open_text else "")
        if limited:
            raise _refusal(self._where, f"may be a string or a limited {limited}")
        kinds = frozenset(listed)
        if any(kind == "string" and is_scalar(text, kinds) for text, kind in self._listed.items()):
            raise _refusal(self._where, f"lists strings that read like the type {min(kinds)}")

    def _alternatives(self, schema: Schema, depth: int) -> Iterator[Schema]:
        """Yield schemas of one type each."""
        self._steps.take(1, self._where)
        if depth == 0:
            raise _refusal(self._where, "has a schema of too many levels or one that refers to itself")
        if schema is True:
            schema = {}
        if not isinstance(schema, dict):
            raise _refusal(self._where, "has no schema of values")
        rules = {keyword: value for keyword, value in schema.items() if keyword not in _ANNOTATIONS}
        self._check_types(rules.get("type", []))
        combined = [keyword for keyword in ("$ref", "anyOf", "oneOf", "allOf") if keyword in rules]
        if combined and len(rules) == 1:
            yield from self._combined(combined[0], rules[combined[0]], depth)
        elif "type" not in rules and not rules.keys() <= {"enum", "const"}:
            raise _refusal(self._where, f"has the keyword `{next(iter(rules))}` without a `type`")
        elif combined and (rules["type"] == "string" or isinstance(rules["type"], list)):
            raise _refusal(self._where, f"has the keyword `{combined[0]}` beside others")
        elif "enum" in rules or "const" in rules:
            yield rules
        else:
            types = rules.get("type", TYPES)
            for kind in [types] if isinstance(types, str) else dict.fromkeys(types):
                yield {**{word: rules[word] for word in rules if _restricts(word, kind)}, "type": kind}

    def _take_text(self, text: object) -> None:
        self._steps.take(len(text) // _STEP_CHARACTERS if isinstance(text, str) else 0, self._where)

    def _check_types(self, types: object) -> None:
        listed = types if isinstance(types, list) else [types]
        self._steps.take(len(listed) - 1, self._where)
        for kind in listed:
            if not isinstance(kind, str) or kind not in TYPES:
                raise _refusal(self._where, f"has the type {repr(kind)[:_MAX_SHOWN]}")

    def _combined(self, keyword: str, value: Schema, depth: int) -> Iterator[Schema]:
        if keyword == "$ref":
            yield from self._alternatives(self._referred(value), depth - 1)
        elif not isinstance(value, list) or not value or (keyword == "allOf" and len(value) > 1):
            raise _refusal(self._where, f"has `{keyword}` of several schemas or of none")
        else:
            for each in value:
                yield from self._alternatives(each, depth - 1)

    def _referred(self, reference: object) -> Schema:
        words = reference.split("/") if isinstance(reference, str) else []
        if len(words) != 3 or words[0] != "#" or words[1] not in ("$defs", "definitions"):
            raise _refusal(self._where, "has a `$ref` to no entry of `$defs`")
        found = self._root.get(words[1], {})
        if not isinstance(found, dict) or words[2] not in found:
            raise _refusal(self._where, f"has a `$ref` to {words[2]!r}, which `{words[1]}` lacks")
        return found[words[2]]

    def _take(self, schema: Mapping[str, Schema]) -> None:
        """Sort one schema of one type, or one with listed values."""
        if "enum" in schema or "const" in schema:
            self._take_listed(schema)
            return
        kind = schema["type"]
        if kind == "string":
            self._has_open_text = True
            self._texts.append(self._text(schema))
        elif kind in SCALARS:
            if schema.keys() > {"type"}:
                self._limited = kind
            self._scalars.add(kind)
        else:
            self._json.append(schema)

    def _take_listed(self, schema: Mapping[str, Schema]) -> None:
        if len(schema.keys() - {"type"}) > 1:
            raise _refusal(self._where, "has `enum` or `const` beside other keywords")
        listed = [schema["const"]] if "const" in schema else schema["enum"]
        given = schema.get("type", TYPES)
        types = frozenset([given] if isinstance(given, str) else given)
        self._steps.take(len(listed) if isinstance(listed, list) else 0, self._where)
        for value in listed if isinstance(listed, list) else ():
            kind = _type_of(value)
            self._take_text(value)
            if kind not in types and not (kind == "integer" and "number" in types):
                continue
            if kind == "null":
                self._scalars.add(kind)
            elif kind == "string" and CLOSER in value:
                raise _refusal(self._where, f"lists a string with {CLOSER}")
            elif kind == "string" or kind in SCALARS:
                text = value if kind == "string" else json.dumps(value)
                self._listed[text] = kind
                self._texts.append(json.dumps(text, ensure_ascii=False))
            else:
                self._json.append({"const": value})

    def _text(self, schema: Mapping[str, Schema]) -> str:
        """Return the terminal of the strings of a schema."""
        if unknown := sorted(schema.keys() - _OF_STRINGS):
            raise _refusal(self._where, f"has the keyword `{unknown[0]}` beside a string")
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if not _is_count(least) or not (most is None or _is_count(most)):
            raise _refusal(self._where, "has a length that is no integer >= 0")
        parts = []
        if least or most is not None:
            parts.append(rf"/(.|\n){{{least},{'' if most is None else most}}}/")
        if "pattern" in schema:
            parts.append(self._pattern(schema["pattern"]))
        if "format" in schema:
            named = schema["format"]
            if not isinstance(named, str) or named not in _FORMATS:
                raise _refusal(self._where, f"has the format {repr(named)[:_MAX_SHOWN]}")
            parts.append(f"/{_FORMATS[named]}/")
        return " & ".join(parts) or r"/(.|\n)*/"

    def _pattern(self, pattern: object) -> str:
        self._take_text(pattern)
        try:
            return terminal_of_pattern(pattern if isinstance(pattern, str) else "")
        except ValueError as error:
            raise _refusal(self._where, f"has a `pattern` {error}") from error


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _restricts(word: str, kind: str) -> bool:
    return kind in _OF_TYPES.get(word, (kind,))


def _type_of(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case int():
            return "integer"
        case float():
            return "number"
        case list():
            return "array"
    return "object"


def is_scalar(text: str, scalars: frozenset[str]) -> bool:
    """Return whether a text is a value of one of these types."""
    return any(re.fullmatch(SCALARS[kind], text) for kind in scalars)


class ScalarBegin:
    """A text that may begin a value of some types, read character by character in constant time each."""

    def __init__(self, scalars: frozenset[str]) -> None:
        self._words = [word for kind in scalars & {"null", "boolean"} for word in SCALARS[kind].split("|")]
        self._is_number = bool(scalars & {"integer", "number"})
        self._length = 0

    def goes_on(self, character: str) -> bool:
        """Take the next character; return whether the text still may begin such a value."""
        self._is_number = self._is_number and character in _OF_NUMBERS
        self._words = [word for word in self._words if word[self._length : self._length + 1] == character]
        self._length += 1
        return self._is_number or bool(self._words)
