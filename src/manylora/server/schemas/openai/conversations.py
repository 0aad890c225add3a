"""The bodies and the replies of /v1/conversations."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo
from typing_extensions import TypedDict

from manylora.errors import InvalidParameter
from manylora.server.schemas.body import Body, Read, wrong_type
from manylora.server.schemas.openai.response_input import InputItem, Message, read_input
from manylora.server.schemas.openai.response_replies import CallOutput, InputMessage, OutputCall, OutputMessage
from manylora.server.schemas.openai.stored import MetadataField
from manylora.server.schemas.readers import name_of

MOST_NEW_ITEMS = 20
"""Items of one request at most, as OpenAI has it."""


def _items(value: object, info: ValidationInfo) -> tuple[Message, ...]:
    name = name_of(info)
    if not isinstance(value, list):
        raise wrong_type(name, "an array of items", value)
    if len(value) > MOST_NEW_ITEMS:
        raise InvalidParameter(f"`{name}` may have {MOST_NEW_ITEMS} items. Given: {len(value)}", parameter=name)
    return read_input(value, info) if value else ()


def _some_items(value: object, info: ValidationInfo) -> tuple[Message, ...]:
    if not (found := _items(value, info)):
        raise InvalidParameter("`items` must have at least one item", parameter="items")
    return found


class NewConversation(Body):
    """The body of POST /v1/conversations."""

    metadata: MetadataField = None
    items: Annotated[
        tuple[Message, ...],
        Read(_items, shape=list[InputItem]),
        Field(description=f"The first items, {MOST_NEW_ITEMS} at most."),
    ] = ()


class ConversationChange(Body):
    """The body of POST /v1/conversations/{conversation_id}."""

    required: ClassVar[tuple[str, ...]] = ("metadata",)
    metadata: MetadataField = Field(default=None, validate_default=True)


class NewItems(Body):
    """The body of POST /v1/conversations/{conversation_id}/items."""

    required: ClassVar[tuple[str, ...]] = ("items",)
    items: Annotated[
        tuple[Message, ...],
        Read(_some_items, shape=list[InputItem]),
        Field(description=f"1 to {MOST_NEW_ITEMS} items, which come behind the others."),
    ] = Field(default=None, validate_default=True)


class ConversationReply(TypedDict):
    """A conversation."""

    id: str
    object: Literal["conversation"]
    created_at: int
    metadata: Mapping[str, str]


class DeletedConversation(TypedDict):
    """The reply to a deletion."""

    id: str
    object: Literal["conversation.deleted"]
    deleted: Literal[True]


class ItemPage(TypedDict):
    """A page of a conversation's items."""

    object: Literal["list"]
    data: list[InputMessage | OutputMessage | OutputCall | CallOutput]
    first_id: str | None
    last_id: str | None
    has_more: bool


ItemReply = InputMessage | OutputMessage | OutputCall | CallOutput
