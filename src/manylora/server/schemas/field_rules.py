"""The rules for names of fields: unread ones, refused ones, and the remedies in errors of unknown ones."""

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from manylora.errors import InvalidParameter
from manylora.system.printable import printable

NOTHING_ASKED: tuple[object, ...] = (False, 0, "", [], {})
LIST_OF_FIELDS = "GET /docs lists the fields"
MAX_SHOWN_CHARACTERS = 80
MAX_COMPARED_CHARACTERS = 64  # no field's name is longer, and comparing takes time in proportion
_SIMILARITY = 0.6
_ADAPTER_WORDS = ("lora", "adapter", "peft")


@dataclass(frozen=True, slots=True)
class Refusal:
    """The refusal of a known field that this server does not implement.

    why      the reason in the message
    neutral  accepted values, which have no effect
    """

    why: str = ""
    neutral: tuple[object, ...] = NOTHING_ASKED


def _no_places() -> Mapping[str, Collection[str]]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldRules:
    """The rules for names in one JSON object of a request that are no fields of its model.

    unread     accepted names without an effect
    refused    name → its refusal, unless the value is neutral
    hints      name from other servers → the remedy
    elsewhere  returns place → the names that belong there; it is a function, since models refer to each other
    adapter    the remedy for a field that names an adapter; empty for an object that names no adapter
    """

    unread: frozenset[str] = frozenset()
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    hints: Mapping[str, str] = field(default_factory=dict)
    elsewhere: Callable[[], Mapping[str, Collection[str]]] = _no_places
    adapter: str = ""


def applied_fields(
    values: Mapping[str, object], applied: Collection[str], rules: FieldRules, place: str
) -> dict[str, object]:
    """Return the fields of `applied` that are present; null counts as absent.

    Args:    place  the object's name in messages, `stream_options` for one; empty for the body itself
    Raises:  `InvalidParameter` for the first field that is unknown or not implemented
    """
    found = {}
    for name, value in values.items():
        if value is None or name in rules.unread:
            continue
        if name in applied:
            found[name] = value
            continue
        refusal = rules.refused.get(name)
        if refusal is None:
            raise _unknown(name, applied, rules, place)
        if not _asks_nothing(value, refusal):
            raise not_built(name, refusal.why)
    return found


def not_built(name: str, why: str = "") -> InvalidParameter:
    """Return the refusal of a field, or of a field's value, that this server does not implement."""
    reason = f": {why}" if why else ""
    return InvalidParameter(f"`{name}` is not supported by this server yet{reason}", parameter=name)


def _asks_nothing(value: object, refusal: Refusal) -> bool:
    return any(value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in refusal.neutral)


def _unknown(name: str, applied: Collection[str], rules: FieldRules, place: str) -> InvalidParameter:
    shown, of = printable(name[:MAX_SHOWN_CHARACTERS]), f" of `{place}`" if place else ""
    return InvalidParameter(
        f"`{shown}` is not a known field{of}: {_remedy(name, applied, rules)}",
        parameter=f"{place}.{shown}" if place else shown,
    )


def _remedy(name: str, applied: Collection[str], rules: FieldRules) -> str:
    if name in rules.hints:
        return rules.hints[name]
    for home, names in rules.elsewhere().items():
        if name in names:
            return f"it belongs in {home}"
    compared = name[:MAX_COMPARED_CHARACTERS].lower()
    nearest = difflib.get_close_matches(compared, list(applied), n=1, cutoff=_SIMILARITY)
    if nearest:
        return f"the nearest known one is `{nearest[0]}`"
    if rules.adapter and any(word in compared for word in _ADAPTER_WORDS):
        return rules.adapter
    return LIST_OF_FIELDS
