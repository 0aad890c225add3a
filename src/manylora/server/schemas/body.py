"""The base of all models of requests' bodies, and the one function that reads a body.

A model declares its fields in the order of their checks; the error names the first wrong field. Field readers
(`readers.py`) raise `InvalidParameter` with LoRAX's messages, and pydantic passes this exception on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo, model_validator
from pydantic_core import CoreSchema, core_schema

from manylora.config.groups.server import ServerConfig
from manylora.errors import InvalidJson, InvalidParameter
from manylora.server.schemas.field_rules import FieldRules, applied_fields

Json = dict[str, Any]  # JSON values of several types
Model = TypeVar("Model", bound="Body")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The values on which the bounds of fields depend.

    settings   the settings with the operator's limits
    max_input  number of tokens of the longest prompt
    is_stream  whether the route streams; None: the body decides
    beside     the unread object, for a field whose bounds depend on fields after it
    """

    settings: ServerConfig
    max_input: int = 0
    is_stream: bool | None = None
    beside: Mapping[str, object] = field(default_factory=dict)


class Body(BaseModel):
    """One JSON object of a request. A field that is null counts as absent, and an unknown field is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    rules: ClassVar[FieldRules] = FieldRules()
    place: ClassVar[str] = ""
    """The object's name in messages; empty for a whole body."""
    required: ClassVar[tuple[str, ...]] = ()
    """The fields that must be present, for the schema; their readers refuse absent ones."""

    @model_validator(mode="before")
    @classmethod
    def _with_known_names(cls, values: Mapping[str, object]) -> dict[str, object]:
        return applied_fields(values, cls.names(), cls.rules, cls.place)

    @classmethod
    def names(cls) -> frozenset[str]:
        """The names of the fields that are applied."""
        return frozenset(field.alias or name for name, field in cls.__pydantic_fields__.items())

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler, /) -> Json:
        reference = handler(schema)
        found = handler.resolve_ref_schema(reference)
        for shown in found.get("properties", {}).values():
            shown.pop("title", None)
            shown.pop("default", None)
        unread = {name: {"description": "Accepted and not read."} for name in sorted(cls.rules.unread)}
        found["properties"] = {**found.get("properties", {}), **unread}
        if cls.required:
            found["required"] = list(cls.required)
        return reference


Reading = Callable[[Any, ValidationInfo], object]
"""Reads one field: (value, pydantic's facts of the field) → the model's value. Raises `InvalidParameter`."""


class Read:
    """Annotates a field with the function that reads it, and with its JSON schema.

    Args:  kind   the JSON type; a field may be null as well
           shape  a type whose schema replaces `kind` and `rules`
           rules  keywords of JSON schema, such as `minimum`
    """

    def __init__(self, reading: Reading, kind: str = "", *, shape: object = None, **rules: object) -> None:
        self._reading = reading
        self._shape = shape
        self._schema: Json = {**({"type": [kind, "null"]} if kind else {}), **rules}

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if self._shape is None:
            return core_schema.with_info_plain_validator_function(self._reading)
        reading = self._reading
        return core_schema.with_info_wrap_validator_function(
            lambda value, _, info: reading(value, info),
            handler.generate_schema(self._shape),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> Json:
        return handler(schema) if self._shape is not None else dict(self._schema)


def read_body(body: bytes, model: type[Model], bounds: Bounds) -> Model:
    """Read a body that must be one JSON object. NaN, Infinity and lone surrogates are not JSON.

    Raises `InvalidJson`, and `InvalidParameter` for the first field that is wrong.
    """
    return model.model_validate(decode_object(body), context=bounds)


def decode_object(body: bytes) -> Json:
    """Parse a body that must be one JSON object. Raises `InvalidJson`, `InvalidParameter`."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidJson(f"the body is not valid JSON: {error}") from error
    if not isinstance(decoded, dict):
        raise InvalidParameter(f"the body must be a JSON object, given {kind_of(decoded)}")
    return decoded


def kind_of(value: object) -> str:
    """Return the JSON kind of a value, for messages."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
    return "an object"


def wrong_type(name: str, expected: str, value: object) -> InvalidParameter:
    return InvalidParameter(f"`{name}`: expected {expected}, given {kind_of(value)}", parameter=name)
