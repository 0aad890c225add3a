"""Choice of a document's form by the header `Accept` (RFC 9110, section 12.5.1)."""

from collections.abc import Mapping

EXACT, KIND, ANY = 2, 1, 0
"""Precision of a media range; the most precise range that matches a type gives its weight."""


def wanted_form(accept: str, forms: Mapping[str, str], default: str) -> str:
    """Return the form whose media type has the highest weight; of several `default` if among them, else the first.

    A header without any of them, or that cannot be parsed, gets `default`: a client that reads no form could not
    read an error either.

    Args:  accept  value of the header; several headers joined by commas; empty: no header
           forms   the media type of each form, with or without parameters
    """
    ranges = [parsed for part in accept.split(",") if (parsed := _range(part)) is not None]
    wishes = {form: _wish(media.partition(";")[0].strip(), ranges) for form, media in forms.items()}
    most = max(wishes.values())
    if not most or wishes[default] == most:
        return default
    return next(form for form, wish in wishes.items() if wish == most)


def _wish(media: str, ranges: list[tuple[str, float]]) -> float:
    """Return the weight, 0 to 1, of the most precise range that matches; 0 without a match."""
    kind = media.partition("/")[0]
    closeness = {media: EXACT, f"{kind}/*": KIND, "*/*": ANY}
    fitting = [(closeness[name], weight) for name, weight in ranges if name in closeness]
    return max(fitting, default=(ANY, 0.0))[1]


def _range(part: str) -> tuple[str, float] | None:
    """Parse a media range and its weight; None for an invalid one."""
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
