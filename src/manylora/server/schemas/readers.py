"""The readers of single fields: each returns a valid value and raises `InvalidParameter` for other values."""

from collections.abc import Callable, Sequence
from typing import Annotated, cast

from pydantic import ValidationInfo

from manylora.errors import InvalidParameter
from manylora.server.schemas.body import Bounds, Model, Read, Reading, wrong_type

MAX_UINT64 = 2**64 - 1
Number = int | float


def bounds_of(info: ValidationInfo) -> Bounds:
    return cast(Bounds, info.context)  # `read_body` is the one caller, and passes it


def name_of(info: ValidationInfo) -> str:
    return str(info.field_name)


def text(value: object, info: ValidationInfo) -> str:
    if isinstance(value, str):
        return value
    raise wrong_type(name_of(info), "a string", value)


def flag(value: object, info: ValidationInfo) -> bool:
    if isinstance(value, bool):
        return value
    raise wrong_type(name_of(info), "a boolean", value)


def whole_number(name: str, value: object) -> int:
    """Return an integer. A float without a fraction is valid, a boolean is not."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_type(name, "an integer", value)
    if not -MAX_UINT64 <= value <= MAX_UINT64:
        raise InvalidParameter(f"`{name}`: expected an integer below 2^64, given {value}", parameter=name)
    return value


def whole(value: object, info: ValidationInfo) -> int:
    return whole_number(name_of(info), value)


def unsigned(value: object, info: ValidationInfo) -> int:
    name = name_of(info)
    found = whole_number(name, value)
    if found < 0:
        raise InvalidParameter(f"`{name}`: expected an integer >= 0, given {found}", parameter=name)
    return found


def finite_number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type(name, "a number", value)
    try:
        return float(value)
    except OverflowError:
        raise InvalidParameter(f"`{name}`: expected a finite number", parameter=name) from None


def number(value: object, info: ValidationInfo) -> float:
    return finite_number(name_of(info), value)


def positive(name: str, value: float) -> None:
    if value <= 0:
        raise InvalidParameter(f"`{name}` must be strictly positive", parameter=name)


def positive_whole(value: object, info: ValidationInfo) -> int:
    found = whole(value, info)
    positive(name_of(info), found)
    return found


def positive_unsigned(value: object, info: ValidationInfo) -> int:
    found = unsigned(value, info)
    positive(name_of(info), found)
    return found


def positive_number(value: object, info: ValidationInfo) -> float:
    found = number(value, info)
    positive(name_of(info), found)
    return found


def number_within(is_within: Callable[[float], bool], bounds: str) -> Callable[[object, ValidationInfo], float]:
    """Return a reader of numbers in a range; `bounds` is the range in the message."""

    def read(value: object, info: ValidationInfo) -> float:
        found = number(value, info)
        if not is_within(found):
            raise InvalidParameter(f"`{info.field_name}` must be {bounds}", parameter=name_of(info))
        return found

    return read


def count_within(lowest: int, highest: Callable[[Bounds], int]) -> Reading:
    """Return a reader of integers, whose upper bound may be a setting."""

    def read(value: object, info: ValidationInfo) -> int:
        found, most = whole(value, info), highest(bounds_of(info))
        if not lowest <= found <= most:
            name = name_of(info)
            raise InvalidParameter(f"`{name}` must be >= {lowest} and <= {most}. Given: {found}", parameter=name)
        return found

    return read


def strings(name: str, value: object) -> tuple[str, ...]:
    """Return the strings of a string or of an array of strings."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(cast(list[str], value))  # the condition has checked each
    raise wrong_type(name, "a string or an array of strings", value)


def array(name: str, value: object) -> Sequence[object]:
    if isinstance(value, list):
        return value
    raise wrong_type(name, "an array", value)


def whole_numbers(name: str, value: object) -> tuple[int, ...]:
    return tuple(whole_number(f"{name}[{index}]", item) for index, item in enumerate(array(name, value)))


def object_of(model: type[Model]) -> Callable[[object, ValidationInfo], Model]:
    """Return a reader of an object with a model of its own."""

    def read(value: object, info: ValidationInfo) -> Model:
        if not isinstance(value, dict):
            raise wrong_type(name_of(info), "an object", value)
        return model.model_validate(value, context=info.context)

    return read


Text = Annotated[str | None, Read(text, "string")]
Flag = Annotated[bool, Read(flag, "boolean")]
