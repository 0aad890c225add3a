"""Patterns as terminals: a terminal matches the whole texts in which its pattern is found."""

import re

import pytest

from manylora.server.tools.patterns import terminal_of_pattern

TEXTS = ["", "a", "ab", "xaby", "a/b", "a\nb", "12", "x12y", "a-b", "a^b", "]", "[a]", "$1", "aa|b", "\\d", "_"]
PATTERNS = [
    *(
        "a",
        "^a",
        "b$",
        "^ab$",
        "a|b",
        "x?",
        r"\d+",
        r"^\w$",
        r"^[\w-]+$",
        r"[^\d]",
        r"\D",
        r"^\W$",
        "a/b",
    ),
    *("[/]", "a\nb", "^(a|b)+$", r"\$1", r"\^", "[$]", "[^a]", "[a^]", r"\|", "[|]", "(?:ab)+", r"\\d", r"[\]]", "."),
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_terminal_matches_the_texts_that_have_the_pattern(pattern: str) -> None:
    terminal = terminal_of_pattern(pattern)
    assert terminal[0] == terminal[-1] == "/"
    assert "\n" not in terminal
    assert not re.search(r"(?<!\\)/", terminal[1:-1])
    for text in TEXTS:
        expected = re.search(pattern, text, re.ASCII) is not None and not (
            pattern.endswith("$") and text.endswith("\n")
        )
        assert (re.fullmatch(terminal[1:-1], text) is not None) == expected, text
