"""Conversations of tenants: lists of items that responses continue, and that the control plane keeps."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from manylora.errors import NameTaken, ResourceNotFound, StorageLimitExceeded
from manylora.ids import TenantId
from manylora.server.storage.control_store import ControlStore
from manylora.stored.conversations import MOST_BYTES, digest_of
from manylora.system.printable import printable

ATTEMPTS = 8
"""Changes of one conversation that may come between its reading and its change."""


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """One conversation.

    created_s  seconds since 1970
    items      OpenAI's items, each with its id, in their order
    """

    id: str
    created_s: int
    metadata: dict[str, str]
    items: tuple[dict[str, Any], ...] = ()


Change = Callable[[Conversation], Conversation]


@dataclass(frozen=True, slots=True)
class TenantConversations:
    """The conversations of all tenants. Every method raises `ControlUnavailable` and `StorageUnavailable`."""

    store: ControlStore

    async def create(
        self, tenant: TenantId, created_s: int, metadata: dict[str, str], items: tuple[dict[str, Any], ...]
    ) -> Conversation:
        """Make a conversation. Raises `StorageLimitExceeded`."""
        made = Conversation(id=f"conv_{secrets.token_hex(16)}", created_s=created_s, metadata=metadata, items=items)
        await self.store.keep_conversation(tenant, made.id, msgspec.json.encode(made), "")
        return made

    async def get(self, tenant: TenantId, conversation: str, *, field: str = "conversation_id") -> Conversation:
        """Return a conversation of a tenant. Raises `ResourceNotFound`."""
        found, _ = await self._read(tenant, conversation, field)
        return found

    async def change(self, tenant: TenantId, conversation: str, change: Change) -> Conversation:
        """Change a conversation, and return it. `change` may be called again, on what another server has made of it.

        Raises `ResourceNotFound`, `StorageLimitExceeded`, `NameTaken`, and what `change` raises.
        """
        for _ in range(ATTEMPTS):
            found, before = await self._read(tenant, conversation, "conversation_id")
            changed = change(found)
            try:
                await self.store.keep_conversation(tenant, conversation, msgspec.json.encode(changed), before)
            except NameTaken:
                continue
            except ResourceNotFound as error:
                raise _missing(conversation, "conversation_id") from error
            return changed
        raise NameTaken("the conversation changes faster than this server can change it; repeat the request")

    async def add_once(self, tenant: TenantId, conversation: str, items: tuple[dict[str, Any], ...]) -> None:
        """Add items whose ids the conversation does not have. Raises as `change`."""

        def added(found: Conversation) -> Conversation:
            had = {item["id"] for item in found.items}
            new = tuple(item for item in items if item["id"] not in had)
            return msgspec.structs.replace(found, items=(*found.items, *new))

        await self.change(tenant, conversation, added)

    async def delete(self, tenant: TenantId, conversation: str) -> None:
        """Delete a conversation. Raises `ResourceNotFound`."""
        try:
            await self.store.delete_conversation(tenant, conversation)
        except ResourceNotFound as error:
            raise _missing(conversation, "conversation_id") from error

    async def _read(self, tenant: TenantId, conversation: str, field: str) -> tuple[Conversation, str]:
        try:
            data = await self.store.conversation(tenant, conversation)
        except ResourceNotFound as error:
            raise _missing(conversation, field) from error
        return msgspec.json.decode(data, type=Conversation), digest_of(data)


def require_room(conversation: Conversation, items: tuple[dict[str, Any], ...]) -> None:
    """Raise `StorageLimitExceeded` if a conversation has no room for further items."""
    size = len(msgspec.json.encode(msgspec.structs.replace(conversation, items=(*conversation.items, *items))))
    if size > MOST_BYTES:
        raise StorageLimitExceeded(
            f"a conversation may have {MOST_BYTES} bytes; this one would have {size}", parameter="conversation"
        )


def _missing(conversation: str, field: str) -> ResourceNotFound:
    return ResourceNotFound(f"Conversation with id '{printable(conversation[:80])}' not found.", parameter=field)
