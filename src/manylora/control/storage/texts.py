"""Texts from clients: a check that every database stores them, and their form in error messages."""

MAX_SHOWN = 80


def is_storable(text: str) -> bool:
    """Return whether every database stores a text: it has neither NUL nor half a character (a lone surrogate)."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def shown(text: str) -> str:
    """Return a text for an error message: escaped, at most `MAX_SHOWN` characters."""
    return text.encode("unicode_escape").decode()[:MAX_SHOWN]
