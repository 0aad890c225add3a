"""The messages of a conversation in the body of POST /v1/chat/completions."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, cast

import msgspec
from pydantic import Field, ValidationInfo

from manylora.errors import InvalidParameter
from manylora.server.schemas.body import Body, Read, kind_of, wrong_type
from manylora.server.schemas.field_names import AT_TOP, OPENAI_ADAPTER
from manylora.server.schemas.field_rules import FieldRules, Refusal, applied_fields
from manylora.server.schemas.openai.functions import FUNCTION_ROLE, Called, call_of, result_of
from manylora.server.schemas.openai.shared import known_at_top
from manylora.server.schemas.readers import Text, array, name_of, text
from manylora.system.printable import quoted

PLAIN_MESSAGE = frozenset({"role", "content"})

ROLES = ("system", "developer", "user", "assistant", "tool", FUNCTION_ROLE)
RESULTS = ("tool", FUNCTION_ROLE)
"""The roles of messages with the result of a call."""

Message = Mapping[str, Any]


class ContentPart(Body):
    """One part of a message's content."""

    rules: ClassVar[FieldRules] = FieldRules(
        unread=frozenset({"prompt_cache_breakpoint", "cache_control"}),
        refused={"annotations": Refusal()},
        elsewhere=known_at_top,
    )
    required: ClassVar[tuple[str, ...]] = ("type", "text")
    type: Text = None
    text: Text = None


class CalledFunction(Body):
    """The function of a call."""

    required: ClassVar[tuple[str, ...]] = ("name", "arguments")
    name: Text = None
    arguments: Text = None


class ToolCall(Body):
    """A call in an assistant's message."""

    rules: ClassVar[FieldRules] = FieldRules(
        refused={"custom": Refusal("tools are functions")},
        unread=frozenset({"index"}),
        elsewhere=lambda: {"`function`": CalledFunction.names()},
    )
    required: ClassVar[tuple[str, ...]] = ("id", "type", "function")
    id: Text = None
    type: Text = None
    function: Annotated[Any, Read(lambda value, _: value, shape=CalledFunction)] = None


class ChatMessage(Body):
    """One message of a conversation."""

    rules: ClassVar[FieldRules] = FieldRules(
        refused={
            **dict.fromkeys(("refusal", "audio", "annotations", "reasoning_content", "reasoning"), Refusal()),
            **dict.fromkeys(("prefix", "partial"), Refusal("use `continue_final_message`")),
        },
        hints={"text": "use `content`"},
        elsewhere=known_at_top,
        adapter=f"{OPENAI_ADAPTER} at {AT_TOP}",
    )
    required: ClassVar[tuple[str, ...]] = ("role",)
    role: Text = None
    content: Annotated[Any, Read(lambda value, _: value, shape=str | list[ContentPart] | None)] = None
    name: Annotated[str | None, Read(text, "string"), Field(description="The chat template may show it.")] = None
    tool_calls: Annotated[
        Any,
        Read(lambda value, _: value, shape=list[ToolCall] | None),
        Field(description="The calls of an assistant's message."),
    ] = None
    function_call: Annotated[
        Any,
        Read(lambda value, _: value, shape=CalledFunction | None),
        Field(description="The older form of an assistant's call."),
    ] = None
    tool_call_id: Annotated[
        str | None, Read(text, "string"), Field(description="The call whose result a message of `tool` has.")
    ] = None


def read_messages(value: object, info: ValidationInfo) -> tuple[Message, ...]:
    given = () if value is None else array(name_of(info), value)
    if not given:
        raise InvalidParameter("`messages` must have at least one message", parameter="messages")
    called = Called({}, {})
    messages = tuple(_message(message, f"messages[{index}]", called) for index, message in enumerate(given))
    if info.data["continue_final_message"] and not messages[-1]["content"].strip():
        raise InvalidParameter(
            "`continue_final_message` needs text in the last message", parameter="continue_final_message"
        )
    return messages


def _message(message: object, where: str, called: Called) -> Message:
    if not isinstance(message, dict):
        raise InvalidParameter(f"`{where}`: expected an object, given {kind_of(message)}", parameter="messages")
    role = message.get("role")
    if role not in ROLES:
        raise InvalidParameter(f"`{where}.role` must be one of {', '.join(ROLES)}", parameter="messages")
    plain = {
        "role": "system" if role == "developer" else role,
        "content": _content(message.get("content"), where),
    }
    if message.keys() <= PLAIN_MESSAGE and role not in RESULTS:
        return plain
    fields = applied_fields(message, ChatMessage.names(), ChatMessage.rules, where)
    name = fields.get("name")
    if name is not None and not isinstance(name, str):
        raise wrong_type("name", "a string", name)
    named = plain if name is None else {**plain, "name": name}
    if role == FUNCTION_ROLE:
        return {**named, "role": "tool", **result_of(name, where, called)}
    if role == "tool":
        return {**named, **_result_of(fields.get("tool_call_id"), where, called)}
    if "tool_call_id" in fields:
        raise InvalidParameter(f"`{where}.tool_call_id` belongs in a message of `tool`", parameter="messages")
    calls = _calls_in(fields, role, where, called)
    return {**named, "tool_calls": calls} if calls else named


def _calls_in(fields: Mapping[str, object], role: str, where: str, called: Called) -> list[dict[str, Any]]:
    """Return the calls of a message in either form; none if it has none."""
    field = "tool_calls" if fields.get("tool_calls") else "function_call"
    if not fields.get(field):
        return []
    if role != "assistant":
        raise InvalidParameter(f"`{where}.{field}` belongs in a message of `assistant`", parameter="messages")
    if field == "tool_calls" and fields.get("function_call"):
        raise InvalidParameter(f"`{where}` has both `tool_calls` and `function_call`", parameter="messages")
    given = fields["tool_calls"] if field == "tool_calls" else call_of(fields["function_call"], where, called)
    return _calls(given, f"{where}.{field}", called.names)


def _result_of(call_id: object, where: str, called: Called) -> dict[str, str]:
    """Return the fields by which a template shows the call that a result belongs to."""
    if not isinstance(call_id, str) or call_id not in called.names:
        raise InvalidParameter(
            f"`{where}.tool_call_id` must be the `id` of a call in an earlier message", parameter="messages"
        )
    return {"tool_call_id": call_id, "name": called.names[call_id]}


def _calls(value: object, where: str, called: dict[str, str]) -> list[dict[str, Any]]:
    """Return the calls for the chat template, with arguments as objects where they are JSON, and note their ids."""
    calls = []
    for index, given in enumerate(array(where, value)):
        place = f"{where}[{index}]"
        call = _fields(given, ToolCall, place)
        function = _fields(call.get("function"), CalledFunction, f"{place}.function")
        texts = call.get("id"), function.get("name"), function.get("arguments", "")
        if call.get("type", "function") != "function" or not all(isinstance(each, str) for each in texts):
            raise InvalidParameter(
                f"`{place}`: expected `id`, `type` function, and `function` with `name` and `arguments` as strings",
                parameter="messages",
            )
        call_id, name, arguments = cast("tuple[str, str, str]", texts)  # the condition has checked each
        called[call_id] = name
        shown = {"name": name, "arguments": _decoded(arguments)}
        calls.append({"id": call_id, "type": "function", "function": shown})
    return calls


def _fields(given: object, model: type[Body], place: str) -> dict[str, object]:
    if not isinstance(given, dict):
        raise InvalidParameter(f"`{place}`: expected an object, given {kind_of(given)}", parameter="messages")
    return applied_fields(given, model.names(), model.rules, place)


def _decoded(arguments: str) -> object:
    """Return the arguments as an object, which templates expect; a reply cut at its budget has no JSON."""
    try:
        found = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        return arguments
    return found if isinstance(found, dict) else arguments


def _content(content: object, where: str) -> str:
    """Return the text of a message, with its parts joined in order."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise InvalidParameter(
            f"`{where}.content`: expected a string or an array of parts, given {kind_of(content)}", parameter="messages"
        )
    texts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        text_of_part = part.get("text") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(text_of_part, str):
            raise InvalidParameter(
                f"`{where}.content`: this model reads text parts only; given {_shown(kind, part)}",
                parameter="messages",
            )
        applied_fields(part, ContentPart.names(), ContentPart.rules, f"{where}.content")
        texts.append(text_of_part)
    return "".join(texts)


def _shown(kind: object, part: object) -> str:
    return quoted(kind if kind and isinstance(kind, str) else kind_of(kind or part))
