"""The input of /v1/responses and of conversations: items, which become messages of the chat route."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import ValidationInfo

from manylora.errors import InvalidParameter
from manylora.server.schemas.body import Body, Read, kind_of, wrong_type
from manylora.server.schemas.field_rules import FieldRules, Refusal, applied_fields
from manylora.server.schemas.readers import Text, name_of
from manylora.system.printable import quoted

ROLES = ("system", "developer", "user", "assistant")
TEXT_PARTS = ("input_text", "output_text")

Message = Mapping[str, Any]
Json = dict[str, Any]  # JSON values of several types


class InputPart(Body):
    """One part of the content of an item."""

    rules: ClassVar[FieldRules] = FieldRules(
        unread=frozenset({"prompt_cache_breakpoint"}), refused={"annotations": Refusal(), "logprobs": Refusal()}
    )
    required: ClassVar[tuple[str, ...]] = ("type", "text")
    type: Text = None
    text: Text = None


KINDS = ("message", "function_call", "function_call_output")


class InputItem(Body):
    """One item of the input: a message, a call of a function, or its output."""

    rules: ClassVar[FieldRules] = FieldRules(unread=frozenset({"id", "status", "phase"}))
    required: ClassVar[tuple[str, ...]] = ()
    type: Annotated[
        str | None, Read(lambda value, _: value, enum=["message", "function_call", "function_call_output"])
    ] = None
    role: Annotated[str | None, Read(lambda value, _: value, enum=list(ROLES))] = None
    content: Annotated[Any, Read(lambda value, _: value, shape=str | list[InputPart])] = None
    call_id: Annotated[str | None, Read(lambda value, _: value, "string")] = None
    name: Annotated[str | None, Read(lambda value, _: value, "string")] = None
    arguments: Annotated[str | None, Read(lambda value, _: value, "string")] = None
    output: Annotated[Any, Read(lambda value, _: value, shape=str | list[InputPart])] = None


FIELDS_OF_ITEMS: Mapping[str, frozenset[str]] = {
    "message": frozenset({"type", "role", "content"}),
    "function_call": frozenset({"type", "call_id", "name", "arguments"}),
    "function_call_output": frozenset({"type", "call_id", "output"}),
}
"""The kinds of items, and the fields of each."""


def read_input(value: object, info: ValidationInfo) -> tuple[Message, ...]:
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise wrong_type(name_of(info), "a string or an array of items", value)
    if not value:
        raise InvalidParameter("`input` must have at least one item", parameter="input")
    return messages_of(value, name_of(info))


def messages_of(items: Iterable[object], field: str) -> tuple[Message, ...]:
    """Return items as messages of the chat route. Raises `InvalidParameter`, which names the item of the field."""
    messages: list[Json] = []
    for index, item in enumerate(items):
        _add_item(messages, item, f"{field}[{index}]")
    return tuple(messages)


def _add_item(messages: list[Json], item: object, where: str) -> None:
    """Add an item to the messages of the chat route, where calls belong to the assistant's message before them."""
    if not isinstance(item, dict):
        raise InvalidParameter(f"`{where}`: expected an object, given {kind_of(item)}", parameter=where)
    kind = "message" if item.get("type") is None else item["type"]
    if not isinstance(kind, str) or kind not in FIELDS_OF_ITEMS:
        shown, known = quoted(kind) if isinstance(kind, str) else kind_of(kind), ", ".join(FIELDS_OF_ITEMS)
        raise InvalidParameter(f"`{where}`: this server reads items {known}, given {shown}", parameter=where)
    fields = applied_fields(item, FIELDS_OF_ITEMS[kind], InputItem.rules, where)
    if kind == "message":
        role = fields.get("role")
        if role not in ROLES:
            raise InvalidParameter(f"`{where}.role` must be one of {', '.join(ROLES)}", parameter=where)
        messages.append({"role": str(role), "content": _content(fields.get("content"), f"{where}.content")})
    elif kind == "function_call_output":
        content = _content(fields.get("output"), f"{where}.output")
        messages.append({"role": "tool", "tool_call_id": _text_of(fields, "call_id", where), "content": content})
    else:
        name, arguments = _text_of(fields, "name", where), _text_of(fields, "arguments", where)
        function = {"name": name, "arguments": arguments}
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        calls = messages[-1].setdefault("tool_calls", [])
        calls.append({"id": _text_of(fields, "call_id", where), "type": "function", "function": function})


def _text_of(fields: Mapping[str, object], name: str, where: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise InvalidParameter(f"`{where}.{name}` must be a string", parameter=where)
    return value


def _content(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidParameter(
            f"`{where}`: expected a string or an array of parts, given {kind_of(content)}", parameter=where
        )
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if isinstance(part, dict) else None
        if kind not in TEXT_PARTS or not isinstance(text, str):
            shown = quoted(kind) if isinstance(kind, str) else kind_of(kind or part)
            raise InvalidParameter(
                f"`{where}`: this model reads parts {' and '.join(TEXT_PARTS)} only, given {shown}", parameter=where
            )
        applied_fields(part, InputPart.names(), InputPart.rules, where)
        texts.append(text)
    return "".join(texts)
