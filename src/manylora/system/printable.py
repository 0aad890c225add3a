r"""Conversion of foreign text (names, descriptions and messages of tenants, adapters or other servers) to visible text.

A terminal acts on control characters, some characters reorder or hide the text beside them, and a lone surrogate cannot
be encoded. Each of these is shown as its escape (`\x1b`, `\u202e`), so that two different texts look different. Markup
such as `[red]` is not touched: a line with foreign text is printed with markup off.
"""

import re
import unicodedata

_IGNORED = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff"
"""Default-ignorable code points (Unicode, DerivedCoreProperties) and the blank pattern of Braille, which
`str.isprintable` takes for visible."""
_INVISIBLE = re.compile(f"[{_IGNORED}]")
_NOT_PLAIN = re.compile("[^\n -~]")
"""All characters but ASCII's visible ones and line ends: only these few are examined one by one."""
MAX_QUOTED = 80
_MARKS = frozenset(("Mn", "Me"))
_MAX_MARKS = 4
"""Limit on combining marks on one letter. More of them cover the lines above and below."""
_OF_PROSE = frozenset("\n\t\u00a0\u200c\u200d\u202f\u3000\ufe0e\ufe0f")
"""Invisible characters that stay: line ends, and those of French, Persian, Indic and Japanese text and of emoji."""


def printable(text: object) -> str:
    """Return a text as one line in which every character is visible."""
    return _escaped(str(text), keeps=frozenset())


def quoted(text: str) -> str:
    """Return the beginning of a caller's text, at most `MAX_QUOTED` characters, for a message that quotes it."""
    return f"'{printable(text[:MAX_QUOTED])}'"


def printable_lines(text: object) -> str:
    """Return a text of several lines, such as an error with foreign text, as `printable` does, with its lines kept."""
    return _escaped(str(text), keeps=frozenset("\n"))


def printable_prose(text: str) -> str:
    """Return a model's reply for a terminal: lines, spaces and the joiners of scripts stay."""
    return _escaped(text, keeps=_OF_PROSE)


def printable_json(text: str) -> str:
    r"""Return a JSON document with the same meaning, with its invisible characters as JSON's own `\uXXXX`.

    Inside a string JSON allows no raw control character; outside, a tab or a carriage return becomes a space.
    """
    spaced = text.replace("\t", " ").replace("\r", " ")
    return _NOT_PLAIN.sub(lambda found: found[0] if _is_visible(found[0]) else _json_escape(found[0]), spaced)


def _escaped(text: str, *, keeps: frozenset[str]) -> str:
    if text.isascii() and text.isprintable():
        return text
    shown: list[str] = []
    num_marks = 0
    for letter in text:
        num_marks = num_marks + 1 if unicodedata.category(letter) in _MARKS else 0
        is_kept = letter in keeps or (_is_visible(letter) and num_marks <= _MAX_MARKS)
        shown.append(letter if is_kept else _escape(letter))
    return "".join(shown)


def _is_visible(letter: str) -> bool:
    return letter.isprintable() and _INVISIBLE.match(letter) is None


def _escape(letter: str) -> str:
    """Return the escape of a Python string: `\\n`, `\\x1b`, `\\u202e`, `\\U000e0001`."""
    return letter.encode("unicode_escape").decode("ascii")


def _json_escape(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[place : place + 2].hex()}" for place in range(0, len(units), 2))
