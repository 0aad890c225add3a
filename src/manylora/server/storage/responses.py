"""Responses that later requests continue, each for a time: `<folder>/<tenant>/responses/<id>.json`.

A kill or the end of the machine may lose the newest ones: they are a convenience, and the reply has their text.
"""

import asyncio
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from manylora.clock import Clock
from manylora.config.groups.storage import StorageConfig
from manylora.errors import ResourceNotFound
from manylora.ids import TenantId
from manylora.server.storage.disk import UNFINISHED, as_unavailable, remove
from manylora.system.printable import printable

log = logging.getLogger(__name__)


class KeptResponse(msgspec.Struct, frozen=True, kw_only=True):
    """One response.

    created_ms  milliseconds since 1970
    reply       the JSON of the reply
    messages    the conversation with the reply as its last message, without instructions
    """

    id: str
    created_ms: int
    reply: msgspec.Raw
    messages: tuple[dict[str, Any], ...]


class TenantResponses:
    """The responses of all tenants. Of each tenant the newest stay, as many as its count and its bytes allow.

    It belongs to one event loop; the disk is written and read in threads.
    """

    def __init__(self, folder: Path, clock: Clock, settings: StorageConfig) -> None:
        """Read the names of all responses. Raises `OSError`."""
        self._folder = folder
        self._clock = clock
        self._settings = settings
        self._kept: dict[TenantId, OrderedDict[str, tuple[int, int]]] = {}  # id → (created_ms, bytes), the oldest first
        for place in sorted(folder.glob("*/responses")):
            for path in place.glob(f"*{UNFINISHED}"):
                remove(path)
            known = [(path.stat(), path.stem) for path in place.glob("*.json")]
            self._kept[TenantId(place.parent.name)] = OrderedDict(
                (name, (int(1000 * facts.st_mtime), facts.st_size))
                for facts, name in sorted(known, key=lambda each: each[0].st_mtime)
            )

    async def keep(self, tenant: TenantId, response: KeptResponse) -> None:
        """Keep a response, and drop the tenant's oldest ones beyond its count and bytes.

        Raises `StorageUnavailable`. A response that is larger than all bytes of a tenant is not kept.
        """
        data, settings = msgspec.json.encode(response), self._settings
        if len(data) > settings.tenant_response_bytes:
            return
        path = self._path(tenant, response.id)
        with as_unavailable(path):
            await asyncio.to_thread(_write, path, data)
        kept = self._kept.setdefault(tenant, OrderedDict())
        kept[response.id] = (response.created_ms, len(data))
        while len(kept) > settings.tenant_responses or self._bytes_of(tenant) > settings.tenant_response_bytes:
            await self._drop(tenant, next(iter(kept)))

    async def get(self, tenant: TenantId, response_id: str, *, field: str = "response_id") -> KeptResponse:
        """Return a response of a tenant. Raises `ResourceNotFound`, also for one whose time is over."""
        created_ms, _ = self._of(tenant).get(response_id, (0, 0))
        if created_ms and created_ms > self._oldest_ms():
            try:
                data = await asyncio.to_thread(self._path(tenant, response_id).read_bytes)
                return msgspec.json.decode(data, type=KeptResponse)
            except (OSError, msgspec.DecodeError) as error:
                log.warning("response.unreadable id=%s error=%s", response_id, error)
        raise ResourceNotFound(f"Response with id '{printable(response_id[:80])}' not found.", parameter=field)

    async def delete(self, tenant: TenantId, response_id: str) -> None:
        """Delete a response. Raises `ResourceNotFound`."""
        await self.get(tenant, response_id)
        await self._drop(tenant, response_id)

    async def delete_expired(self) -> None:
        """Delete the responses whose time is over."""
        oldest_ms = self._oldest_ms()
        for tenant, kept in list(self._kept.items()):
            for response_id in [name for name, (created_ms, _) in kept.items() if created_ms <= oldest_ms]:
                await self._drop(tenant, response_id)

    async def delete_all_of(self, tenant: TenantId) -> None:
        for response_id in list(self._of(tenant)):
            await self._drop(tenant, response_id)

    @property
    def tenants(self) -> list[TenantId]:
        """The tenants with a response."""
        return list(self._kept)

    def _of(self, tenant: TenantId) -> OrderedDict[str, tuple[int, int]]:
        return self._kept.get(tenant) or OrderedDict()

    def _bytes_of(self, tenant: TenantId) -> int:
        return sum(size for _, size in self._kept[tenant].values())

    def _oldest_ms(self) -> float:
        return 1000 * (self._clock.wall_s() - self._settings.responses_s)

    async def _drop(self, tenant: TenantId, response_id: str) -> None:
        kept = self._of(tenant)
        kept.pop(response_id, None)
        if not kept:
            self._kept.pop(tenant, None)
        await asyncio.to_thread(remove, self._path(tenant, response_id))

    def _path(self, tenant: TenantId, response_id: str) -> Path:
        return self._folder / quote(tenant, safe="") / "responses" / f"{response_id}.json"


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, without a sync. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(path.name + UNFINISHED)
    part.write_bytes(data)
    part.replace(path)
