"""Which of several forms of a document a caller wants, by the header `Accept` (RFC 9110, section 12.5.1)."""

from collections.abc import Mapping

EXACT, KIND, ANY = 2, 1, 0
"""How closely a range fits a media type; the closest says how much that type is wanted."""


def wanted_form(accept: str, forms: Mapping[str, str], default: str) -> str:
    """The form whose media type is wanted most; of several, `default` if it is among them, else the first.

    A header that wants none of them, or that cannot be read, gets `default`: a caller that reads no form would
    read no refusal either.

    Args:  accept  the header's value; several headers joined by commas; empty: there was none
           forms   the media type of each form, with or without parameters
    """
    ranges = [parsed for part in accept.split(",") if (parsed := _range(part)) is not None]
    wishes = {form: _wish(media.partition(";")[0].strip(), ranges) for form, media in forms.items()}
    most = max(wishes.values())
    if not most or wishes[default] == most:
        return default
    return next(form for form, wish in wishes.items() if wish == most)


def _wish(media: str, ranges: list[tuple[str, float]]) -> float:
    """0 to 1: the weight of the range that fits closest; 0 where none does."""
    kind = media.partition("/")[0]
    closeness = {media: EXACT, f"{kind}/*": KIND, "*/*": ANY}
    fitting = [(closeness[name], weight) for name, weight in ranges if name in closeness]
    return max(fitting, default=(ANY, 0.0))[1]


def _range(part: str) -> tuple[str, float] | None:
    """A media range and its weight; None where it is none."""
    name, *parameters = (word.strip().lower() for word in part.split(";"))
    if name.count("/") != 1:
        return None
    weight = 1.0
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                weight = float(value)
            except ValueError:
                return None
            if not 0.0 <= weight <= 1.0:
                return None
    return name, weight
