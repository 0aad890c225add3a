"""Delivery of messages to webhooks: attempts under one id, later and later ones after failures, then the state dead.

A webhook's address is a tenant's word. The connection goes to an address that was looked up and found to be public;
no redirect is followed, and no byte of an answer is kept.
"""

import asyncio
import logging
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
from sqlalchemy import Row, func, select, update

from manylora.control.control import Control
from manylora.control.storage.budget_tables import webhook_messages, webhooks
from manylora.control.webhooks.endpoints import secret_of, signature
from manylora.control.webhooks.outbox import DEAD, DELIVERED, WAITING, hold_messages
from manylora.http.public_addresses import public_address

log = logging.getLogger(__name__)

PAUSES_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Seconds from each failed attempt to the next; a message whose last attempt fails is dead."""
TIMEOUT_S = 10.0
CLAIM_MS = 60_000
"""Time for which one control plane alone attempts a message; longer than an attempt takes."""
MOST_AT_ONCE = 64
MOST_OF_A_TENANT = 4
"""Limit of the attempts of one tenant's messages at one time: its silent addresses delay its own messages alone."""
MAX_ERROR = 200


@dataclass(frozen=True, slots=True)
class _Due:
    """A message that this control plane alone attempts now."""

    id: str
    tenant: str
    webhook: str
    url: str
    body: str
    attempts: int


class Deliveries:
    """Attempts of messages that are due. Several control planes of one database may each have one.

    An attempt takes up to `TIMEOUT_S`. So a round waits for none of an earlier one, and takes messages by turns of
    their tenants, where the attempts that still run count as turns that were had.
    """

    def __init__(self, control: Control, client: Callable[[], httpx2.AsyncClient] | None = None) -> None:
        self._control = control
        # Attempts share one TLS context: it takes tens of milliseconds of the event loop.
        trusted = None if client else ssl.create_default_context()
        self._client = client or (
            lambda: httpx2.AsyncClient(timeout=TIMEOUT_S, trust_env=False, verify=trusted or True)
        )
        self._running: dict[asyncio.Task[None], str] = {}

    async def round(self) -> int:
        """Attempt messages that are due, wait for their answers, and return their number."""
        begun = await self._begin()
        await asyncio.gather(*begun)
        return len(begun)

    async def begin(self) -> int:
        """Begin the attempts of messages that are due, and return their number."""
        return len(await self._begin())

    async def stop(self) -> None:
        """End the attempts that run. Their messages are due again once their claims are over."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _begin(self) -> list[asyncio.Task[None]]:
        begun = []
        for due in await self._claim():
            task = asyncio.create_task(self._attempt(due))
            self._running[task] = due.tenant
            task.add_done_callback(self._ended)
            begun.append(task)
        return begun

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("webhook.attempt_failed error=%s", error)

    async def _claim(self) -> list[_Due]:
        """Take due messages so that no other control plane attempts them."""
        free = MOST_AT_ONCE - len(self._running)
        if free <= 0:
            return []
        now_ms = self._control.now_ms()
        is_due = (webhook_messages.c.state == WAITING, webhook_messages.c.next_ms <= now_ms)
        columns = (webhook_messages.c.id, webhook_messages.c.tenant)
        order = (webhook_messages.c.next_ms, webhook_messages.c.id)
        turn = func.row_number().over(partition_by=webhook_messages.c.tenant, order_by=order).label("turn")
        turns = select(*columns, webhook_messages.c.next_ms, turn).where(*is_due).subquery()
        first = select(turns).where(turns.c.turn <= MOST_OF_A_TENANT)
        async with self._control.database.read() as connection:
            # Most rounds find none, and take no lock of the database.
            found = (await connection.execute(first.order_by(turns.c.turn, turns.c.next_ms).limit(4 * free))).all()
        ids = self._by_turns(found)[:free]
        if not ids:
            return []
        async with self._control.database.write() as connection:
            claimed = await hold_messages(connection, webhook_messages.c.id.in_(ids), *is_due, is_patient=False)
            taken = update(webhook_messages).where(webhook_messages.c.id.in_(claimed))
            await connection.execute(taken.values(next_ms=now_ms + CLAIM_MS))
            asked_rows = (
                select(webhook_messages, webhooks.c.url)
                .join(webhooks, webhooks.c.id == webhook_messages.c.webhook)
                .where(webhook_messages.c.id.in_(claimed), webhooks.c.ended_ms.is_(None))
            )
            rows = (await connection.execute(asked_rows)).all()
        return [_Due(row.id, row.tenant, row.webhook, row.url, row.body, row.attempts) for row in rows]

    def _by_turns(self, found: Sequence[Row[Any]]) -> list[str]:
        """Return the ids of due messages in the order of their tenants' turns, after those that run."""
        running = Counter(self._running.values())
        turns = [(row.turn + running[row.tenant], row.next_ms, row.id) for row in found]
        return [name for turn, _, name in sorted(turns) if turn <= MOST_OF_A_TENANT]

    async def _attempt(self, due: _Due) -> None:
        async with self._client() as client:
            error = await self._error_of(client, due)
        now_ms = self._control.now_ms()
        values: dict[str, object] = {"attempts": due.attempts + 1, "error": error[:MAX_ERROR]}
        if not error:
            values["state"] = DELIVERED
        elif due.attempts < len(PAUSES_S):
            values["next_ms"] = now_ms + 1000 * PAUSES_S[due.attempts]
        else:
            values["state"] = DEAD
            log.warning("webhook.dead message=%s webhook=%s error=%s", due.id, due.webhook, error)
        async with self._control.database.write() as connection:
            own = (webhook_messages.c.id == due.id, webhook_messages.c.state == WAITING)
            await connection.execute(update(webhook_messages).where(*own).values(values))

    async def _error_of(self, client: httpx2.AsyncClient, due: _Due) -> str:
        """Send a message once. Return a description of the failure, or an empty text."""
        secret = secret_of(self._control.pepper, due.webhook)
        timestamp_s = int(self._control.clock.wall_s())
        headers = {
            "content-type": "application/json",
            "user-agent": "manylora",
            "webhook-id": due.id,
            "webhook-timestamp": str(timestamp_s),
            "webhook-signature": signature(secret, due.id, timestamp_s, due.body),
        }
        try:
            async with asyncio.timeout(TIMEOUT_S):
                target = httpx2.URL(due.url)
                extensions = {}
                if target.host not in self._control.config.control.webhook_hosts:
                    address = await public_address(target.host)
                    if address is None:
                        return "its address is not public"
                    headers["host"], extensions = target.host, {"sni_hostname": target.host}
                    target = target.copy_with(host=address)
                request = client.build_request(
                    "POST", target, content=due.body.encode(), headers=headers, extensions=extensions
                )
                reply = await client.send(request, stream=True)
                await reply.aclose()
        except Exception as error:  # whatever an address brings about counts as an attempt, or it repeats without end
            return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return "" if 200 <= reply.status_code < 300 else f"status {reply.status_code}"
