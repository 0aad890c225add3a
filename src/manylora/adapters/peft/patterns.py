"""Matching of modules against `rank_pattern` and `alpha_pattern` as PEFT does, with a bound on the time it takes."""

import re

MAX_PATTERNS = 4_096
MAX_PATTERN_CHARACTERS = 256
MAX_CHARACTERS_TOGETHER = 65_536
MAX_REGEX_CHARACTERS_TOGETHER = 2_048
"""Limit on the total length of the keys that are compiled. Compiling takes about ten microseconds a character."""
MAX_WAYS = 4_096
MAX_WAYS_TOGETHER = 8_192
MAX_FORMS = 256
_REPEAT_WAYS = 32  # a repeat can end anywhere in a module's name, which has about this many characters

_CLASS_OR_ESCAPE = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_AMBIGUOUS_SETS = ("[[", "[^[", "--", "&&", "||", "~~")
_NAME = re.compile(r"(\^?)((?:[A-Za-z0-9_.-]|\\\.)+)\$?", re.ASCII)
_ANY = "\n"  # stands for a dot of a key, which matches any character; no module's name has one


class PatternRefused(ValueError):
    """An error for a pattern that is no regular expression or could take too long to match; the text says which."""


class Patterns:
    """The keys of one pattern table, compiled once.

    Semantics: a module's key is the first, in the table's order, for which `re.match(rf"(.*\\.)?({key})$", module)`.
    Keys that are names, as training tools write them (one a module, a thousand for a large base), are looked up; the
    others are regular expressions.
    """

    def __init__(self, keys: list[str]) -> None:
        """Compile the keys. Raises `PatternRefused` for a table whose matching has no bound.

        A backtracking matcher tries at most every way through the branches of all groups times every end of each
        repeat. That product is no bound for nested repeats and references back, so they are refused.
        """
        if len(keys) > MAX_PATTERNS:
            raise PatternRefused(f"{len(keys)} patterns, over {MAX_PATTERNS}")
        if sum(map(len, keys)) > MAX_CHARACTERS_TOGETHER:
            raise PatternRefused("patterns that are too long together")
        self._keys = keys
        self._names = _PlainKeys()
        regexes = [(place, key) for place, key in enumerate(keys) if not self._names.take(place, key)]
        if sum(len(key) for _, key in regexes) > MAX_REGEX_CHARACTERS_TOGETHER:
            raise PatternRefused("patterns that are too long together")
        if self._names.num_forms > MAX_FORMS or sum(_ways(key) for _, key in regexes) > MAX_WAYS_TOGETHER:
            raise PatternRefused("patterns that are too complex together")
        self._compiled = [(place, _compile(key)) for place, key in regexes]

    def first_match(self, module: str) -> str | None:
        """Return the key that applies to `module`, or None."""
        first = self._names.first_place(module)
        for place, pattern in self._compiled:
            if first is not None and place > first:
                break
            if pattern.match(module):
                first = place
                break
        return None if first is None else self._keys[first]


class _PlainKeys:
    """Keys without any operator but the dot, found by the ends of a module's name instead of one after another.

    A dot matches any character. The keys are sorted by their form: their length and the places of their dots. An end of
    a module's name matches a key if the end, with its characters at the dots of some form replaced by a mark, is in the
    table.
    """

    def __init__(self) -> None:
        self._places: tuple[dict[str, int], dict[str, int]] = ({}, {})  # of keys for an end, of keys for a whole name
        self._forms: dict[int, set[tuple[int, ...]]] = {}  # length → where the dots are

    @property
    def num_forms(self) -> int:
        return sum(len(forms) for forms in self._forms.values())

    def take(self, place: int, key: str) -> bool:
        """Take over the key at this place of the table. Return False if it is not a plain name."""
        match = _NAME.fullmatch(key)
        if match is None or len(key) > MAX_PATTERN_CHARACTERS:
            return False
        text = re.sub(r"\\?\.", lambda dot: "." if dot[0] == r"\." else _ANY, match[2])
        self._places[bool(match[1])].setdefault(text, place)
        self._forms.setdefault(len(text), set()).add(tuple(at for at, char in enumerate(text) if char == _ANY))
        return True

    def first_place(self, module: str) -> int | None:
        """Return the place of the first key that matches, or None."""
        found = [
            place
            for start in (0, *(dot.end() for dot in re.finditer(r"\.", module)))
            for end in self._blotted(module[start:])
            for places in (self._places if start == 0 else self._places[:1])
            if (place := places.get(end)) is not None
        ]
        return min(found, default=None)

    def _blotted(self, end: str) -> list[str]:
        return [
            "".join(_ANY if at in dots else char for at, char in enumerate(end)) if dots else end
            for dots in self._forms.get(len(end), ())
        ]


def _compile(key: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise PatternRefused("a pattern is not a regular expression") from error


def _ways(key: str) -> int:
    """Return a bound on the ways that a backtracking matcher has through `key`."""
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
