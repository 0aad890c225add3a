"""Chat templates: a Jinja program shipped with a base model, run with no powers and bounded work.

Imports without torch. Messages come from strangers; the template itself comes from the base model's files, never from
an adapter. The sandbox refuses access to attributes of the interpreter; the bounds below end programs that would run or
grow for ever. They bound loops, operators and padding, not every filter: the operator chooses the template with the
base model.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from jinja2 import TemplateError, Undefined, UndefinedError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from manylora.clock import Clock, SystemClock
from manylora.errors import TemplateFailed, TemplateVariableMissing

MAX_OUTPUT_CHARACTERS = 8_000_000
MAX_LOOP_TURNS = 500_000
MAX_SECONDS = 2.0

_TICK, _JOIN = "_manylora_tick", "_manylora_join"
_TURNS_PER_CLOCK_READ = 256
_MAX_WIDTH = 9_999
_PRINTF_WIDTH = re.compile(r"%[^a-zA-Z%]*(\*|\d{5})")
_WIDE = re.compile(r"\d{5}")
# Filters and methods that make a text of any width: the filters are measured, the methods refused.
_PADDING_FILTERS = ("center", "indent")
_PADDING_METHODS = {"center", "ljust", "rjust", "zfill", "expandtabs"}


_MARK = "CONTINUE_FINAL_MESSAGE"
_MARKS = re.compile(f"{_MARK}(_*)")


class ChatTemplate:
    """One compiled template. Thread-safe: renders share the compiled code alone."""

    def __init__(self, source: str, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        environment.filters["tojson"] = _to_json
        for name in _PADDING_FILTERS:
            environment.filters[name] = _measured(environment.filters[name])
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(_with_bounds(environment.parse(source)))
        except (TemplateError, RecursionError) as error:
            raise TemplateFailed(f"the chat template does not compile: {error}") from error

    def render(self, variables: Mapping[str, Any]) -> str:
        """Return the prompt.

        Raises `TemplateFailed` with the template's own message, or with the reached bound, and
        `TemplateVariableMissing`. A template that prints `guideline` needs it, as in LoRAX; other variables that the
        caller does not set are empty.
        """
        work = _Work(self._clock)
        pieces: list[str] = []
        length = 0
        try:
            for piece in self._template.generate(
                {"guideline": _Needed(name="guideline"), **variables, _TICK: work.tick, _JOIN: _join}
            ):
                pieces.append(piece)
                length += len(piece)
                if length > MAX_OUTPUT_CHARACTERS:
                    raise _TooMuch(f"over {MAX_OUTPUT_CHARACTERS} characters of output")
        except _TooMuch as error:
            raise TemplateFailed(f"the chat template was stopped: {error}") from error
        except RecursionError as error:
            raise TemplateFailed("the chat template was stopped: too deep a recursion") from error
        except UndefinedError as error:
            raise TemplateVariableMissing(
                f"the chat template needs a variable: {error}", parameter="messages"
            ) from error
        # A template is a program of its author: the caller gets any error that it raises on these messages.
        except Exception as error:
            text = str(error) or type(error).__name__
            raise TemplateFailed(f"the chat template refused the messages: {text}", parameter="messages") from error
        return "".join(pieces)


def open_last(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the messages with a mark behind the last one's content, which `cut_last` finds in the rendered text."""
    *others, last = messages
    return [*others, {**last, "content": f"{last['content']}{_mark(last['content'])} "}]


def cut_last(text: str, content: str) -> str:
    """Return a rendered text up to the end of the last message's content.

    Semantics:  transformers' `continue_final_message`: a template that trims contents loses the space at the end, too
    Raises:     `TemplateFailed` if the template does not show that content whole
    """
    mark = _mark(content)
    place = text.rfind(mark)
    if place < 0 or content.strip() not in text[:place]:
        raise TemplateFailed(
            "the chat template changes the last message, so `continue_final_message` cannot continue it",
            parameter="messages",
        )
    return text[:place] if text.startswith(f"{mark} ", place) else text[:place].rstrip()


def _mark(content: str) -> str:
    """Return a text that does not occur in a content, in one pass over it."""
    longest = max((len(found[1]) for found in _MARKS.finditer(content)), default=-1)
    return _MARK + "_" * (longest + 1)


class _Needed(Undefined):
    """A variable without which a template cannot be printed; as a condition it is false."""

    __str__ = Undefined._fail_with_undefined_error


class _TooMuch(Exception):
    """The render reached a bound."""


class _Work:
    """The count of one render's loop turns and macro calls, with a look at the clock at intervals."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._turns = 0
        self._deadline_s = clock.monotonic_s() + MAX_SECONDS

    def tick(self) -> None:
        self._turns += 1
        if self._turns > MAX_LOOP_TURNS:
            raise _TooMuch(f"over {MAX_LOOP_TURNS} loop turns")
        if self._turns % _TURNS_PER_CLOCK_READ == 0 and self._clock.monotonic_s() > self._deadline_s:
            raise _TooMuch(f"over {MAX_SECONDS:g} seconds")


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which measures the result of operators that can make a large value from small ones."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _PADDING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        formatting = super().wrap_str_format(value)
        if formatting is not None:
            _check_format(value.__self__)  # the format string the method belongs to
        return formatting

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for sized, times in ((left, right), (right, left)):
                if isinstance(sized, str | list | tuple) and isinstance(times, int):
                    _check_length(len(sized) * max(times, 0))
        elif operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            _check_length(len(left) + len(right))
        elif operator == "**" and isinstance(left, int | float) and isinstance(right, int | float):
            _check_length(int(abs(left)).bit_length() * int(abs(right)))
        elif operator == "%":
            _check_format(left)
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}` marks the reply for training masks; a prompt gets its body alone."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as an instance attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _with_bounds(template: nodes.Template) -> nodes.Template:
    """Make every loop turn and macro call count, and every `~` call `_join`."""
    for loop in template.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
        tick = nodes.Call(nodes.Name(_TICK, "load"), [], [], None, None)
        cast(Any, loop).body.insert(0, nodes.ExprStmt(tick))  # each of the three kinds has a list called body
    for concat in list(template.find_all(nodes.Concat)):
        concat.nodes = [nodes.Call(nodes.Name(_JOIN, "load"), concat.nodes, [], None, None)]
    return template


def _join(*parts: object) -> str:
    texts = [str(part) for part in parts]
    _check_length(sum(map(len, texts)))
    return "".join(texts)


def _check_length(length: int) -> None:
    if length > MAX_OUTPUT_CHARACTERS:
        raise _TooMuch(f"a value of over {MAX_OUTPUT_CHARACTERS} elements")


def _check_format(text: object) -> None:
    """Refuse a format whose width has more than four digits, or is an argument."""
    if isinstance(text, str) and (_PRINTF_WIDTH.search(text) or any(map(_is_wide, text.split("}")))):
        raise _TooMuch("a width of over four digits in a format")


def _is_wide(piece: str) -> bool:
    """Return whether a piece without `}` opens a field that has another one or a number of five digits as its width."""
    _, opened, field = piece.partition("{")
    return bool(opened) and ("{" in field or _WIDE.search(field.partition(":")[2]) is not None)


def _measured(pad: Callable[..., str]) -> Callable[..., str]:
    """Return a padding filter that checks its format and its widths first."""

    def measured(text: object, *values: object, **named: object) -> str:
        _check_format(text)
        for width in (*values, *named.values()):
            if isinstance(width, int) and width > _MAX_WIDTH:
                raise _TooMuch(f"a width of over {_MAX_WIDTH}")
        return pad(text, *values, **named)

    return measured


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


def _strftime_now(format_: str) -> str:
    return datetime.now().astimezone().strftime(format_)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return plain JSON, as in training; Jinja's own filter would escape it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
