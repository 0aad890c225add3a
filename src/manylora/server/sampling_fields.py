"""The sampling fields that both dialects share, their bounds, and what is not built yet."""

from manylora.engine.request import SamplingParams
from manylora.errors import InvalidParameter
from manylora.server.fields import Fields

MAX_ALTERNATIVES = 20


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


def filters(fields: Fields) -> SamplingParams:
    """Everything of `SamplingParams` but temperature, seed, biases and log-probabilities."""
    top_k, top_p, typical_p = fields.integer("top_k"), fields.number("top_p"), fields.number("typical_p")
    min_p, repetition = fields.number("min_p"), fields.number("repetition_penalty")
    positive("top_k", top_k)
    positive("repetition_penalty", repetition)
    if top_p is not None and not 0 < top_p <= 1:
        raise InvalidParameter("`top_p` must be > 0.0 and < 1.0", parameter="top_p")
    if typical_p is not None and not 0 < typical_p < 1:
        raise InvalidParameter("`typical_p` must be > 0.0 and < 1.0", parameter="typical_p")
    if min_p is not None and not 0 <= min_p < 1:
        raise InvalidParameter("`min_p` must be >= 0.0 and < 1.0", parameter="min_p")
    return SamplingParams(
        top_k=top_k,
        top_p=1.0 if top_p is None else top_p,
        typical_p=typical_p,
        min_p=min_p or 0.0,
        repetition_penalty=1.0 if repetition is None else repetition,
        frequency_penalty=penalty(fields, "frequency_penalty"),
        presence_penalty=penalty(fields, "presence_penalty"),
    )


def not_built(name: str) -> InvalidParameter:
    return InvalidParameter(f"`{name}` is not supported by this server yet", parameter=name)


def refuse_not_built(fields: Fields, *names: str) -> None:
    """Refuse by name each field that would change the result and that nothing here implements.

    Absent, null, false, zero and empty values ask for nothing and pass.
    """
    for name in names:
        if fields.get(name):
            raise not_built(name)


def refuse_response_format(fields: Fields) -> None:
    """Free text is the one format so far."""
    form = fields.child("response_format")
    if form is None:
        return
    kind = form.string("type")
    if kind is None or kind.lower() != "text":
        raise not_built("response_format")
