"""Time zones that a visitor may choose."""

from functools import cache
from zoneinfo import available_timezones

DEFAULT = "UTC"


@cache
def zone_names() -> tuple[str, ...]:
    """Return the names of the zones of places, sorted, with UTC first."""
    places = sorted(
        name for name in available_timezones() if "/" in name and not name.startswith(("Etc/", "posix", "right"))
    )
    return (DEFAULT, *places)


def known_zone(name: str | None) -> str:
    """Return a zone's name, or UTC for a text that is none."""
    return name if name in zone_names() else DEFAULT
