"""Patterns of JSON Schema as terminals of a grammar, which match whole texts."""

from collections.abc import Iterator

_CLASSES = {"d": "0-9", "w": "A-Za-z0-9_"}
"""Classes that are those of ASCII in JSON Schema."""
_ANY = r"(.|\n)*"


def terminal_of_pattern(pattern: str) -> str:
    """Return the terminal of the texts in which a pattern is found.

    Raises: `ValueError` for an empty pattern, and for parts that have no place in a terminal, with the reason
    """
    if not pattern:
        raise ValueError("that is empty or no string")
    pieces = list(_pieces(pattern))
    is_begun, is_ended = pieces[0] == "^", len(pieces) > 1 and pieces[-1] == "$"
    inner = pieces[is_begun : len(pieces) - is_ended]
    if _has_outside("^", inner) or _has_outside("$", inner):
        raise ValueError("with `^` or `$` inside")
    if (is_begun or is_ended) and _has_outside("|", inner, is_in_groups=False):
        raise ValueError("with `^` or `$` in one of several alternatives")
    text = "".join(inner)
    if any(not rest.startswith(":") for rest in text.split("(?")[1:]):
        raise ValueError("with a group of a special kind")
    return f"/{'' if is_begun else _ANY}({text}){'' if is_ended else _ANY}/"


def _pieces(pattern: str) -> Iterator[str]:
    """Yield the characters, escapes and classes of a pattern in the spelling of a terminal."""
    rest = iter(enumerate(pattern))
    is_in_class = False
    for index, character in rest:
        if character == "\\":
            _, escaped = next(rest, (0, ""))
            yield _escape(escaped, is_in_class=is_in_class)
        elif is_in_class:
            is_in_class = character != "]"
            yield _spelled(character) if character != "^" or pattern[index - 1] == "[" else "\\^"
        else:
            is_in_class = character == "["
            yield _spelled(character)


def _escape(escaped: str, *, is_in_class: bool) -> str:
    if not escaped or escaped in "bBAzZ123456789kpPuxc":
        raise ValueError(f"with `\\{escaped}`")
    if (lower := escaped.lower()) in _CLASSES:
        if escaped == lower:
            return _CLASSES[lower] if is_in_class else f"[{_CLASSES[lower]}]"
        if is_in_class:
            raise ValueError(f"with `\\{escaped}` in a class")
        return f"[^{_CLASSES[lower]}]"
    return f"\\{escaped}"


def _spelled(character: str) -> str:
    return {"/": "\\/", "\n": "\\n", "\r": "\\r"}.get(character, character)


def _has_outside(wanted: str, pieces: list[str], *, is_in_groups: bool = True) -> bool:
    """Return whether a character stands outside every class, and outside every group if those do not count."""
    depth, is_in_class = 0, False
    for piece in pieces:
        if is_in_class:
            is_in_class = piece != "]"
        elif piece == wanted and (is_in_groups or depth == 0):
            return True
        elif piece == "[":
            is_in_class = True
        elif piece in ("(", ")"):
            depth += 1 if piece == "(" else -1
    return False
