"""Matching modules against `rank_pattern` and `alpha_pattern` as PEFT does, without its exposure to hostile ones."""

import re

MAX_PATTERNS = 4_096
MAX_PATTERN_CHARACTERS = 256
MAX_WAYS = 4_096
MAX_WAYS_TOGETHER = 65_536
_REPEAT_WAYS = 32  # a repeat can end anywhere in a module's name, which has about this many characters

_CLASS_OR_ESCAPE = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_AMBIGUOUS_SETS = ("[[", "[^[", "--", "&&", "||", "~~")


class PatternRefused(ValueError):
    """A pattern is not a regular expression, or could take too long to match; the text says which."""


class Patterns:
    """The keys of one pattern table, compiled once.

    Semantics: a module's key is the first, in the table's order, for which `re.match(rf"(.*\\.)?({key})$", module)`.
    """

    def __init__(self, keys: list[str]) -> None:
        """Raises `PatternRefused` for a table whose matching could not be bounded.

        The bound: a backtracking matcher tries at most every way through the branches of all groups times every end
        of each repeat; nested repeats and references back, where that product is not a bound, are refused.
        """
        if len(keys) > MAX_PATTERNS:
            raise PatternRefused(f"{len(keys)} patterns, over {MAX_PATTERNS}")
        if sum(_ways(key) for key in keys) > MAX_WAYS_TOGETHER:
            raise PatternRefused("patterns that are too complex together")
        self._compiled = [(key, _compile(key)) for key in keys]

    def first_match(self, module: str) -> str | None:
        """The key that governs `module`, or None."""
        return next((key for key, pattern in self._compiled if pattern.match(module)), None)


def _compile(key: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise PatternRefused("a pattern is not a regular expression") from error


def _ways(key: str) -> int:
    """How many ways a backtracking matcher has through `key`, at most."""
    if len(key) > MAX_PATTERN_CHARACTERS:
        raise PatternRefused(f"a pattern has {len(key)} characters, over {MAX_PATTERN_CHARACTERS}")
    if re.search(r"\\[1-9]|\(\?(?!:)", key) or any(mark in key for mark in _AMBIGUOUS_SETS):
        raise PatternRefused("a pattern uses a back reference, a special group or an ambiguous set")
    bare = _CLASS_OR_ESCAPE.sub("_", key).replace("(?:", "(")
    if re.search(r"\)[*+?{]", bare):
        raise PatternRefused("a pattern repeats a group")
    ways = _branch_ways(bare)
    for mark in re.findall(r"[*+?{]", bare):
        ways *= 2 if mark == "?" else _REPEAT_WAYS
    if ways > MAX_WAYS:
        raise PatternRefused("a pattern that is too complex")
    return ways


def _branch_ways(bare: str) -> int:
    ways, open_groups = 1, [1]
    for character in bare:
        if character == "(":
            open_groups.append(1)
        elif character == "|":
            open_groups[-1] += 1
        elif character == ")" and len(open_groups) > 1:
            ways *= open_groups.pop()
    for branches in open_groups:
        ways *= branches
    return ways
