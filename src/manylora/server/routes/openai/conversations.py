"""OpenAI's routes of conversations: POST /v1/conversations, and those of one conversation and of its items."""

from typing import Any

import msgspec
from fastapi import APIRouter

from manylora.clock import Clock
from manylora.config.groups.server import ServerConfig
from manylora.errors import ResourceNotFound, RouteNotBuilt
from manylora.server.http.context import HttpContext
from manylora.server.http.routing import Guards, Parameter, Routes
from manylora.server.routes.openai.input_items import MOST_ITEMS, ORDER, item_page, new_items
from manylora.server.routes.openai.pages import page_parameters
from manylora.server.schemas.body import Bounds, read_body
from manylora.server.schemas.openai.conversations import (
    ConversationChange,
    ConversationReply,
    DeletedConversation,
    ItemPage,
    ItemReply,
    NewConversation,
    NewItems,
)
from manylora.server.storage.conversations import Conversation, TenantConversations
from manylora.system.printable import printable

Json = dict[str, Any]  # JSON values of several types
ROOT = "/v1/conversations"
ONE = f"{ROOT}/{{conversation_id}}"
_ID = Parameter("conversation_id", "path", "The conversation's id")
_ITEM = Parameter("item_id", "path", "The item's id")


def conversation_routers(routes: "ConversationRoutes", guards: Guards, clock: Clock) -> tuple[APIRouter, ...]:
    """Return the routers of conversations: those that read no body, and the others."""
    plain, changing = (Routes(APIRouter(dependencies=each), clock) for each in (guards.keyed, guards.with_body))
    whole, gone, page = {200: ConversationReply}, {200: DeletedConversation}, {200: ItemPage}
    pages = [_ID, *page_parameters(MOST_ITEMS), ORDER]
    plain.add(f"GET {ONE}", routes.show, "A conversation", replies=whole, parameters=[_ID])
    plain.add(f"GET {ONE}/items", routes.items, "The items of a conversation", replies=page, parameters=pages)
    plain.add(
        f"GET {ONE}/items/{{item_id}}",
        routes.item,
        "An item of a conversation",
        replies={200: ItemReply},
        parameters=[_ID, _ITEM],
    )
    changing.add(f"POST {ROOT}", routes.create, "Make a conversation", body=NewConversation, replies=whole)
    changing.add(
        f"POST {ONE}",
        routes.change,
        "Replace a conversation's metadata",
        body=ConversationChange,
        replies=whole,
        parameters=[_ID],
    )
    changing.add(f"DELETE {ONE}", routes.delete, "Delete a conversation", replies=gone, parameters=[_ID])
    changing.add(
        f"POST {ONE}/items", routes.add, "Add items to a conversation", body=NewItems, replies=page, parameters=[_ID]
    )
    changing.add(
        f"DELETE {ONE}/items/{{item_id}}",
        routes.remove,
        "Delete an item of a conversation",
        replies=whole,
        parameters=[_ID, _ITEM],
    )
    return plain.router, changing.router


class ConversationRoutes:
    """The handlers of the routes of conversations."""

    def __init__(self, settings: ServerConfig, kept: TenantConversations | None) -> None:
        """Without `kept`, there are no conversations."""
        self._settings = settings
        self._own_kept = kept

    @property
    def _kept(self) -> TenantConversations:
        if self._own_kept is None:
            raise RouteNotBuilt("this server keeps no conversations")
        return self._own_kept

    async def create(self, context: HttpContext) -> None:
        body = read_body(context.arrival.body, NewConversation, Bounds(settings=self._settings))
        made = await self._kept.create(
            context.arrival.tenant, int(context.clock.wall_s()), body.metadata or {}, new_items(body.items)
        )
        await context.reply(_shown(made))

    async def show(self, context: HttpContext) -> None:
        await context.reply(_shown(await self._found(context)))

    async def change(self, context: HttpContext) -> None:
        body = read_body(context.arrival.body, ConversationChange, Bounds(settings=self._settings))
        metadata = body.metadata or {}
        changed = await self._kept.change(
            *_named(context), lambda found: msgspec.structs.replace(found, metadata=metadata)
        )
        await context.reply(_shown(changed))

    async def delete(self, context: HttpContext) -> None:
        tenant, conversation = _named(context)
        await self._kept.delete(tenant, conversation)
        await context.reply({"id": conversation, "object": "conversation.deleted", "deleted": True})

    async def items(self, context: HttpContext) -> None:
        found = await self._found(context)
        await context.reply(item_page(list(found.items), context.query))

    async def item(self, context: HttpContext) -> None:
        await context.reply(_item_in(await self._found(context), context.path_parameters["item_id"]))

    async def add(self, context: HttpContext) -> None:
        body = read_body(context.arrival.body, NewItems, Bounds(settings=self._settings))
        items = new_items(body.items)
        await self._kept.change(*_named(context), lambda found: with_items(found, items))
        await context.reply(item_page(list(items), {"order": "asc", "limit": str(MOST_ITEMS)}))

    async def remove(self, context: HttpContext) -> None:
        item_id = context.path_parameters["item_id"]

        def without(found: Conversation) -> Conversation:
            gone = _item_in(found, item_id)
            return msgspec.structs.replace(found, items=tuple(each for each in found.items if each is not gone))

        await context.reply(_shown(await self._kept.change(*_named(context), without)))

    async def _found(self, context: HttpContext) -> Conversation:
        return await self._kept.get(*_named(context))


def with_items(conversation: Conversation, items: tuple[Json, ...]) -> Conversation:
    return msgspec.structs.replace(conversation, items=(*conversation.items, *items))


def _named(context: HttpContext) -> tuple[Any, str]:
    return context.arrival.tenant, context.path_parameters["conversation_id"]


def _shown(conversation: Conversation) -> Json:
    return {
        "id": conversation.id,
        "object": "conversation",
        "created_at": conversation.created_s,
        "metadata": conversation.metadata,
    }


def _item_in(conversation: Conversation, item_id: str) -> Json:
    for item in conversation.items:
        if item["id"] == item_id:
            return item
    raise ResourceNotFound(f"Item with id '{printable(item_id[:80])}' not found.", parameter="item_id")
