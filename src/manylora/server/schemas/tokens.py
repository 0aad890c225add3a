"""Readers of fields that hold token ids: prompts and biases."""

from typing import cast

from pydantic import ValidationInfo

from manylora.errors import InvalidParameter
from manylora.server.schemas.body import kind_of, wrong_type
from manylora.server.schemas.readers import finite_number, name_of

MAX_PROMPTS = 2048
MAX_LOGIT_BIASES = 1024
MAX_TOKEN_DIGITS = 19

Prompt = str | tuple[int, ...]
Biases = tuple[tuple[int, float], ...]


def read_prompts(value: object, info: ValidationInfo) -> tuple[Prompt, ...]:
    name, expected = name_of(info), "a string, an array of strings, an array of token ids or an array of those"
    if value is None:
        raise InvalidParameter(f"`{name}` is required", parameter=name)
    if isinstance(value, str):
        found: list[Prompt] = [value]
    elif not isinstance(value, list):
        raise wrong_type(name, expected, value)
    elif value and all(_is_token(item) for item in value):
        found = [tuple(int(token) for token in cast(list[float], value))]
    else:
        found = [_prompt(name, item, expected) for item in value]
    if not found or not all(found):
        raise InvalidParameter(f"`{name}` cannot be empty", parameter=name)
    if len(found) > MAX_PROMPTS:
        raise InvalidParameter(f"`{name}` may have at most {MAX_PROMPTS} items", parameter=name)
    return tuple(found)


def _prompt(name: str, item: object, expected: str) -> Prompt:
    if isinstance(item, str):
        return item
    if isinstance(item, list) and all(_is_token(token) for token in item):
        return tuple(int(token) for token in cast(list[float], item))
    raise InvalidParameter(f"`{name}`: expected {expected}, given an array with {kind_of(item)}", parameter=name)


def _is_token(item: object) -> bool:
    """Return whether an item is a whole number, which may be written as `10.0`."""
    return (isinstance(item, int) and not isinstance(item, bool)) or (isinstance(item, float) and item.is_integer())


def read_biases(value: object, info: ValidationInfo) -> Biases:
    if not isinstance(value, dict):
        raise wrong_type(name_of(info), "an object", value)
    given = {token: bias for token, bias in value.items() if bias is not None}
    if len(given) > MAX_LOGIT_BIASES:
        raise InvalidParameter(
            f"`logit_bias` may have at most {MAX_LOGIT_BIASES} entries. Given: {len(given)}", parameter="logit_bias"
        )
    return tuple(_bias(token, bias) for token, bias in given.items())


def _bias(token: str, value: object) -> tuple[int, float]:
    bias = finite_number(token, value)
    is_token = token.isascii() and token.isdigit() and len(token) <= MAX_TOKEN_DIGITS
    if not is_token or not -100 <= bias <= 100:
        raise InvalidParameter("`logit_bias` must map token ids to numbers from -100 to 100", parameter="logit_bias")
    return int(token), bias
