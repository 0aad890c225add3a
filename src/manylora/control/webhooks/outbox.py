"""Messages that wait for their webhooks. A message and its cause are written in one transaction."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, delete, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.storage.budget_tables import webhook_messages, webhooks

WAITING, DELIVERED, DEAD = "waiting", "delivered", "dead"
KEPT_MS = 30 * 86_400_000
"""Age at which a message is removed; its last attempt is at most four days after it was made or asked for again."""
MOST_REMOVED = 1000
"""Limit of the messages that one transaction removes."""


async def enqueue(
    connection: AsyncConnection, tenant: str, kind: str, event: str, data: Mapping[str, Any], now_ms: int
) -> None:
    """Write a message for each webhook of a tenant, whose lock the transaction holds.

    Args:  event  names the cause; the same event has the same id of its message at a webhook
           data   JSON; it holds no secret, since it leaves for the tenant's address
    """
    at = datetime.fromtimestamp(now_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    body = json.dumps({"type": kind, "timestamp": at, "data": data}, ensure_ascii=False, separators=(",", ":"))
    asked = select(webhooks.c.id).where(webhooks.c.tenant == tenant, webhooks.c.ended_ms.is_(None))
    for webhook in sorted((await connection.execute(asked)).scalars()):
        row = {
            "id": f"msg_{hashlib.sha256(f'{webhook} {event}'.encode()).hexdigest()[:40]}",
            "webhook": webhook,
            "tenant": tenant,
            "kind": kind,
            "body": body,
            "created_ms": now_ms,
            "state": WAITING,
            "attempts": 0,
            "next_ms": now_ms,
            "error": "",
        }
        await connection.execute(insert(webhook_messages).values(row))


async def hold_messages(
    connection: AsyncConnection, *which: ColumnElement[bool], is_patient: bool = True
) -> Sequence[str]:
    """Lock messages, in the order of their ids, until the transaction ends, and return their ids.

    An UPDATE of several rows locks them in no order. is_patient: whether to wait for messages that others hold
    """
    asked = select(webhook_messages.c.id).where(*which).order_by(webhook_messages.c.id)
    return (await connection.execute(asked.with_for_update(skip_locked=not is_patient))).scalars().all()


async def remove_old_messages(connection: AsyncConnection, now_ms: int) -> int:
    """Remove messages that are older than `KEPT_MS`, and that are not on their way. Return their number."""
    live = select(webhooks.c.id).where(webhooks.c.ended_ms.is_(None))
    is_over = or_(webhook_messages.c.state != WAITING, webhook_messages.c.webhook.not_in(live))
    old = select(webhook_messages.c.id).where(webhook_messages.c.created_ms < now_ms - KEPT_MS, is_over)
    some = old.order_by(webhook_messages.c.created_ms).limit(MOST_REMOVED)
    removed = await connection.execute(delete(webhook_messages).where(webhook_messages.c.id.in_(some)))
    return int(removed.rowcount)
