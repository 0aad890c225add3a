"""Sizes in bytes as texts: `24GiB` in an option, `12.6 GiB` in a line."""

import re

from manylora.errors import ConfigInvalid

_UNITS = {"": 1, "b": 1} | {
    f"{letter}{binary}b": (1024 if binary else 1000) ** power
    for power, letter in enumerate("kmgt", start=1)
    for binary in ("i", "")
}
_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,9})?) ?([a-zA-Z]{0,3})", re.ASCII)
LEAST_BYTES, MOST_BYTES = 1 << 20, 1 << 50


def parse_bytes(name: str, text: str) -> int:
    """Return the bytes of a size such as `24GiB`, `24GB`, `1.5 TiB` or `25769803776`, at least 1 MiB, at most 1 PiB.

    Raises: `ConfigInvalid` with the option's name and the text.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].lower()) if match else None
    found = -1 if match is None or unit is None else round(float(match[1]) * unit)
    if not LEAST_BYTES <= found <= MOST_BYTES:
        raise ConfigInvalid(f"{name} must be a size of 1 MiB to 1 PiB, such as 24GiB or 24GB. Given: {text[:80]!r}")
    return found


def byte_text(num_bytes: int) -> str:
    """Return a size with one decimal in the largest binary unit of which it has at least one: `512.0 KiB`."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if num_bytes >= 1 << 10 * power:
            return f"{num_bytes / (1 << 10 * power):.1f} {unit}"
    return f"{num_bytes} B"
