"""Calls of tags, as Qwen3-Coder writes them, read character by character, as JSON."""

from collections.abc import Mapping
from enum import Enum, auto

from manylora.server.tools.json_calls import MAX_NAME, JsonValue, json_text
from manylora.server.tools.parameters import CLOSER, ScalarBegin, Value, is_scalar

HEAD, PARAMETER, END = "<function=", "<parameter=", "</function>"
_CLOSERS = (CLOSER, "\n" + CLOSER)
"""The ends of a value outside strings of JSON. The line end in front of the tag is no part of the value."""
_ANY_TEXT = Value((r"/(.|\n)*/",), frozenset(), None)


class _Place(Enum):
    """The part of a call under way."""

    HEAD = auto()
    NAME = auto()
    BETWEEN = auto()
    KEY = auto()
    LEAD = auto()  # before the line end that leads a value
    VALUE = auto()


class ParameterCall:
    """One call.

    name         the tool's name, once it is read
    is_complete  whether the call has ended
    is_broken    whether the text is no such call
    """

    def __init__(self, values: Mapping[str, Mapping[str, Value]]) -> None:
        """Take the values of the parameters of each tool."""
        self.name: str | None = None
        self.is_complete = False
        self.is_broken = False
        self._values = values
        self._place = _Place.HEAD
        self._text = ""  # of a tag, of a name, or of a part that may end a value
        self._value = _ValueText(_ANY_TEXT)
        self._num_keys = 0
        self._out: list[str] = []

    def take_arguments(self) -> str:
        """Return the JSON of the arguments that has been read since the last call."""
        found, self._out = "".join(self._out), []
        return found

    def push(self, character: str) -> None:
        """Take the next character of the call."""
        match self._place:
            case _Place.HEAD | _Place.BETWEEN:
                self._in_tag(character)
            case _Place.NAME | _Place.KEY:
                self._in_name(character)
            case _Place.LEAD:
                self._place = _Place.VALUE
                if character != "\n":
                    self._in_value(character)
            case _Place.VALUE:
                self._in_value(character)

    def end(self) -> None:
        """Note the end of the reply."""

    def _in_tag(self, character: str) -> None:
        if not self._text and character.isspace():
            return
        self._text += character
        tags = {HEAD: _Place.NAME} if self._place is _Place.HEAD else {PARAMETER: _Place.KEY, END: None}
        if self._text == END and END in tags:
            self.is_complete = True
            self._out.append("}" if self._num_keys else "{}")
        elif (place := tags.get(self._text)) is not None:
            self._place, self._text = place, ""
        elif not any(tag.startswith(self._text) for tag in tags):
            self.is_broken = True

    def _in_name(self, character: str) -> None:
        if character != ">":
            self._text += character
            self.is_broken = len(self._text) > MAX_NAME
            return
        name, self._text = self._text.strip(), ""
        if self._place is _Place.NAME:
            self.name, self._place = name, _Place.BETWEEN
            return
        self._out.append((", " if self._num_keys else "{") + f'"{json_text(name)}": ')
        self._num_keys += 1
        self._value = _ValueText(self._values.get(self.name or "", {}).get(name, _ANY_TEXT))
        self._place = _Place.LEAD

    def _in_value(self, character: str) -> None:
        self._text += character
        if self._text in _CLOSERS and not self._value.is_in_json_string:
            self._out.append(self._value.end())
            self._text, self._place = "", _Place.BETWEEN
            return
        while self._text and (self._text in _CLOSERS or not any(each.startswith(self._text) for each in _CLOSERS)):
            self._out.append(self._value.push(self._text[0]))
            self._text = self._text[1:]


class _Kind(Enum):
    """The kind of a value's text: a string as it is, JSON, or not yet known."""

    STRING = auto()
    JSON = auto()
    OPEN = auto()


class _ValueText:
    """The JSON of one value, which goes out as soon as its kind is known."""

    def __init__(self, value: Value) -> None:
        self._value = value
        self._kind = _Kind.OPEN if value.scalars or value.json is not None else _Kind.STRING
        if not value.texts:
            self._kind = _Kind.JSON
        self._lead = '"'  # of a string, until it goes out
        self._held: list[str] = []  # the text of a value of unknown kind
        self._begin = ScalarBegin(value.scalars)
        self._json = JsonValue()

    @property
    def is_in_json_string(self) -> bool:
        return self._kind is _Kind.JSON and self._json.is_in_string

    def push(self, character: str) -> str:
        """Take the next character; return the JSON that it decides."""
        if self._kind is _Kind.JSON:
            self._json.push(character)
            return character
        if self._kind is _Kind.STRING:
            return self._led(json_text(character))
        if self._value.json is not None and not self._held and character in "[{":
            self._kind = _Kind.JSON
            self._json.push(character)
            return character
        self._held.append(character)
        if self._begin.goes_on(character):
            return ""
        self._kind = _Kind.STRING
        return self._led(json_text("".join(self._held)))

    def end(self) -> str:
        """Return the rest of the JSON."""
        if self._kind is _Kind.JSON:
            return ""
        held = "".join(self._held) if self._kind is _Kind.OPEN else ""
        if self._kind is _Kind.OPEN and is_scalar(held, self._value.scalars):
            return held
        return self._led(json_text(held) + '"')

    def _led(self, text: str) -> str:
        lead, self._lead = self._lead, ""
        return lead + text
