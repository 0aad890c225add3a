"""The reading of calls from a reply's text, which arrives in pieces of any size.

Each character is read once and in order, so that the deltas together do not depend on the pieces. Text that may still
become the begin of a call is held back until it is decided.
"""

from collections.abc import Callable, Iterable, Sequence
from enum import Enum, auto
from itertools import groupby
from typing import NamedTuple, Protocol

from manylora.server.tools.formats import Syntax, ToolFormat
from manylora.server.tools.json_calls import CallObject, MarkedCall
from manylora.server.tools.parameter_calls import ParameterCall
from manylora.server.tools.parameters import Steps, parameters_of
from manylora.server.tools.python_calls import BuiltInCall
from manylora.server.tools.tool import Tool


class CallStart(NamedTuple):
    """The begin of a call. Calls of a reply are numbered from 0."""

    call: int
    name: str


class CallArguments(NamedTuple):
    """The next part of the JSON of a call's arguments."""

    call: int
    text: str


Delta = str | CallStart | CallArguments
"""A part of a reply: a str is content."""


class Call(Protocol):
    """One call, read character by character.

    name         the tool's name, once it is read
    is_complete  whether the call has ended
    is_broken    whether the text is no call
    """

    name: str | None
    is_complete: bool
    is_broken: bool

    def push(self, character: str) -> None:
        """Take the next character of the call."""

    def end(self) -> None:
        """Note the end of the reply."""

    def take_arguments(self) -> str:
        """Return the JSON of the arguments that has been read since the last call."""


class _Phase(Enum):
    CONTENT = auto()  # a block of calls may begin
    OPENING = auto()  # behind a trigger
    CALL = auto()
    BEHIND = auto()  # behind a call, in its block
    REST = auto()  # no further call may begin: all is content
    NOTHING = auto()  # the reply's calls are complete, and further text is dropped


class ToolCallReader:
    """Reads one reply. Content before and between calls goes out without the white space around them.

    A block that is no call of a known tool is content, as the model wrote it.
    """

    def __init__(self, form: ToolFormat, tools: Sequence[Tool], *, has_one_call: bool = False) -> None:
        """With `has_one_call`, what follows the first call is dropped."""
        self._form = form
        self._names = {tool.name for tool in tools}
        self._makes = _maker(form, tools)
        self._has_one_call = has_one_call
        self._phase = _Phase.CONTENT
        self._held: list[str] = []  # CONTENT: white space; else all since the white space before the call
        self._word = ""  # CONTENT: the part of a trigger behind the white space
        self._closing = ""  # the part of the closer that has been read
        self._call: Call = CallObject(form.arguments)
        self._is_started = False  # the call under way has been told
        self._deltas: list[Delta] = []
        self.num_calls = 0

    def push(self, text: str) -> list[Delta]:
        """Take the next text and return what it decides."""
        for index, character in enumerate(text):
            if self._phase is _Phase.REST:
                self._tell(text[index:])
                break
            _STEPS[self._phase](self, character)
        return self._taken()

    def finish(self) -> list[Delta]:
        """Return what was held back, at the end of the reply."""
        if self._phase is _Phase.CALL:
            self._call.end()
            self._advance()
        if self._phase in (_Phase.CONTENT, _Phase.OPENING) or (self._phase is _Phase.CALL and not self._is_started):
            held = "".join(self._held) + self._word
            self._tell(held if held.strip() or not self.num_calls else "")
        self._phase = _Phase.NOTHING
        return self._taken()

    def _taken(self) -> list[Delta]:
        deltas, self._deltas = self._deltas, []
        return _joined(deltas)

    def _tell(self, text: str) -> None:
        if text:
            self._deltas.append(text)

    def _tell_arguments(self, text: str) -> None:
        if text:
            self._deltas.append(CallArguments(self.num_calls - 1, text))

    # ── one character in each phase ──────────────────────────────────────────────────────────────────────────────

    def _in_content(self, character: str) -> None:
        word = self._word + character
        start = self._start_of_trigger(word)
        before, self._word = word[:start], word[start:]
        if told := before.rstrip():
            if self._form.is_whole:
                self._word = word
                self._give_up(_Phase.REST)
                return
            self._tell("".join(self._held) + told)
            self._held = []
        if len(before) > len(told):
            self._held.append(before[len(told) :])
        if self._word in self._form.triggers:
            self._phase = _Phase.OPENING
            self._held.append(self._word)
            self._word = ""
            if character == "{":
                self._begin_call(character)

    def _start_of_trigger(self, word: str) -> int:
        """Return the offset in a word, one character longer than a part of a trigger, of the part at its end."""
        triggers = self._form.triggers
        starts = (start for start in range(len(word)) if any(each.startswith(word[start:]) for each in triggers))
        return next(starts, len(word))

    def _in_opening(self, character: str) -> None:
        self._held.append(character)
        if self._begins_call(character):
            self._begin_call(character)
        elif character == self._form.opener:
            self._closing = ""
        elif not character.isspace():
            self._give_up(_Phase.REST if self._form.is_whole else _Phase.CONTENT)

    def _begins_call(self, character: str) -> bool:
        """Return whether a call begins behind a trigger with a character."""
        match self._form.syntax:
            case Syntax.MARKED:
                return not character.isspace()
            case Syntax.PARAMETERS:
                return character == "<"
        return character == "{" or (bool(self._form.built_in) and not character.isspace())

    def _begin_call(self, character: str) -> None:
        self._phase = _Phase.CALL
        self._call = self._makes(character)
        self._is_started = False
        self._call.push(character)

    def _in_call(self, character: str) -> None:
        self._call.push(character)
        if not self._is_started:
            self._held.append(character)
        self._advance()

    def _advance(self) -> None:
        """Tell what the call under way has decided."""
        call = self._call
        if not self._is_started:
            is_known = call.name in self._names
            if call.is_broken or (call.name is not None and not is_known) or (call.is_complete and not is_known):
                self._give_up(_Phase.REST if self._form.is_whole else _Phase.CONTENT)
                return
            if is_known and call.name is not None:
                self._deltas.append(CallStart(self.num_calls, call.name))
                self.num_calls += 1
                self._is_started, self._held = True, []
        if self._is_started:
            self._tell_arguments(call.take_arguments())
        if call.is_complete or call.is_broken:
            self._closing = ""
            behind = _Phase.CONTENT if self._form.marks and not self._form.closer else _Phase.BEHIND
            self._phase = _Phase.NOTHING if self._has_one_call else behind

    def _behind_call(self, character: str) -> None:
        closer, closing = self._form.closer, self._closing + character
        if closer and closer.startswith(closing):
            self._closing = closing
            if closing == closer:
                self._held, self._phase = [], _Phase.CONTENT
        elif character == "{" and self._form.syntax is Syntax.OBJECT:
            self._held = [character]
            self._begin_call(character)
        elif not character.isspace() and character != self._form.separator:
            self._held = [self._closing, character]
            self._give_up(_Phase.REST if self._form.is_whole else _Phase.CONTENT)

    def _give_up(self, phase: _Phase) -> None:
        """Tell what was held back as content."""
        self._tell("".join(self._held) + self._word)
        self._held, self._word, self._phase = [], "", phase

    def _drop(self, character: str) -> None:
        """The reply's calls are complete."""


def _joined(deltas: Iterable[Delta]) -> list[Delta]:
    """Return deltas with one for each run of content, and of arguments of one call."""
    found = list[Delta]()
    for (kind, call), run in groupby(deltas, lambda each: (type(each), "" if isinstance(each, str) else each.call)):
        if kind is str:
            found.append("".join(each for each in run if isinstance(each, str)))
        elif kind is CallArguments:
            found.append(
                CallArguments(int(call), "".join(each.text for each in run if isinstance(each, CallArguments)))
            )
        else:
            found += run
    return found


def _maker(form: ToolFormat, tools: Sequence[Tool]) -> Callable[[str], Call]:
    """Return the function that makes the reader of a call from its first character."""
    if form.syntax is Syntax.MARKED:
        return lambda _: MarkedCall(form.marks)
    if form.syntax is Syntax.PARAMETERS:
        steps = Steps()
        values = {tool.name: {each.name: each.value for each in parameters_of(tool, steps)} for tool in tools}
        return lambda _: ParameterCall(values)
    built_in = [tool for tool in tools if form.is_built_in(tool)]
    names = [tool.name for tool in built_in if tool.name != form.code]
    code = next(((tool.name, next(iter(tool.properties))) for tool in built_in if tool.name == form.code), None)
    return lambda first: CallObject(form.arguments) if first == "{" or not built_in else BuiltInCall(names, code)


_STEPS = {
    _Phase.CONTENT: ToolCallReader._in_content,
    _Phase.OPENING: ToolCallReader._in_opening,
    _Phase.CALL: ToolCallReader._in_call,
    _Phase.BEHIND: ToolCallReader._behind_call,
    _Phase.NOTHING: ToolCallReader._drop,
}
