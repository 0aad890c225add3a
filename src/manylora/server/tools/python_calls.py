"""Calls of Llama's built-in tools, read character by character: `name.call(key="value", …)`, or code alone."""

import re
from collections.abc import Collection
from enum import Enum, auto

from manylora.server.tools.json_calls import MAX_NAME, JsonValue, json_text

CALL = ".call("
_KEY = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


class _Part(Enum):
    """The place in a call."""

    HEAD = auto()
    KEY = auto()
    VALUE = auto()
    NEXT = auto()
    CODE = auto()


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
        self._value = JsonValue()
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
            self._text, self._part, self._value = "", _Part.VALUE, JsonValue()
        elif character == ")" and not key:
            self._close()
        elif len(key) > MAX_NAME or not (character.isalnum() or character == "_" or character.isspace()):
            self.is_broken = True
        else:
            self._text += character

    def _in_value(self, character: str) -> None:
        if not self._value.text and character != '"':
            self.is_broken = not character.isspace()
            return
        self._value.push(character)
        self._out.append(character)
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
