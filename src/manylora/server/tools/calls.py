"""The reading of calls from a reply's text, which arrives in pieces of any size.

Each character is read once and in order, so that the deltas together do not depend on the pieces. Text that may still
become the begin of a call is held back until it is decided.
"""

import json
from collections.abc import Collection
from enum import Enum, auto
from typing import NamedTuple

from manylora.server.tools.formats import ToolFormat

MAX_NAME = 256
"""Characters of a name or of an id in a call, more than any has."""


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

    def __init__(self, form: ToolFormat, names: Collection[str], *, has_one_call: bool = False) -> None:
        """`names` are those of the tools; with `has_one_call`, what follows the first call is dropped."""
        self._form = form
        self._names = names
        self._has_one_call = has_one_call
        self._longest = max(map(len, form.triggers))
        self._phase = _Phase.CONTENT
        self._held = ""  # CONTENT: white space and a part of a trigger; else all since the white space before the call
        self._closing = ""  # the part of the closer that has been read
        self._call = self._new_call()
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
        if self._phase in (_Phase.CONTENT, _Phase.OPENING) or (self._phase is _Phase.CALL and not self._is_started):
            self._tell(self._held if self._held.strip() or not self.num_calls else "")
        self._phase = _Phase.NOTHING
        return self._taken()

    def _taken(self) -> list[Delta]:
        deltas, self._deltas = self._deltas, []
        return deltas

    def _tell(self, text: str) -> None:
        """Add content, or arguments of the call under way, to the last delta of the same kind."""
        if text:
            last = self._deltas[-1] if self._deltas else None
            if isinstance(last, str):
                self._deltas[-1] = last + text
            else:
                self._deltas.append(text)

    def _tell_arguments(self, text: str) -> None:
        if text:
            last = self._deltas[-1] if self._deltas else None
            if isinstance(last, CallArguments):
                self._deltas[-1] = last._replace(text=last.text + text)
            else:
                self._deltas.append(CallArguments(self.num_calls - 1, text))

    # ── one character in each phase ──────────────────────────────────────────────────────────────────────────────

    def _in_content(self, character: str) -> None:
        self._held += character
        start = self._start_of_trigger()
        word = self._held[start:].lstrip()
        if self._form.is_whole and start > 0:
            self._give_up(_Phase.REST)
            return
        self._tell(self._held[:start])
        self._held = self._held[start:]
        if word in self._form.triggers:
            self._phase = _Phase.OPENING
            if word == "{":
                self._begin_call(character)

    def _start_of_trigger(self) -> int:
        """Return the offset in the held text from which white space and a part of a trigger go to its end."""
        held = self._held
        start = len(held)
        for length in range(min(self._longest, len(held)), 0, -1):
            if any(trigger.startswith(held[-length:]) for trigger in self._form.triggers):
                start = len(held) - length
                break
        while start > 0 and held[start - 1].isspace():
            start -= 1
        return start

    def _in_opening(self, character: str) -> None:
        self._held += character
        if character == "{" or (self._form.marks and not character.isspace()):
            self._begin_call(character)
        elif character == self._form.opener:
            self._closing = ""
        elif not character.isspace():
            self._give_up(_Phase.REST if self._form.is_whole else _Phase.CONTENT)

    def _new_call(self) -> "CallObject | MarkedCall":
        return MarkedCall(self._form.marks) if self._form.marks else CallObject(self._form.arguments)

    def _begin_call(self, character: str) -> None:
        self._phase = _Phase.CALL
        self._call = self._new_call()
        self._is_started = False
        self._call.push(character)

    def _in_call(self, character: str) -> None:
        call = self._call
        call.push(character)
        if not self._is_started:
            self._held += character
            is_known = call.name in self._names
            if call.is_broken or (call.name is not None and not is_known) or (call.is_complete and not is_known):
                self._give_up(_Phase.REST if self._form.is_whole else _Phase.CONTENT)
                return
            if is_known and call.name is not None:
                self._deltas.append(CallStart(self.num_calls, call.name))
                self.num_calls += 1
                self._is_started, self._held = True, ""
        if self._is_started:
            self._tell_arguments(call.take_arguments())
        if call.is_complete or call.is_broken:
            self._closing = ""
            behind = _Phase.CONTENT if self._form.marks else _Phase.BEHIND
            self._phase = _Phase.NOTHING if self._has_one_call else behind

    def _behind_call(self, character: str) -> None:
        closer, closing = self._form.closer, self._closing + character
        if closer and closer.startswith(closing):
            self._closing = closing
            if closing == closer:
                self._held, self._phase = "", _Phase.CONTENT
        elif character == "{":
            self._held = character
            self._begin_call(character)
        elif not character.isspace() and character != self._form.separator:
            self._held = self._closing + character
            self._give_up(_Phase.REST if self._form.is_whole else _Phase.CONTENT)

    def _give_up(self, phase: _Phase) -> None:
        """Tell what was held back as content."""
        self._tell(self._held)
        self._held, self._phase = "", phase

    def _drop(self, character: str) -> None:
        """The reply's calls are complete."""


_STEPS = {
    _Phase.CONTENT: ToolCallReader._in_content,
    _Phase.OPENING: ToolCallReader._in_opening,
    _Phase.CALL: ToolCallReader._in_call,
    _Phase.BEHIND: ToolCallReader._behind_call,
    _Phase.NOTHING: ToolCallReader._drop,
}


class _At(Enum):
    """The place in a call's object."""

    OPEN = auto()
    KEY = auto()
    IN_KEY = auto()
    COLON = auto()
    VALUE = auto()
    NEXT = auto()


class CallObject:
    """The JSON object of one call, read character by character.

    name         the tool's name, once it is read
    is_complete  whether the object has ended
    is_broken    whether the text is no such object
    """

    def __init__(self, arguments: str) -> None:
        self.name: str | None = None
        self.is_complete = False
        self.is_broken = False
        self._arguments = arguments
        self._at = _At.OPEN
        self._key = ""
        self._value = JsonValue()
        self._out: list[str] = []
        self._has_arguments = False

    def take_arguments(self) -> str:
        """Return the JSON of the arguments that has been read since the last call."""
        found, self._out = "".join(self._out), []
        return found

    def push(self, character: str) -> None:
        """Take the next character of the object."""
        if self._at in (_At.IN_KEY, _At.VALUE):
            self._in_value(character)
        elif not character.isspace():
            self._between(character)

    def _between(self, character: str) -> None:
        match self._at, character:
            case _At.OPEN, "{":
                self._at = _At.KEY
            case _At.KEY, '"':
                self._at, self._value = _At.IN_KEY, JsonValue()
                self._value.push(character)
            case _At.COLON, ":":
                self._at, self._value = _At.VALUE, JsonValue()
            case _At.NEXT, ",":
                self._at = _At.KEY
            case ((_At.NEXT | _At.KEY), "}"):
                self.is_complete = True
                if not self._has_arguments:
                    self._out.append("{}")
            case _:
                self.is_broken = True

    def _in_value(self, character: str) -> None:
        value = self._value
        taken = value.push(character)
        if self._is_of_arguments and value.is_container and taken:
            self._out.append(character)
        if not value.is_over:
            return
        if self._at is _At.IN_KEY:
            self._key, self._at = str(self._loaded(value)), _At.COLON
            return
        self._note(value)
        self._at = _At.NEXT
        if not taken:
            self.push(character)

    @property
    def _is_of_arguments(self) -> bool:
        """Return whether the value under way has the arguments: the first with one of the two keys in use."""
        return self._at is _At.VALUE and not self._has_arguments and self._key in (self._arguments, "arguments")

    def _note(self, value: "JsonValue") -> None:
        if self._is_of_arguments:
            if not value.is_container:
                loaded = self._loaded(value)
                self._out.append(loaded if isinstance(loaded, str) and loaded else "{}")
            self._has_arguments = True
        elif self._key == "name" and self.name is None:
            loaded = self._loaded(value)
            self.name = loaded if isinstance(loaded, str) else ""

    def _loaded(self, value: "JsonValue") -> object:
        """Return a string or a scalar; None for text that is no JSON, which breaks the object."""
        try:
            loaded: object = json.loads(value.text)
        except ValueError:
            self.is_broken = True
            return None
        return loaded


class MarkedCall:
    """A call of a name, marks and an object of arguments, read character by character. It is as a `CallObject`."""

    def __init__(self, marks: tuple[str, ...]) -> None:
        """`marks` are those between the name and the arguments; the text behind one that is not the last is an id."""
        self.name: str | None = None
        self.is_complete = False
        self.is_broken = False
        self._marks = marks
        self._text = ""  # since the mark before
        self._value = JsonValue()
        self._out: list[str] = []

    def take_arguments(self) -> str:
        """Return the JSON of the arguments that has been read since the last call."""
        found, self._out = "".join(self._out), []
        return found

    def push(self, character: str) -> None:
        """Take the next character of the call."""
        if self._marks:
            self._in_words(character)
            return
        taken = self._value.push(character)
        if taken and self._value.is_container:
            self._out.append(character)
        elif not character.isspace():
            self.is_broken = True
        self.is_complete = self._value.is_over

    def _in_words(self, character: str) -> None:
        self._text += character
        mark = self._marks[0]
        word, _, rest = self._text.partition(mark[0])
        if len(word) > MAX_NAME or (rest and not mark.startswith(mark[0] + rest)):
            self.is_broken = True
        elif self._text.endswith(mark):
            if self.name is None:
                self.name = word.strip()
            self._marks, self._text = self._marks[1:], ""


class JsonValue:
    """The extent of one JSON value, found character by character. Containers are not kept as text.

    is_container  whether it is an object or an array
    is_over       whether it has ended
    """

    def __init__(self) -> None:
        self.is_container = False
        self.is_over = False
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False
        self._text: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._text)

    def push(self, character: str) -> bool:
        """Take the next character; return False for one that is no part of the value."""
        if not self._text and not self.is_container:
            return self._begin(character)
        if self._is_in_string:
            self._in_string(character)
        elif self.is_container:
            self._in_container(character)
        elif character in ",}]" or character.isspace():
            self.is_over = True
            return False
        if not self.is_container:
            self._text.append(character)
        return True

    def _begin(self, character: str) -> bool:
        if character.isspace():
            return False
        if character in "{[":
            self.is_container, self._depth = True, 1
            return True
        self._is_in_string = character == '"'
        self._text.append(character)
        return True

    def _in_string(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        elif character == '"':
            self._is_in_string = False
            self.is_over = self._depth == 0

    def _in_container(self, character: str) -> None:
        if character == '"':
            self._is_in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self.is_over = self._depth == 0
