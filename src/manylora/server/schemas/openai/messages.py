"""The messages of a conversation in the body of POST /v1/chat/completions."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationInfo

from manylora.errors import InvalidParameter
from manylora.server.schemas.body import Body, Read, kind_of, wrong_type
from manylora.server.schemas.field_names import AT_TOP, OPENAI_ADAPTER
from manylora.server.schemas.field_rules import FieldRules, Refusal, applied_fields
from manylora.server.schemas.openai.shared import known_at_top
from manylora.server.schemas.readers import Text, array, name_of, text
from manylora.system.printable import quoted

PLAIN_MESSAGE = frozenset({"role", "content"})

Message = Mapping[str, str]


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


class ChatMessage(Body):
    """One message of a conversation."""

    rules: ClassVar[FieldRules] = FieldRules(
        refused={
            **dict.fromkeys(("refusal", "audio", "annotations", "reasoning_content", "reasoning"), Refusal()),
            **dict.fromkeys(("tool_calls", "tool_call_id", "function_call"), Refusal()),
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


def read_messages(value: object, info: ValidationInfo) -> tuple[Message, ...]:
    given = () if value is None else array(name_of(info), value)
    if not given:
        raise InvalidParameter("`messages` must have at least one message", parameter="messages")
    messages = tuple(_message(message, index) for index, message in enumerate(given))
    if info.data["continue_final_message"] and not messages[-1]["content"].strip():
        raise InvalidParameter(
            "`continue_final_message` needs text in the last message", parameter="continue_final_message"
        )
    return messages


def _message(message: object, index: int) -> Message:
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        raise InvalidParameter(f"`{where}`: expected an object, given {kind_of(message)}", parameter="messages")
    role = message.get("role")
    if role in ("tool", "function") or message.get("tool_calls") or message.get("function_call"):
        raise InvalidParameter(f"`{where}`: tool messages are not supported by this server yet", parameter="messages")
    if role not in ("system", "developer", "user", "assistant"):
        raise InvalidParameter(
            f"`{where}.role` must be one of system, developer, user, assistant", parameter="messages"
        )
    plain = {
        "role": "system" if role == "developer" else role,
        "content": _content(message.get("content"), where),
    }
    if message.keys() <= PLAIN_MESSAGE:
        return plain
    name = applied_fields(message, ChatMessage.names(), ChatMessage.rules, where).get("name")
    if name is not None and not isinstance(name, str):
        raise wrong_type("name", "a string", name)
    return plain if name is None else {**plain, "name": name}


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
