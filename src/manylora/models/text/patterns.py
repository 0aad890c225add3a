"""Regular expressions of requests in the spelling of the compiler, which reads some of their parts in another way."""

import re

_REPEATED = re.compile(r"\{[0-9]+(,[0-9]*)?\}")
_SET_OPERATORS = ("&&", "--", "~~")


def portable_pattern(pattern: str, *, is_of_schema: bool = False) -> str:
    """Return an expression that means to the compiler what it means to JSON Schema, or else to Python.

    In a class, the compiler reads `[` as a further class, and `&&`, `--` and `~~` as operations on classes; here they
    are characters.

    Raises: `ValueError` with the reason for classes of POSIX, possessive quantifiers, a backslash at the end, and in a
            schema a class that `]` follows at once, which is empty there and no end of the class elsewhere
    """
    found: list[str] = []
    index, is_quantified = 0, False  # whether a quantifier stands before
    while index < len(pattern):
        piece = _piece(pattern, index)
        if piece == "[":
            piece, written = _class(pattern, index, is_of_schema=is_of_schema)
            found.append(written)
        elif piece == "+" and is_quantified:
            raise ValueError(f"it has a possessive quantifier (`{pattern[max(0, index - 2) : index + 1]}`)")
        else:
            found.append(piece)
        is_quantified = not is_quantified and (piece in ("*", "+", "?") or _REPEATED.fullmatch(piece) is not None)
        index += len(piece)
    return "".join(found)


def _piece(pattern: str, index: int) -> str:
    """Return the escape, the quantifier, the head of a group or the character at an index."""
    if pattern[index] == "\\":
        if index + 1 == len(pattern):
            raise ValueError("it ends with a backslash")
        return pattern[index : index + 2]
    if repeated := _REPEATED.match(pattern, index):
        return repeated[0]
    return "(?" if pattern.startswith("(?", index) else pattern[index]


def _class(pattern: str, start: int, *, is_of_schema: bool) -> tuple[str, str]:
    """Return the class that begins at an index, as it stands and as the compiler reads it alike."""
    index = start + 2 if pattern.startswith("[^", start) else start + 1
    written = pattern[start:index]
    if pattern.startswith("]", index):
        if is_of_schema:
            raise ValueError("it has an empty class")
        written, index = written + "\\]", index + 1
    while index < len(pattern) and pattern[index] != "]":
        if pattern.startswith("[:", index):
            raise ValueError("it has a class of POSIX (`[:`); name its characters")
        piece = _piece(pattern, index)
        if pattern[index : index + 2] in _SET_OPERATORS:
            piece = pattern[index : index + 2]
            written += f"{piece[0]}\\{piece[1]}"
        elif len(piece) == 1 or piece[0] == "\\":
            written += "\\[" if piece == "[" else piece
        else:
            piece = piece[0]
            written += piece
        index += len(piece)
    return pattern[start : index + 1], written + pattern[index : index + 1]
