"""Calls of Llama's built-in tools, read character by character: `name.call(key="value", …)`, or code alone."""

import re
import string
from collections.abc import Collection
from enum import Enum, auto

from manylora.server.tools.json_calls import MAX_NAME, json_text

CALL = ".call("
_KEY = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_ESCAPED = '"\\/bfnrt'
"""The characters behind a backslash in JSON, apart from `u`."""
_OF_CODE = len(r"\u0000")


class _Part(Enum):
    """The place in a call."""

    HEAD = auto()
    KEY = auto()
    VALUE = auto()
    NEXT = auto()
    CODE = auto()


class _StringText:
    """The text of a string in double quotation marks, behind the first one, read character by character as JSON.

    Escapes are those of JSON, and `\\'`. A backslash before any other character stands for itself.

    is_over  whether the string has ended
    """

    def __init__(self) -> None:
        self.is_over = False
        self._escape = ""  # the begin of an escape

    def push(self, character: str) -> str:
        """Take the next character; return the JSON that it decides."""
        if self._escape:
            return self._in_escape(character)
        if character == "\\":
            self._escape = character
            return ""
        self.is_over = character == '"'
        return character if self.is_over else json_text(character)

    def _in_escape(self, character: str) -> str:
        escape, self._escape = self._escape, ""
        if len(escape) == 1:
            if character == "u":
                self._escape = escape + character
                return ""
            if character == "'":
                return character
            return escape + character if character in _ESCAPED else json_text(escape + character)
        if character not in string.hexdigits:
            return json_text(escape) + self.push(character)
        if len(escape) == _OF_CODE - 1:
            return escape + character
        self._escape = escape + character
        return ""


class BuiltInCall:
    """One call. The name of a known tool and `.call(` begin it; any other text is the code of the tool for code.

    name         the tool's name, once it is read
    is_complete  whether the call has ended; code ends with the reply
    is_broken    whether the text is no such call
    """

    def __init__(self, names: Collection[str], code: tuple[str, str] | None) -> None:
        """Take the names of the tools with arguments by key, and the name and the key of the tool for code."""
        self.name: str | None = None
        self.is_complete = False
        self.is_broken = False
        self._heads = tuple(name + CALL for name in names)
        self._code = code
        self._part = _Part.HEAD
        self._text = ""  # of the head, or of a key
        self._value: _StringText | None = None  # None: before the quotation mark
        self._out: list[str] = []
        self._num_keys = 0

    def take_arguments(self) -> str:
        """Return the JSON of the arguments that has been read since the last call."""
        found, self._out = "".join(self._out), []
        return found

    def push(self, character: str) -> None:
        """Take the next character of the call."""
        match self._part:
            case _Part.HEAD:
                self._in_head(character)
            case _Part.KEY:
                self._in_key(character)
            case _Part.VALUE:
                self._in_value(character)
            case _Part.NEXT:
                self._behind_value(character)
            case _Part.CODE:
                self._out.append(json_text(character))

    def end(self) -> None:
        """Note the end of the reply, which ends code."""
        if self._part is _Part.HEAD and self._text:
            self._begin_code()
        if self._part is _Part.CODE:
            self._out.append('"}')
            self.is_complete = True

    def _in_head(self, character: str) -> None:
        self._text += character
        if self._text in self._heads:
            self.name, self._text, self._part = self._text.removesuffix(CALL), "", _Part.KEY
        elif not any(head.startswith(self._text) for head in self._heads):
            self._begin_code()

    def _begin_code(self) -> None:
        if self._code is None:
            self.is_broken = True
            return
        self.name, key = self._code
        self._part = _Part.CODE
        self._out.append(f'{{"{json_text(key)}": "{json_text(self._text)}')

    def _in_key(self, character: str) -> None:
        key = self._text.strip()
        if character == "=" and _KEY.fullmatch(key):
            self._out.append(f'{", " if self._num_keys else "{"}"{key}": ')
            self._num_keys += 1
            self._text, self._part, self._value = "", _Part.VALUE, None
        elif character == ")" and not key:
            self._close()
        elif not self._text and character.isspace():
            return
        elif len(self._text) > MAX_NAME or not (character.isalnum() or character == "_" or character.isspace()):
            self.is_broken = True
        else:
            self._text += character

    def _in_value(self, character: str) -> None:
        if self._value is None:
            if character == '"':
                self._value = _StringText()
                self._out.append(character)
            else:
                self.is_broken = not character.isspace()
            return
        self._out.append(self._value.push(character))
        if self._value.is_over:
            self._part = _Part.NEXT

    def _behind_value(self, character: str) -> None:
        if character == ",":
            self._part = _Part.KEY
        elif character == ")":
            self._close()
        elif not character.isspace():
            self.is_broken = True

    def _close(self) -> None:
        self.is_complete = True
        self._out.append("}" if self._num_keys else "{}")
