"""The fields that both dialects share, of sampling and of ending, and their bounds."""

from manylora.engine.request import SamplingParams
from manylora.errors import InvalidParameter
from manylora.server.generation.order import StopRules
from manylora.server.http.json_fields import Fields
from manylora.server.http.known_fields import check_names, not_built
from manylora.server.http.request_fields import RESPONSE_FORMAT

MAX_ALTERNATIVES = 20
MAX_STOP_TOKENS = 1024


def positive(name: str, value: float | None) -> None:
    if value is not None and value <= 0:
        raise InvalidParameter(f"`{name}` must be strictly positive", parameter=name)


def penalty(fields: Fields, name: str) -> float:
    value = fields.number(name)
    if value is not None and not -2.0 <= value <= 2.0:
        raise InvalidParameter(f"`{name}` must be >= -2.0 and <= 2.0", parameter=name)
    return value or 0.0


def stop_strings(fields: Fields, most: int) -> tuple[str, ...]:
    stop = fields.strings("stop")
    if len(stop) > most:
        raise InvalidParameter(f"`stop` supports up to {most} stop sequences. Given: {len(stop)}", parameter="stop")
    if "" in stop:
        raise InvalidParameter("`stop` must not contain empty strings", parameter="stop")
    return stop


def temperature(fields: Fields) -> float | None:
    value = fields.number("temperature")
    if value is not None and value < 0:
        raise InvalidParameter("`temperature` must be non-negative", parameter="temperature")
    return value


def filters(fields: Fields, *, lowest_top_p: float | None = None) -> SamplingParams:
    """Everything of `SamplingParams` but temperature, seed, biases and log-probabilities.

    `lowest_top_p`: a value that OpenAI documents and LoRAX refuses; it keeps the likeliest token alone.
    """
    top_k, top_p, typical_p = fields.integer("top_k"), fields.number("top_p"), fields.number("typical_p")
    min_p, repetition = fields.number("min_p"), fields.number("repetition_penalty")
    positive("top_k", top_k)
    positive("repetition_penalty", repetition)
    if top_p is not None and top_p == lowest_top_p:
        top_k, top_p = 1, None
    if top_p is not None and not 0 < top_p <= 1:
        raise InvalidParameter("`top_p` must be > 0.0 and < 1.0", parameter="top_p")
    if typical_p is not None and not 0 < typical_p < 1:
        raise InvalidParameter("`typical_p` must be > 0.0 and < 1.0", parameter="typical_p")
    if min_p is not None and not 0 <= min_p <= 1:
        raise InvalidParameter("`min_p` must be >= 0.0 and <= 1.0", parameter="min_p")
    return SamplingParams(
        top_k=top_k,
        top_p=1.0 if top_p is None else top_p,
        typical_p=typical_p,
        min_p=min_p or 0.0,
        repetition_penalty=1.0 if repetition is None else repetition,
        frequency_penalty=penalty(fields, "frequency_penalty"),
        presence_penalty=penalty(fields, "presence_penalty"),
    )


def stop_rules(fields: Fields, most: int) -> StopRules:
    """Args:  most  stop strings at most"""
    names = ("ignore_eos_token", "ignore_eos")
    told = {name: fields.boolean(name) for name in names if fields.get(name) is not None}
    if len(set(told.values())) > 1:
        raise InvalidParameter("`ignore_eos` and `ignore_eos_token` are one option and differ", parameter="ignore_eos")
    tokens = fields.integers("stop_token_ids")
    if len(tokens) > MAX_STOP_TOKENS:
        raise InvalidParameter(
            f"`stop_token_ids` may have at most {MAX_STOP_TOKENS} entries. Given: {len(tokens)}",
            parameter="stop_token_ids",
        )
    keeps_stop = "include_stop_str_in_output"
    return StopRules(
        strings=stop_strings(fields, most),
        token_ids=tokens,
        ignore_eos=any(told.values()),
        skip_special_tokens=fields.boolean("skip_special_tokens", default=True),
        keeps_stop=None if fields.get(keeps_stop) is None else fields.boolean(keeps_stop),
    )


def refuse_response_format(fields: Fields) -> None:
    """Free text is the one format so far."""
    form = fields.child("response_format")
    if form is None:
        return
    kind = form.string("type")
    if kind is None or kind.lower() != "text":
        raise not_built("response_format")
    check_names(form, RESPONSE_FORMAT, "response_format")
