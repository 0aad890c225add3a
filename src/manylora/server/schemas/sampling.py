"""The fields of sampling and of stop conditions that both dialects share, with their bounds."""

from typing import Annotated

from pydantic import Field, ValidationInfo

from manylora.errors import InvalidParameter
from manylora.server.schemas.body import Read
from manylora.server.schemas.readers import (
    array,
    bounds_of,
    flag,
    name_of,
    number_within,
    positive_number,
    positive_whole,
    strings,
    unsigned,
    whole_numbers,
)

MAX_ALTERNATIVES = 20
MAX_STOP_TOKENS = 1024
MAX_ALLOWED_TOKENS = 1024
MAX_BAD_WORDS = 128
_TOP_P = "> 0.0 and < 1.0"


def _temperature(value: object, info: ValidationInfo) -> float:
    found = _any_temperature(value, info)
    if found > 2:
        raise InvalidParameter("`temperature` must be <= 2.0", parameter="temperature")
    return found


_any_temperature = number_within(lambda value: not value < 0, "non-negative")


_within_two = number_within(lambda value: -2.0 <= value <= 2.0, ">= -2.0 and <= 2.0")


def _stop(value: object, info: ValidationInfo) -> tuple[str, ...]:
    found, most = strings(name_of(info), value), bounds_of(info).settings.max_stop_sequences
    if len(found) > most:
        raise InvalidParameter(f"`stop` supports up to {most} stop sequences. Given: {len(found)}", parameter="stop")
    if "" in found:
        raise InvalidParameter("`stop` must not contain empty strings", parameter="stop")
    return found


def _stop_tokens(value: object, info: ValidationInfo) -> tuple[int, ...]:
    given = array(name_of(info), value)
    if len(given) > MAX_STOP_TOKENS:
        raise InvalidParameter(
            f"`stop_token_ids` may have at most {MAX_STOP_TOKENS} entries. Given: {len(given)}",
            parameter="stop_token_ids",
        )
    return whole_numbers(name_of(info), given)


def _allowed_tokens(value: object, info: ValidationInfo) -> tuple[int, ...]:
    given = array(name_of(info), value)
    if not 1 <= len(given) <= MAX_ALLOWED_TOKENS:
        raise InvalidParameter(
            f"`allowed_token_ids` must have 1 to {MAX_ALLOWED_TOKENS} entries. Given: {len(given)}",
            parameter="allowed_token_ids",
        )
    return whole_numbers(name_of(info), given)


def _bad_words(value: object, info: ValidationInfo) -> tuple[str, ...]:
    found = strings(name_of(info), value)
    if len(found) > MAX_BAD_WORDS:
        raise InvalidParameter(
            f"`bad_words` may have at most {MAX_BAD_WORDS} entries. Given: {len(found)}", parameter="bad_words"
        )
    if not all(word.strip() for word in found):
        raise InvalidParameter("`bad_words` must not contain empty strings", parameter="bad_words")
    return found


def _min_new_tokens(value: object, info: ValidationInfo) -> int:
    found, other = unsigned(value, info), info.data.get("min_tokens")
    if other is not None and other != found:
        raise InvalidParameter(
            "`min_new_tokens` and `min_tokens` are one option and differ", parameter="min_new_tokens"
        )
    return found


def _ignore_eos(value: object, info: ValidationInfo) -> bool:
    found, other = flag(value, info), info.data.get("ignore_eos_token")
    if other is not None and other != found:
        raise InvalidParameter("`ignore_eos` and `ignore_eos_token` are one option and differ", parameter="ignore_eos")
    return found


Temperature = Annotated[float | None, Read(_any_temperature, "number", minimum=0), Field(description="0 is greedy.")]
OpenAITemperature = Annotated[
    float | None, Read(_temperature, "number", minimum=0, maximum=2), Field(description="0 is greedy; default 1.")
]
TopK = Annotated[int | None, Read(positive_whole, "integer", minimum=1)]
TopP = Annotated[
    float | None, Read(number_within(lambda value: 0 < value <= 1, _TOP_P), "number", exclusiveMinimum=0, maximum=1)
]
OpenAITopP = Annotated[
    float | None, Read(number_within(lambda value: 0 <= value <= 1, _TOP_P), "number", minimum=0, maximum=1)
]
TypicalP = Annotated[
    float | None,
    Read(
        number_within(lambda value: 0 < value < 1, "> 0.0 and < 1.0"), "number", exclusiveMinimum=0, exclusiveMaximum=1
    ),
]
MinP = Annotated[
    float | None,
    Read(number_within(lambda value: 0 <= value <= 1, ">= 0.0 and <= 1.0"), "number", minimum=0, maximum=1),
]
RepetitionPenalty = Annotated[float | None, Read(positive_number, "number", exclusiveMinimum=0)]
Penalty = Annotated[float, Read(_within_two, "number", minimum=-2, maximum=2)]
Seed = Annotated[
    int | None, Read(unsigned, "integer", minimum=0), Field(description="The same seed gives the same tokens.")
]
Stop = Annotated[
    tuple[str, ...],
    Read(_stop, shape=str | list[str] | None),
    Field(description="Strings that end the generation; one may name a special token, alone or within text."),
]
StopTokens = Annotated[
    tuple[int, ...],
    Read(_stop_tokens, shape=list[int] | None),
    Field(description="Tokens that end the generation and are no part of the text."),
]
MinTokens = Annotated[
    int | None,
    Read(unsigned, "integer", minimum=0),
    Field(description="Tokens generated before one may end the generation; at most the budget."),
]
MinNewTokens = Annotated[
    int | None, Read(_min_new_tokens, "integer", minimum=0), Field(description="The same as `min_tokens`.")
]
BadWords = Annotated[
    tuple[str, ...],
    Read(_bad_words, shape=str | list[str] | None),
    Field(description="Words that the reply does not complete."),
]
AllowedTokens = Annotated[
    tuple[int, ...] | None,
    Read(_allowed_tokens, shape=list[int] | None),
    Field(description="The only tokens that may be generated."),
]
KeepsStop = Annotated[
    bool | None, Read(flag, "boolean"), Field(description="If true, the text keeps the stop string or token.")
]
IgnoreEosToken = Annotated[
    bool | None, Read(flag, "boolean"), Field(description="If true, end-of-sequence tokens do not end the text.")
]
IgnoreEos = Annotated[bool | None, Read(_ignore_eos, "boolean"), Field(description="The same as `ignore_eos_token`.")]
SkipsSpecial = Annotated[
    bool, Read(flag, "boolean"), Field(description="If true, the text omits special tokens; default true.")
]
