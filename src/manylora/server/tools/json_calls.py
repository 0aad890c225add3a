"""Calls whose arguments are JSON, read character by character: an object with a name, or a name and marks."""

import json
from enum import Enum, auto

MAX_NAME = 256
"""Characters of a name or of an id in a call, more than any has."""


def json_text(text: str) -> str:
    """Return a text as it stands within a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


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

    def end(self) -> None:
        """Note the end of the reply."""

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

    def end(self) -> None:
        """Note the end of the reply."""

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

    @property
    def is_in_string(self) -> bool:
        """The place of the next character: true in a string, up to its end."""
        return self._is_in_string and not self.is_over

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
