"""Grammars: the forms that a reply must have, checked and in one text each, before any of them is compiled.

Sources: JSON Schema draft 2020-12 (json-schema.org); the keywords that are compiled are those of llguidance 1.9.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from manylora.errors import InvalidParameter
from manylora.models.text.lark import ATTRIBUTES, TOKENS
from manylora.models.text.patterns import portable_pattern
from manylora.system.printable import printable

MAX_GRAMMAR_BYTES = 256 << 10
"""Limit on the text of a grammar: some 10,000 values of an enum."""
MAX_GBNF_BYTES = 16 << 10
"""The same for GBNF, which an interpreter in Python translates."""
MAX_PLAIN_BYTES = 16 << 10
"""Limit on the text of a plain grammar."""
MAX_CHOICES = 4096
MAX_SCHEMAS = 4096
"""Limit on the schemas in a schema, itself included."""
MAX_DEPTH = 64
"""Limit on the nesting of values in a schema."""
MAX_LISTED = 8
MAX_WHITESPACE = 256

Json = Any  # a JSON value of any type

_SCHEMA = ("items", "additionalItems", "additionalProperties")
_SCHEMAS = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")
_NEUTRAL: Mapping[str, Json] = {"uniqueItems": False, "unevaluatedProperties": True, "unevaluatedItems": True}
"""Keywords without an effect at these values, although they are not supported."""
UNSUPPORTED = frozenset(
    {
        *("not", "if", "then", "else", "dependentSchemas", "dependentRequired", "dependencies"),
        *("contains", "minContains", "maxContains", "propertyNames"),
        *("unevaluatedItems", "unevaluatedProperties", "uniqueItems"),
        *("$dynamicRef", "$recursiveRef"),
        # of older drafts, and of validators beyond the standard
        *("extends", "disallow", "divisibleBy"),
        *("formatMinimum", "formatMaximum", "formatExclusiveMinimum", "formatExclusiveMaximum"),
    }
)
"""Keywords that restrict a value, and that no grammar expresses here. A schema with one is refused."""
OPTIONS = "x-guidance"
"""A keyword by which a schema would set options of the compiler. It is removed."""
_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "$defs", "definitions", "$schema", "$id", OPTIONS}
)
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_PLAIN = frozenset(
    {
        *("type", "enum", "const", "properties", "required", "additionalProperties", "minProperties", "maxProperties"),
        *("items", "prefixItems", "minItems", "maxItems", "minLength", "maxLength"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    }
)
_PLAIN_LIMITS = {
    **dict.fromkeys(("minItems", "maxItems", "minProperties", "maxProperties"), 64),
    **dict.fromkeys(("minLength", "maxLength"), 1 << 16),
    **dict.fromkeys(_BOUNDS, 1 << 53),
}
"""Largest numbers of a plain schema: the compiler takes time and memory for each item and each digit."""
_PLAIN_ALONE = frozenset({"anyOf", "$ref"})
"""Keywords that are plain beside no other: beside one they are intersected with it."""
_TIMES = ("time", "date-time")
_BEFORE_LEAP = "^[^:]*:[^:]*:[0-5]"
"""Times without the second 60, which the compiler allows in every minute and validators at a leap second alone."""


_INTEGER_FORMATS = {"int32": (-(1 << 31), (1 << 31) - 1), "int64": (-(1 << 62), 1 << 62)}
"""OpenAPI's formats of integers, with their bounds; the compiler has no wider ones than these of int64."""
_WITHOUT_EFFECT = frozenset({"temperature", "capture"})
"""Attributes of Lark's rules that a server of many requests cannot apply."""


class GrammarKind(StrEnum):
    """The language of a grammar's text."""

    JSON = "json"  # a JSON schema
    REGEX = "regex"
    LARK = "lark"
    GBNF = "gbnf"


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarSource:
    """A grammar as text. Equal ones are compiled once.

    text        at most `MAX_GRAMMAR_BYTES` of UTF-8
    whitespace  JSON: the regular expression of the white space between two parts; empty: there is none, and the JSON is
                compact
    field       the request's field in the text of an error
    is_plain    its size bounds the work of its compilation, which has no other bound
    """

    kind: GrammarKind
    text: str
    whitespace: str = ""
    field: str = dataclasses.field(default="response_format", compare=False)
    is_plain: bool = dataclasses.field(default=False, compare=False)

    def refusal(self, why: str) -> InvalidParameter:
        """Return the error for a grammar that is not served."""
        what = " schema" if self.kind is GrammarKind.JSON else ""
        return InvalidParameter(f"`{self.field}`{what} is not supported: {why}", parameter=self.field)


FLEXIBLE = r"[\x20\x0A\x0D\x09]{0,32}"
"""White space of JSON, of bounded length: endless white space spends the budget."""


def json_grammar(schema: Json, *, field: str = "response_format", whitespace: str = "") -> GrammarSource:
    """Return the grammar of the JSON values that a schema accepts. The schema is not changed.

    Raises: `InvalidParameter` for a value that is no schema, unsupported keywords, and sizes beyond the limits
    """
    source = GrammarSource(kind=GrammarKind.JSON, text="", whitespace=whitespace, field=field)
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise source.refusal("a schema is an object")
    _check_depth(schema, source)
    copy = _SchemaCopy(source)
    copied = copy.of(schema, "#")
    if copy.unsupported:
        listed = ", ".join(f"`{keyword}` ({place})" for keyword, place in [*copy.unsupported.items()][:MAX_LISTED])
        raise source.refusal(f"it has keywords that cannot be enforced: {listed}")
    source = dataclasses.replace(source, is_plain=copy.is_plain and not whitespace)
    return _sized(source, json.dumps(copied, ensure_ascii=False, separators=(",", ":")))


def json_object_grammar(*, field: str = "response_format", whitespace: str = "") -> GrammarSource:
    """Return the grammar of every JSON object."""
    return json_grammar({"type": "object"}, field=field, whitespace=whitespace)


def regex_grammar(pattern: str, *, field: str = "regex") -> GrammarSource:
    """Return the grammar of the texts that a regular expression matches as a whole."""
    source = GrammarSource(kind=GrammarKind.REGEX, text="", field=field)
    if not pattern:
        raise source.refusal("the expression is empty")
    try:
        return _sized(source, portable_pattern(pattern))
    except ValueError as error:
        raise source.refusal(str(error)) from error


def choice_grammar(choices: Sequence[str], *, field: str = "choice") -> GrammarSource:
    """Return the grammar of some texts."""
    source = GrammarSource(kind=GrammarKind.LARK, text="", field=field, is_plain=True)
    distinct = list(dict.fromkeys(choices))
    if not distinct or not all(distinct):
        raise source.refusal("it needs at least one choice, and none may be empty")
    if len(distinct) > MAX_CHOICES:
        raise source.refusal(f"it has {len(distinct)} choices; the limit is {MAX_CHOICES}")
    # One terminal, which the lexer matches: as alternatives of a rule they would be limited to some hundreds.
    texts = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in distinct)
    return _sized(source, f"start: CHOICE\nCHOICE: {texts}")


def lark_grammar(text: str, *, field: str = "grammar") -> GrammarSource:
    """Return the grammar of a text in Lark's notation, or in GBNF, which has `::=`.

    Raises: `InvalidParameter` as `json_grammar` does for the schemas in it, and for attributes that have no effect here
    """
    kind = GrammarKind.GBNF if "::=" in text else GrammarKind.LARK
    source = GrammarSource(kind=kind, text="", field=field)
    if not text.strip():
        raise source.refusal("the grammar is empty")
    return _sized(source, text if kind is GrammarKind.GBNF else _checked_lark(text, source))


def _checked_lark(text: str, source: GrammarSource) -> str:
    """Return a grammar in Lark's notation whose JSON schemas are checked, and without options of their own."""
    _sized(source, text)
    for attributes in ATTRIBUTES.findall(text):
        names = {each.partition("=")[0].strip() for each in attributes.split(",")}
        if found := sorted(names & _WITHOUT_EFFECT):
            raise source.refusal(f"the attribute `{found[0]}` of a rule has no effect")
    parts, end, read = list[str](), 0, json.JSONDecoder().raw_decode
    for token in TOKENS.finditer(text):
        if not token[0].startswith("%json") or token.start() < end:
            continue
        try:
            schema, stop = read(text, token.end())
        except (ValueError, RecursionError) as error:
            raise source.refusal("no JSON follows `%json`") from error
        parts += [text[end : token.end()], json_grammar(schema, field=source.field).text]
        end = stop
        if len(parts) > 2 * MAX_SCHEMAS:
            raise source.refusal(f"it has more than {MAX_SCHEMAS} schemas")
    return "".join([*parts, text[end:]])


def with_whitespace(source: GrammarSource | None, pattern: str, *, field: str) -> GrammarSource:
    """Return a JSON grammar with white space that a regular expression matches. Raises `InvalidParameter`."""
    if source is None or source.kind is not GrammarKind.JSON:
        raise InvalidParameter(f"`{field}` needs a JSON form of the text beside it", parameter=field)
    if len(pattern) > MAX_WHITESPACE:
        raise InvalidParameter(
            f"`{field}` has {len(pattern)} characters; the limit is {MAX_WHITESPACE}", parameter=field
        )
    try:
        return dataclasses.replace(source, whitespace=portable_pattern(pattern), is_plain=False)
    except ValueError as error:
        raise InvalidParameter(f"`{field}` is not supported: {error}", parameter=field) from error


def _is_plain(schema: Mapping[str, Json]) -> bool:
    """Return whether a schema, apart from those in it, is compiled without the intersection of two expressions."""
    rules = schema.keys() - _ANNOTATIONS
    if any(_is_beyond(schema.get(keyword), limit) for keyword, limit in _PLAIN_LIMITS.items()):
        return False
    if "format" in rules:
        return rules <= {"type", "format"} and schema["format"] not in _TIMES
    return rules <= _PLAIN or (len(rules) == 1 and rules <= _PLAIN_ALONE)


def _is_beyond(number: Json, limit: int) -> bool:
    return isinstance(number, int | float) and not abs(number) <= limit


def _sized(source: GrammarSource, text: str) -> GrammarSource:
    """Return the source with its text. Raises `InvalidParameter` for one that is too long."""
    size = len(text.encode("utf-8", "surrogatepass"))
    limit = MAX_GBNF_BYTES if source.kind is GrammarKind.GBNF else MAX_GRAMMAR_BYTES
    if size > limit:
        raise source.refusal(f"it has {size} bytes; the limit is {limit}")
    return dataclasses.replace(source, text=text, is_plain=source.is_plain and size <= MAX_PLAIN_BYTES)


def _check_depth(schema: Json, source: GrammarSource) -> None:
    """Raise `InvalidParameter` for a schema that is nested too deeply to be read by recursion."""
    level: list[Json] = [schema]
    for _ in range(MAX_DEPTH):
        level = [inner for value in level for inner in _inner(value)]
        if not level:
            return
    raise source.refusal(f"it is nested more than {MAX_DEPTH} levels deep")


def _inner(value: Json) -> Iterator[Json]:
    if isinstance(value, dict):
        yield from (inner for inner in value.values() if isinstance(inner, dict | list))
    elif isinstance(value, list):
        yield from (inner for inner in value if isinstance(inner, dict | list))


class _SchemaCopy:
    """Copies a schema without options and neutral keywords, and notes the unsupported keywords with their places."""

    def __init__(self, source: GrammarSource) -> None:
        self._source = source
        self._num_schemas = 0
        self.is_plain = True
        self.unsupported: dict[str, str] = {}

    def of(self, schema: Json, place: str) -> Json:
        """Return the copy. Values that are no schema stay as they are: the compiler refuses them."""
        self._num_schemas += 1
        if self._num_schemas > MAX_SCHEMAS:
            raise self._source.refusal(f"it has more than {MAX_SCHEMAS} schemas")
        if not isinstance(schema, dict):
            return schema
        self.is_plain &= _is_plain(schema)
        copied = {}
        for keyword, value in schema.items():
            if keyword == OPTIONS or (keyword in _NEUTRAL and value is _NEUTRAL[keyword]):
                continue
            if keyword in UNSUPPORTED:
                self.unsupported.setdefault(keyword, place)
            self._check(keyword, value, place)
            copied[keyword] = self._value(keyword, value, f"{place}/{printable(keyword[:40])}")
        self._bound_integers(copied)
        if copied.get("format") in _TIMES:
            if "pattern" in copied:
                inner = copied.get("allOf")
                copied["allOf"] = [*(inner if isinstance(inner, list) else []), {"pattern": _BEFORE_LEAP}]
            else:
                copied["pattern"] = _BEFORE_LEAP
        return copied

    def _check(self, keyword: str, value: Json, place: str) -> None:
        """Raise `InvalidParameter` for values that the compiler takes for no restriction."""
        if keyword == "required" and not isinstance(value, list):
            raise self._source.refusal(f"`required` ({place}) must be a list of names")
        if keyword == "multipleOf" and isinstance(value, int | float) and not value > 0:
            raise self._source.refusal(f"`multipleOf` ({place}) must be above 0")
        if keyword in _BOUNDS and isinstance(value, int) and abs(value) < 1 << 1000 and int(float(value)) != value:
            raise self._source.refusal(
                f"`{keyword}` ({place}) is {value}, which has more digits than the compiler keeps of a number"
            )
        if keyword == "format" and value == "unknown":
            raise self._source.refusal(f"the `format` unknown ({place}) is none")

    def _bound_integers(self, copied: dict[str, Json]) -> None:
        """Put the bounds of a format of integers beside it."""
        bounds = _INTEGER_FORMATS.get(str(copied.get("format")))
        if bounds is None or copied.get("type") != "integer":
            return
        for keyword, bound, tighter in (("minimum", bounds[0], max), ("maximum", bounds[1], min)):
            given = copied.get(keyword)
            copied[keyword] = tighter(given, bound) if isinstance(given, int | float) else bound
        self.is_plain = False

    def _pattern(self, pattern: Json, place: str) -> Json:
        try:
            return portable_pattern(pattern, is_of_schema=True) if isinstance(pattern, str) else pattern
        except ValueError as error:
            raise self._source.refusal(f"the expression of {place}: {error}") from error

    def _value(self, keyword: str, value: Json, place: str) -> Json:
        if keyword == "pattern":
            return self._pattern(value, place)
        if keyword == "patternProperties" and isinstance(value, dict):
            value = {self._pattern(name, place): inner for name, inner in value.items()}
        if keyword in _SCHEMAS and isinstance(value, list):
            return [self.of(inner, f"{place}/{index}") for index, inner in enumerate(value)]
        if keyword in _NAMED_SCHEMAS and isinstance(value, dict):
            return {name: self.of(inner, f"{place}/{printable(name[:40])}") for name, inner in value.items()}
        return self.of(value, place) if keyword in _SCHEMA else value
