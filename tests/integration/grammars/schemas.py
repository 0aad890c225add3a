"""Random JSON schemas of every supported kind, each with values that it accepts."""

import random
from collections.abc import Callable
from typing import Any

Json = Any  # a JSON value of any type
Made = tuple[Json, Callable[[], Json]]
"""A schema, and a function that returns a value which the schema accepts, its properties in the schema's order."""

_FORMATS = {
    "date": ["2026-12-01"],
    "time": ["10:11:12Z"],
    "date-time": ["2026-12-01T10:11:12Z"],
    "uuid": ["123e4567-e89b-12d3-a456-426614174000"],
    "ipv4": ["10.0.0.255"],
    "email": ["a.b@example.com"],
}
_PATTERNS = {"^[a-c]{2,4}$": ["ab", "cabc"], "^(yes|no)-[0-9]{3}$": ["yes-012"], "^x[^y]?z$": ["xz", "x z"]}
_TEXTS = ["", "a", "ü", 'q"\\\n', "zwölf", "😀", "a b"]


class SchemaMaker:
    """Makes schemas from a seed. `$defs` of a schema has what its `$ref`s name."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._definitions: dict[str, Json] = {}
        self._of_definitions: dict[str, Callable[[], Json]] = {}

    def schema(self) -> Made:
        """Return a whole schema, an object or an array as a rule."""
        kind = self._chance.choice([self._object, self._object, self._array, self._any_of, self._tree, self._scalar])
        schema, make = kind(3)
        if self._definitions:
            schema = {**schema, "$defs": self._definitions}
        return schema, make

    def _inner(self, depth: int) -> Made:
        if depth <= 0:
            return self._scalar(0)
        kinds = [self._scalar, self._scalar, self._scalar, self._object, self._array, self._any_of, self._ref]
        kinds += [self._all_of, self._one_of, self._tuple, self._counted, self._anchor]
        return self._chance.choice(kinds)(depth)

    def _scalar(self, _: int) -> Made:
        return self._chance.choice(
            [
                *(self._integer, self._number, self._multiple, self._text, self._format, self._pattern),
                *(self._enum, self._const, self._plain),
            ]
        )()

    def _plain(self) -> Made:
        return self._chance.choice(
            [
                ({"type": "boolean"}, lambda: self._chance.random() < 0.5),
                ({"type": "null"}, lambda: None),
                ({"type": ["boolean", "null"]}, lambda: self._chance.choice([True, None])),
            ]
        )

    def _integer(self) -> Made:
        low = self._chance.randint(-1000, 1000)
        high = low + self._chance.randint(2, 2000)
        schema, least, most = self._chance.choice(
            [
                ({"minimum": low, "maximum": high}, low, high),
                ({"exclusiveMinimum": low, "exclusiveMaximum": high}, low + 1, high - 1),
                ({"minimum": 0, "maximum": 60, "multipleOf": 5}, 0, 12),
                ({"minimum": 2**53 - 9, "maximum": 2**53}, 2**53 - 9, 2**53),
                ({"minimum": -(10**17), "maximum": 160 - 10**17}, -(10**17), 160 - 10**17),
            ]
        )
        step = schema.get("multipleOf", 1)
        return {"type": "integer", **schema}, lambda: step * self._chance.randint(least, most)

    def _number(self) -> Made:
        low = self._chance.randint(-50, 50)
        high = low + self._chance.randint(1, 9)
        schema = {"type": "number", "minimum": low, "maximum": high}
        return schema, lambda: self._chance.choice([low, high, low + 0.5, low + 0.125])

    def _multiple(self) -> Made:
        step = self._chance.choice([0.5, 2])
        schema = {"type": "number", "minimum": 0, "maximum": 50, "multipleOf": step}
        return (
            schema,
            lambda: self._chance.choice([0, 2, 4, 1.5, 40, 8.5]) if step < 2 else 2 * self._chance.randint(0, 9),
        )

    def _text(self) -> Made:
        least, most = self._chance.choice([(0, 4), (1, 6), (2, 2)])
        texts = [text for text in [*_TEXTS, "ab"] if least <= len(text) <= most]
        return {"type": "string", "minLength": least, "maxLength": most}, lambda: self._chance.choice(texts)

    def _format(self) -> Made:
        name = self._chance.choice(["date", "time", "date-time", "uuid", "ipv4"])
        return {"type": "string", "format": name}, lambda: self._chance.choice(_FORMATS[name])

    def _pattern(self) -> Made:
        pattern = self._chance.choice(list(_PATTERNS))
        return {"type": "string", "pattern": pattern}, lambda: self._chance.choice(_PATTERNS[pattern])

    def _enum(self) -> Made:
        values = self._chance.sample(
            [1, -2.5, "a", "ü", True, None, [1, "x"], {"k": [None]}], self._chance.randint(1, 5)
        )
        return {"enum": values}, lambda: self._chance.choice(values)

    def _const(self) -> Made:
        value = self._chance.choice([7, "seven", False, None, [7, {"a": "b"}], {"a": {"b": 1}}])
        return {"const": value}, lambda: value

    def _array(self, depth: int) -> Made:
        least = self._chance.randint(0, 2)
        most = least + self._chance.randint(0, 2)
        items, make = self._inner(depth - 1)
        if most < 1 or self._chance.random() < 0.7:
            schema: Json = {"type": "array", "items": items, "minItems": least, "maxItems": most}
            return schema, lambda: [make() for _ in range(self._chance.randint(least, most))]
        first, make_first = self._inner(depth - 1)
        schema = {"type": "array", "prefixItems": [first], "items": items, "minItems": 1, "maxItems": most}
        return schema, lambda: [make_first(), *[make() for _ in range(self._chance.randint(0, most - 1))]]

    def _object(self, depth: int) -> Made:
        names = self._chance.sample(["a", "b", "name", "ünï", "x-guidance", 'q"', "kind"], self._chance.randint(0, 3))
        inner = {name: self._inner(depth - 1) for name in names}
        required = [name for name in names if self._chance.random() < 0.6]
        schema: Json = {
            "type": "object",
            "properties": {name: made[0] for name, made in inner.items()},
            "required": required,
        }
        more: Callable[[], Json] = dict
        beyond = self._chance.random()
        if beyond < 0.6:
            schema["additionalProperties"] = False
        elif beyond < 0.8:
            value, make_value = self._scalar(0)
            schema |= {"patternProperties": {"^p[0-9]$": value}, "additionalProperties": False}
            more = lambda: {"p1": make_value()}  # noqa: E731  # a name would say less
        else:
            value, make_value = self._scalar(0)
            schema["additionalProperties"] = value
            more = lambda: {"zz": make_value()}  # noqa: E731

        def make() -> Json:
            kept = [name for name in names if name in required or self._chance.random() < 0.5]
            own = {name: inner[name][1]() for name in kept}
            return {**own, **more()} if self._chance.random() < 0.5 else own

        return schema, make

    def _any_of(self, depth: int) -> Made:
        made = [self._inner(depth - 1) for _ in range(self._chance.randint(2, 3))]
        return {"anyOf": [schema for schema, _ in made]}, lambda: self._chance.choice(made)[1]()

    def _all_of(self, depth: int) -> Made:
        """Two schemas that an object or a number satisfies together."""
        if self._chance.random() < 0.3:
            low = self._chance.randint(-9, 9)
            schema: Json = {"allOf": [{"type": "integer"}, {"minimum": low}, {"maximum": low + 4}]}
            return schema, lambda: self._chance.randint(low, low + 4)
        (first, make_first), (second, make_second) = self._scalar(0), self._inner(depth - 1)
        parts = [
            {"type": "object", "properties": {"a": first}, "required": ["a"]},
            {"type": "object", "properties": {"ü/~": second}, "required": ["ü/~"]},
        ]
        return {"allOf": parts}, lambda: {"a": make_first(), "ü/~": make_second()}

    def _one_of(self, depth: int) -> Made:
        """Objects that a property tells apart."""
        made = {kind: self._inner(depth - 1) for kind in ("x", "y", "z")[: self._chance.randint(2, 3)]}
        alternatives = [
            {
                "type": "object",
                "properties": {"kind": {"const": kind}, "value": inner[0]},
                "required": ["kind", "value"],
                "additionalProperties": False,
            }
            for kind, inner in made.items()
        ]

        def make() -> Json:
            kind = self._chance.choice(list(made))
            return {"kind": kind, "value": made[kind][1]()}

        return {"oneOf": alternatives}, make

    def _tuple(self, depth: int) -> Made:
        """An array whose items are told one by one, and no more of them."""
        made = [self._inner(depth - 1) for _ in range(self._chance.randint(1, 3))]
        parts = [schema for schema, _ in made]
        least = self._chance.randint(0, len(made))
        schema: Json = {"type": "array", "prefixItems": parts, "items": False, "minItems": least}
        return schema, lambda: [make() for _, make in made[: self._chance.randint(least, len(made))]]

    def _counted(self, _: int) -> Made:
        """An object of any names, within a number of them."""
        value, make = self._scalar(0)
        least = self._chance.randint(0, 2)
        most = least + self._chance.randint(1, 2)
        schema: Json = {
            "type": "object",
            "additionalProperties": value,
            "minProperties": least,
            "maxProperties": most,
        }
        names = ["k", "é", "\\", "a b", "$ref"]
        return schema, lambda: {name: make() for name in names[: self._chance.randint(least, most)]}

    def _anchor(self, depth: int) -> Made:
        """A reference by name in place of a path."""
        name = f"n{len(self._definitions)}"
        self._definitions[name] = {}
        schema, make = self._inner(depth - 1)
        self._definitions[name] = {**schema, "$anchor": name}
        return {"$ref": f"#{name}"}, make

    def _ref(self, depth: int) -> Made:
        name = f"d{len(self._definitions)}"
        self._definitions[name] = {}
        self._definitions[name], make = self._inner(depth - 1)
        return {"$ref": f"#/$defs/{name}"}, make

    def _tree(self, depth: int) -> Made:
        """A schema that refers to itself."""
        leaf, make_leaf = self._scalar(0)
        self._definitions["tree"] = {
            "type": "object",
            "properties": {"leaf": leaf, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]}},
            "required": ["leaf", "next"],
            "additionalProperties": False,
        }

        def make(levels: int) -> Json:
            return {"leaf": make_leaf(), "next": make(levels - 1) if levels else None}

        return {"$ref": "#/$defs/tree"}, lambda: make(self._chance.randint(0, depth))
