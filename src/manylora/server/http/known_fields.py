"""Refuses a field that a request's form does not have, by its name and with the nearest one that it has."""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from manylora.errors import InvalidParameter
from manylora.server.http.json_fields import Fields

Schema = Mapping[str, object]
NOTHING_ASKED: tuple[object, ...] = (False, 0, "", [], {})
LIST_OF_FIELDS = "GET /docs lists the fields"
MAX_SHOWN_CHARACTERS = 80
MAX_COMPARED_CHARACTERS = 64  # no field's name is longer, and comparing takes time in proportion
_SIMILARITY = 0.6
_ADAPTER_WORDS = ("lora", "adapter", "peft")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A field that is known and not built.

    why      the reason, as the message tells it
    neutral  values that ask for nothing and pass
    """

    why: str = ""
    neutral: tuple[object, ...] = NOTHING_ASKED


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The fields of one JSON object of a request.

    applied    name → JSON schema; the route reads each and applies it, or refuses its value
    unread     accepted, and nothing reads them
    refused    name → why it is refused unless its value asks for nothing
    hints      name that other servers use → the remedy
    elsewhere  place → the names that belong there
    adapter    the remedy for a name of an adapter's; empty where the object names none
    """

    applied: Mapping[str, Schema]
    unread: Collection[str] = frozenset()
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    hints: Mapping[str, str] = field(default_factory=dict)
    elsewhere: Mapping[str, Collection[str]] = field(default_factory=dict)
    adapter: str = ""


def check_names(fields: Fields, form: Form, place: str = "") -> None:
    """Refuse the first field that `form` does not have, or that it has and that is not built.

    Args:    place  the object's name in messages, `stream_options` for one; empty for the body itself
    Raises:  `InvalidParameter`
    """
    for name in fields.names():
        if name in form.applied or name in form.unread:
            continue
        refusal = form.refused.get(name)
        if refusal is None:
            raise _unknown(name, form, place)
        if not _asks_nothing(fields.get(name), refusal):
            raise not_built(name, refusal.why)


def not_built(name: str, why: str = "") -> InvalidParameter:
    """The refusal of a field, or of a value of it, that this server does not implement."""
    reason = f": {why}" if why else ""
    return InvalidParameter(f"`{name}` is not supported by this server yet{reason}", parameter=name)


def _asks_nothing(value: object, refusal: Refusal) -> bool:
    return any(value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in refusal.neutral)


def _unknown(name: str, form: Form, place: str) -> InvalidParameter:
    of = f" of `{place}`" if place else ""
    parameter = f"{place}.{_printable(name)}" if place else _printable(name)
    return InvalidParameter(
        f"`{_printable(name)}` is not a known field{of}: {_remedy(name, form)}", parameter=parameter
    )


def _remedy(name: str, form: Form) -> str:
    if name in form.hints:
        return form.hints[name]
    for home, names in form.elsewhere.items():
        if name in names:
            return f"it belongs in {home}"
    nearest = difflib.get_close_matches(
        name[:MAX_COMPARED_CHARACTERS].lower(), list(form.applied), n=1, cutoff=_SIMILARITY
    )
    if nearest:
        return f"the nearest known one is `{nearest[0]}`"
    if form.adapter and any(word in name[:MAX_COMPARED_CHARACTERS].lower() for word in _ADAPTER_WORDS):
        return form.adapter
    return LIST_OF_FIELDS


def _printable(name: str) -> str:
    """A name of the caller's that a terminal shows as it is, cut to a length that a person reads."""
    shown = name[:MAX_SHOWN_CHARACTERS]
    return shown if shown.isprintable() else shown.encode("unicode_escape").decode("ascii")
