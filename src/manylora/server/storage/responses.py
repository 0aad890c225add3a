"""Responses that later requests continue, each for a time. The control plane keeps them, after the reply.

A reply does not wait for the control plane: its response is kept in memory until the control plane has it. A kill
before that loses it, as does a control plane that stays away until the response's time is over.
"""

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from manylora.clock import Clock
from manylora.config.groups.storage import StorageConfig
from manylora.errors import ControlUnavailable, ManyloraError, NameTaken, ResourceNotFound, StorageUnavailable
from manylora.ids import TenantId
from manylora.server.storage.control_store import ControlStore
from manylora.stored.conversations import digest_of
from manylora.system.printable import printable

log = logging.getLogger(__name__)

PREFIX = "resp_"
RUNNING = ("queued", "in_progress")
WAITING_BYTES = 1 << 26
"""Bytes of responses that wait for the control plane; beyond them the oldest are dropped."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 10.0
"""Seconds between two attempts to reach the control plane."""
FRESH_MS = 5_000
"""Age in which a response of another edge may still be on its way to the control plane."""
ASK_AGAIN_S, MOST_QUESTIONS = 0.05, 20
ATTEMPTS = 8
"""Changes of one response that may come between its reading and its change."""
FLUSH_S = 5.0
"""Seconds for which a server that ends waits for the control plane."""


class KeptResponse(msgspec.Struct, frozen=True, kw_only=True):
    """One response.

    created_ms  milliseconds since 1970
    reply       the JSON of the reply
    messages    the conversation with the reply as its last message, without instructions
    beat_ms     of a response that runs without a waiting caller: the last note of its server; 0: it never did
    events      of such a response with a stream: its events so far, in compressed chunks; empty: it has no stream
    """

    id: str
    created_ms: int
    reply: msgspec.Raw
    messages: tuple[dict[str, Any], ...]
    beat_ms: int = 0
    events: tuple[bytes, ...] = ()

    @property
    def is_running(self) -> bool:
        """Return whether the response is queued or in progress without a waiting caller."""
        return self.beat_ms > 0 and msgspec.json.decode(self.reply).get("status") in RUNNING


class TenantResponses:
    """The responses of all tenants. It belongs to one event loop."""

    def __init__(self, store: ControlStore, clock: Clock, settings: StorageConfig) -> None:
        self._store = store
        self._clock = clock
        self._settings = settings
        self._mark = secrets.token_hex(4)
        self._waiting: OrderedDict[tuple[TenantId, str], tuple[int, bytes]] = OrderedDict()  # → (created_ms, JSON)
        self._waiting_bytes = 0
        self._sending: asyncio.Task[None] | None = None

    def mint_id(self) -> str:
        """Return a fresh id: the time, this edge, and 64 random bits, in hex digits."""
        return f"{PREFIX}{self._now_ms():012x}{self._mark}{secrets.token_hex(8)}"

    def keep(self, tenant: TenantId, response: KeptResponse) -> None:
        """Keep a response; the control plane gets it in the background."""
        data = msgspec.json.encode(response)
        self._waiting[tenant, response.id] = (response.created_ms, data)
        self._waiting_bytes += len(data)
        while self._waiting_bytes > WAITING_BYTES and len(self._waiting) > 1:
            log.warning("response.dropped waiting=%d", len(self._waiting))
            self._forget(next(iter(self._waiting)))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send_all())

    async def get(self, tenant: TenantId, response_id: str, *, field: str = "response_id") -> KeptResponse:
        """Return a response of a tenant.

        Raises `ResourceNotFound`, also for one whose time is over, and `ControlUnavailable`.
        """
        for _ in range(MOST_QUESTIONS if self._may_be_on_its_way(response_id) else 1):
            try:
                data = await self._found(tenant, response_id)
                return msgspec.json.decode(data, type=KeptResponse)
            except ResourceNotFound:
                await asyncio.sleep(ASK_AGAIN_S if self._may_be_on_its_way(response_id) else 0)
            except msgspec.DecodeError as error:
                log.warning("response.unreadable id=%s error=%s", response_id, error)
                break
        raise ResourceNotFound(f"Response with id '{printable(response_id[:80])}' not found.", parameter=field)

    async def delete(self, tenant: TenantId, response_id: str) -> None:
        """Delete a response. Raises as `get`."""
        await self.get(tenant, response_id)
        was_waiting = self._forget((tenant, response_id))
        try:
            await self._store.delete_response(tenant, response_id)
        except ResourceNotFound:
            if not was_waiting:
                raise

    async def put(self, tenant: TenantId, response: KeptResponse, *, growth: int) -> None:
        """Keep a response that will run, which the control plane has at the return.

        Args:    growth  bytes by which it may grow, for which there is room at its end
        Raises:  `ControlUnavailable`, `StorageUnavailable`, `StorageLimitExceeded`, `LimitExceeded`
        """
        await self._store.keep_response(tenant, response.id, msgspec.json.encode(response), growth=growth)

    async def replace(
        self, tenant: TenantId, response_id: str, change: Callable[[KeptResponse], KeptResponse]
    ) -> KeptResponse:
        """Change a response that the control plane has, and return it. `change` may be called again.

        Raises `ResourceNotFound`, `ControlUnavailable`, `StorageUnavailable`, `StorageLimitExceeded`, `NameTaken`.
        """
        for _ in range(ATTEMPTS):
            data = await self._store.response(tenant, response_id)
            found = msgspec.json.decode(data, type=KeptResponse)
            if (changed := change(found)) == found:
                return found
            try:
                content = msgspec.json.encode(changed)
                await self._store.replace_response(
                    tenant, response_id, content, digest_of(data), is_running=changed.is_running
                )
            except NameTaken:
                continue
            return changed
        raise NameTaken("the response changes faster than this server can change it; repeat the request")

    async def flush(self) -> None:
        """Wait until the control plane has every response, for a few seconds at most."""
        if self._sending is not None:
            await asyncio.wait([self._sending], timeout=FLUSH_S)
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)

    async def _found(self, tenant: TenantId, response_id: str) -> bytes:
        waiting = self._waiting.get((tenant, response_id))
        if waiting is not None and not self._is_over(waiting[0]):
            return waiting[1]
        return await self._store.response(tenant, response_id)

    def _may_be_on_its_way(self, response_id: str) -> bool:
        """Return whether another edge may have made a response that the control plane has not got yet."""
        digits = response_id.removeprefix(PREFIX)
        try:
            created_ms, mark = int(digits[:12], 16), digits[12:20]
        except ValueError:
            return False
        return mark != self._mark and len(digits) == 36 and abs(self._now_ms() - created_ms) < FRESH_MS

    async def _send_all(self) -> None:
        wait_s = FIRST_WAIT_S
        while self._waiting:
            key, (created_ms, data) = next(iter(self._waiting.items()))
            try:
                if not self._is_over(created_ms):
                    await self._store.keep_response(*key, data)
            except (ControlUnavailable, StorageUnavailable) as error:
                log.warning("response.not_kept waiting=%d error=%s", len(self._waiting), error.message)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
                continue
            except ManyloraError as error:
                log.error("response.refused id=%s error=%s", key[1], error.message)
            wait_s = FIRST_WAIT_S
            if not self._forget(key):  # it was deleted meanwhile
                await self._delete_again(*key)

    async def _delete_again(self, tenant: TenantId, response_id: str) -> None:
        try:
            await self._store.delete_response(tenant, response_id)
        except ManyloraError:
            return

    def _forget(self, key: tuple[TenantId, str]) -> bool:
        found = self._waiting.pop(key, None)
        if found is not None:
            self._waiting_bytes -= len(found[1])
        return found is not None

    def _is_over(self, created_ms: int) -> bool:
        return created_ms <= self._now_ms() - 1000 * self._settings.responses_s

    def _now_ms(self) -> int:
        return int(1000 * self._clock.wall_s())
