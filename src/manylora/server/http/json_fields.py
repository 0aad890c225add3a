"""Reads the fields of a JSON object by name and kind, with messages that say what was expected and what came."""

from collections.abc import Mapping, Sequence
from typing import cast

import msgspec

from manylora.errors import InvalidJson, InvalidParameter

MAX_UINT64 = 2**64 - 1


def decode_object(body: bytes) -> "Fields":
    """Parse a body that must be one JSON object. NaN, Infinity and lone surrogates are not JSON."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidJson(f"the body is not valid JSON: {error}") from error
    if not isinstance(decoded, dict):
        raise InvalidParameter(f"the body must be a JSON object, given {kind_of(decoded)}")
    return Fields(decoded)


def kind_of(value: object) -> str:
    """The JSON kind of a value, for messages."""
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


def whole_number(name: str, value: object) -> int:
    """An integer; a float without a fraction passes, a boolean does not."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_type(name, "an integer", value)
    if not -MAX_UINT64 <= value <= MAX_UINT64:
        raise InvalidParameter(f"`{name}`: expected an integer below 2^64, given {value}", parameter=name)
    return value


class Fields:
    """One JSON object. A field that is null counts as absent; `known_fields.py` refuses names that no form has."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = values

    def get(self, name: str) -> object | None:
        """The raw value; None if absent or null."""
        return self._values.get(name)

    def first(self, *names: str) -> str:
        """The first of several names of one field that is present, or the first name."""
        return next((name for name in names if self._values.get(name) is not None), names[0])

    def string(self, name: str) -> str | None:
        value = self._values.get(name)
        if value is None or isinstance(value, str):
            return value
        raise wrong_type(name, "a string", value)

    def boolean(self, name: str, *, default: bool = False) -> bool:
        value = self._values.get(name)
        if value is None:
            return default
        if isinstance(value, bool):
            return value
        raise wrong_type(name, "a boolean", value)

    def integer(self, name: str) -> int | None:
        """As `whole_number`; None if absent."""
        value = self._values.get(name)
        return None if value is None else whole_number(name, value)

    def integers(self, name: str) -> tuple[int, ...]:
        """An array of integers; absent is empty."""
        return tuple(whole_number(f"{name}[{index}]", item) for index, item in enumerate(self.array(name) or ()))

    def unsigned(self, name: str) -> int | None:
        value = self.integer(name)
        if value is not None and value < 0:
            raise InvalidParameter(f"`{name}`: expected an integer >= 0, given {value}", parameter=name)
        return value

    def number(self, name: str) -> float | None:
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type(name, "a number", value)
        try:
            return float(value)
        except OverflowError:
            raise InvalidParameter(f"`{name}`: expected a finite number", parameter=name) from None

    def child(self, name: str) -> "Fields | None":
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise wrong_type(name, "an object", value)
        return Fields(value)

    def array(self, name: str) -> Sequence[object] | None:
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise wrong_type(name, "an array", value)
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        """A string, or an array of strings; absent is empty."""
        value = self._values.get(name)
        if value is None:
            return ()
        if isinstance(value, str):
            return (value,)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(cast(list[str], value))  # each was looked at just above
        raise wrong_type(name, "a string or an array of strings", value)

    def names(self) -> list[str]:
        """The names of the fields that are present."""
        return [name for name, value in self._values.items() if value is not None]
