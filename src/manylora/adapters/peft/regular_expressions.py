"""Matching of a config's regular expressions without backtracking, in time bounded by their size.

Python's own parser parses an expression, so that it means the same as in PEFT; the expression is never compiled. A node
maps a start to the ends it can reach, in the order in which a backtracking matcher tries them. Each (node, start) is
computed once.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from re import _parser  # type: ignore[attr-defined]  # the stubs of `re` leave it out
from typing import Any

from manylora.adapters.peft.patterns import PatternRefused

MAX_CHARACTERS = 65_536
MAX_DEPTH = 24
MAX_STEPS = 1_000_000
"""Limit on the steps of one expression over all modules that it is matched against, its compilation included."""
MAX_TEXT_CHARACTERS = 96
"""Longest text that is matched; no module's path is as long. A repeat recurses once for each character."""

Ends = tuple[int, ...]
_Node = Callable[["_Run", int], Ends]
_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_DIGITS = frozenset("0123456789")
_SPACES = frozenset(" \t\n\r\f\v")
_CATEGORIES = {
    "CATEGORY_DIGIT": (_DIGITS, True),
    "CATEGORY_NOT_DIGIT": (_DIGITS, False),
    "CATEGORY_SPACE": (_SPACES, True),
    "CATEGORY_NOT_SPACE": (_SPACES, False),
    "CATEGORY_WORD": (_WORD, True),
    "CATEGORY_NOT_WORD": (_WORD, False),
}


class Regular:
    """One regular expression, matched against ASCII texts of at most `MAX_TEXT_CHARACTERS`; others never match."""

    def __init__(self, pattern: str) -> None:
        """Parse the pattern.

        Raises `PatternRefused` if it is no expression, or if it uses an unbounded feature such as a reference back.
        """
        if len(pattern) > MAX_CHARACTERS:
            raise PatternRefused(f"a pattern has {len(pattern)} characters, over {MAX_CHARACTERS}")
        try:
            parsed = _parser.parse(pattern)
        except (re.error, RecursionError, OverflowError, ValueError) as error:
            raise PatternRefused("a pattern is not a regular expression") from error
        if parsed.state.flags & ~re.UNICODE:
            raise PatternRefused("a pattern sets flags")
        self._node = _sequence(list(parsed), 0)
        self._steps = 0

    def matches_whole(self, text: str) -> bool:
        """Return whether the expression matches the whole text, as `re.fullmatch` does."""
        return len(text) in self.ends(text, 0)

    def matches_start(self, text: str) -> bool:
        """Return whether the expression matches a beginning of the text, as `re.match` does."""
        return bool(self.ends(text, 0))

    def ends(self, text: str, start: int) -> Ends:
        """Yield the ends of the matches that begin at `start`, in the order in which a backtracking matcher finds them.

        Raises `PatternRefused` when all matches together have taken more than `MAX_STEPS`.
        """
        if len(text) > MAX_TEXT_CHARACTERS or not text.isascii():
            return ()
        run = _Run(text, MAX_STEPS - self._steps)
        try:
            return self._node(run, start)
        except RecursionError as error:
            raise PatternRefused("a pattern nests too deeply") from error
        finally:
            self._steps = MAX_STEPS - run.left


class _Run:
    """The match of one text: its results so far, and the number of steps it may still take."""

    def __init__(self, text: str, left: int) -> None:
        self.text = text
        self.left = left
        self._known: dict[tuple[object, ...], Ends] = {}

    def step(self) -> None:
        self.left -= 1
        if self.left <= 0:
            raise PatternRefused("a pattern takes too long to match")

    def once(self, key: tuple[object, ...], found: Callable[[], Ends]) -> Ends:
        ends = self._known.get(key)
        if ends is None:
            self.step()
            ends = self._known[key] = found()
        return ends


def _unique(ends: Iterable[int]) -> Ends:
    return tuple(dict.fromkeys(ends))


def _sequence(items: list[Any], depth: int) -> _Node:
    """Compile items that stand one after the other; adjacent characters become one node."""
    if depth > MAX_DEPTH:
        raise PatternRefused(f"a pattern nests more than {MAX_DEPTH} groups")
    nodes: list[_Node] = []
    letters: list[str] = []
    for operation, argument in items:
        if str(operation) == "LITERAL":
            letters.append(chr(argument))
            continue
        if letters:
            nodes.append(_literal("".join(letters)))
            letters.clear()
        nodes.append(_item(str(operation), argument, depth))
    if letters:
        nodes.append(_literal("".join(letters)))
    if len(nodes) == 1:
        return nodes[0]

    def match(run: _Run, at: int) -> Ends:
        reached: Ends = (at,)
        for node in nodes:
            reached = _unique(end for start in reached for end in node(run, start))
            if not reached:
                break
        return reached

    return _remembered(match)


def _remembered(match: _Node) -> _Node:
    return lambda run, at: run.once((match, at), lambda: match(run, at))


def _literal(letters: str) -> _Node:
    def match(run: _Run, at: int) -> Ends:
        run.step()
        return (at + len(letters),) if run.text.startswith(letters, at) else ()

    return match


def _item(operation: str, argument: Any, depth: int) -> _Node:  # nested tuples of the parser
    match operation:
        case "NOT_LITERAL":
            return _one(lambda letter: letter != chr(argument))
        case "ANY":
            return _one(lambda letter: letter != "\n")
        case "IN":
            return _one(_letter_set(argument))
        case "AT":
            return _at(str(argument))
        case "BRANCH":
            return _branch([_sequence(list(branch), depth + 1) for branch in argument[1]])
        case "SUBPATTERN":
            _, added, removed, items = argument
            if added or removed:
                raise PatternRefused("a pattern sets flags")
            return _sequence(list(items), depth + 1)
        case "MAX_REPEAT" | "MIN_REPEAT":
            least, most, items = argument
            return _repeat(_sequence(list(items), depth + 1), least, int(most), is_greedy=operation == "MAX_REPEAT")
        case "ASSERT" | "ASSERT_NOT":
            direction, items = argument
            return _look(_sequence(list(items), depth + 1), is_ahead=direction > 0, is_wanted=operation == "ASSERT")
        case _:
            raise PatternRefused("a pattern uses a reference back, an atomic group or another special group")


def _one(has: Callable[[str], bool]) -> _Node:
    def match(run: _Run, at: int) -> Ends:
        run.step()
        return (at + 1,) if at < len(run.text) and has(run.text[at]) else ()

    return match


def _letter_set(items: list[Any]) -> Callable[[str], bool]:  # a tuple of the parser
    """Return a set of characters as the ASCII characters in it. A text has no others."""
    is_wanted = True
    letters: set[str] = set()
    for operation, argument in items:
        match str(operation):
            case "NEGATE":
                is_wanted = False
            case "LITERAL":
                letters.add(chr(argument))
            case "RANGE":
                letters.update(map(chr, range(argument[0], min(argument[1], 127) + 1)))
            case "CATEGORY":
                members, is_in = _CATEGORIES[str(argument)]
                letters.update(members if is_in else {chr(code) for code in range(128)} - members)
            case _:
                raise PatternRefused("a pattern uses an unknown set")
    chosen = frozenset(letters)
    return lambda letter: (letter in chosen) is is_wanted


def _at(where: str) -> _Node:
    def holds(text: str, at: int) -> bool:
        match where:
            case "AT_BEGINNING" | "AT_BEGINNING_STRING":
                return at == 0
            case "AT_END":
                return at == len(text) or (at == len(text) - 1 and text[at] == "\n")
            case "AT_END_STRING":
                return at == len(text)
            case "AT_BOUNDARY" | "AT_NON_BOUNDARY":
                before, after = at > 0 and text[at - 1] in _WORD, at < len(text) and text[at] in _WORD
                return bool(text) and (before != after) is (where == "AT_BOUNDARY")
            case _:
                raise PatternRefused("a pattern uses an unknown anchor")

    def match(run: _Run, at: int) -> Ends:
        run.step()
        return (at,) if holds(run.text, at) else ()

    return match


def _branch(branches: list[_Node]) -> _Node:
    return _remembered(lambda run, at: _unique(end for branch in branches for end in branch(run, at)))


def _repeat(body: _Node, least: int, most: int, *, is_greedy: bool) -> _Node:
    """Compile a repeat of `least` to `most` bodies. An empty body counts for all that are still lacking."""

    def tried(run: _Run, at: int, done: int) -> Iterator[int]:
        has_enough = done >= least
        if has_enough and not is_greedy:
            yield at
        if done < most:
            for end in body(run, at):
                if end != at:
                    yield from match(run, end, done + 1 if done < least or most < 1 << 31 else least)
                elif has_enough:
                    yield at
                else:
                    yield from match(run, at, least)
        if has_enough and is_greedy:
            yield at

    def match(run: _Run, at: int, done: int) -> Ends:
        return run.once((match, at, done), lambda: _unique(tried(run, at, done)))

    return lambda run, at: match(run, at, 0)


def _look(inner: _Node, *, is_ahead: bool, is_wanted: bool) -> _Node:
    """Compile a look ahead, or a look behind: some start exists from which `inner` ends here."""

    def match(run: _Run, at: int) -> Ends:
        found = bool(inner(run, at)) if is_ahead else any(at in inner(run, start) for start in range(at, -1, -1))
        return (at,) if found is is_wanted else ()

    return _remembered(match)
