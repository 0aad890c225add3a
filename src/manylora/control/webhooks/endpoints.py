"""Webhooks of tenants: their addresses and secrets, and the signature of a message.

The signature is that of Standard Webhooks: HMAC-SHA-256 over `id.timestamp.body`, in base64, after `v1,`.
A secret is made from the control plane's pepper and the webhook's id, so that the database has none.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.storage.budget_tables import webhook_messages, webhooks
from manylora.control.storage.cursors import cursor_of, is_before, newest_first
from manylora.control.storage.locks import lock_tenants
from manylora.control.webhooks.outbox import DEAD, WAITING, hold_messages
from manylora.errors import InvalidParameter, ResourceNotFound
from manylora.http.public_addresses import HTTPS_PORT

MOST_WEBHOOKS = 5
"""Limit for one tenant."""
MAX_URL = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    id: str
    tenant: str
    url: str
    created_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookMessage:
    """A message of a webhook. error: that of its last attempt, or empty."""

    id: str
    webhook: str
    kind: str
    state: str
    attempts: int
    created_ms: int
    next_ms: int
    error: str


def check_url(url: str, hosts: Collection[str]) -> None:
    """Raise `InvalidParameter` unless a webhook may have an address. `hosts` are those that the operator allows.

    The address itself is looked up at each delivery.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    is_whole = bool(host) and parts.username is None and parts.password is None and url.isascii() and url.isprintable()
    is_listed = host in hosts and parts.scheme in ("http", "https")
    is_plain = parts.scheme == "https" and port in (None, HTTPS_PORT)
    if len(url) > MAX_URL or " " in url or not is_whole or not (is_listed or is_plain):
        raise InvalidParameter(
            f"`url` must be https://host/path at port {HTTPS_PORT}, without a user, of at most {MAX_URL} characters "
            "(control.webhook_hosts lists others)",
            parameter="url",
        )


async def create_webhook(connection: AsyncConnection, tenant: str, url: str, *, now_ms: int) -> Webhook:
    """Make a webhook. Raise `InvalidParameter` if the tenant has too many."""
    await lock_tenants(connection, [tenant])  # two at once exceed no limit
    asked = select(func.count()).select_from(webhooks).where(webhooks.c.tenant == tenant, webhooks.c.ended_ms.is_(None))
    if (await connection.execute(asked)).scalar_one() >= MOST_WEBHOOKS:
        raise InvalidParameter(f"a tenant has at most {MOST_WEBHOOKS} webhooks", parameter="url")
    webhook = Webhook(id=f"wh_{secrets.token_hex(10)}", tenant=tenant, url=url, created_ms=now_ms)
    row = {"id": webhook.id, "tenant": tenant, "url": url, "created_ms": now_ms}
    await connection.execute(insert(webhooks).values(row))
    return webhook


async def end_webhook(connection: AsyncConnection, tenant: str, webhook: str, *, now_ms: int) -> None:
    """End a webhook; its messages that wait are dead. Raise `ResourceNotFound`."""
    await lock_tenants(connection, [tenant])  # no other transaction writes a message for it meanwhile
    own = (webhooks.c.id == webhook, webhooks.c.tenant == tenant, webhooks.c.ended_ms.is_(None))
    done = await connection.execute(update(webhooks).where(*own).values(ended_ms=now_ms))
    if not done.rowcount:
        raise ResourceNotFound(f"there is no webhook `{webhook[:80]}`")
    waiting = (webhook_messages.c.webhook == webhook, webhook_messages.c.state == WAITING)
    gone = {"state": DEAD, "error": "the webhook was ended"}
    await hold_messages(connection, *waiting)
    await connection.execute(update(webhook_messages).where(*waiting).values(gone))


async def list_webhooks(connection: AsyncConnection, tenant: str) -> list[Webhook]:
    asked = select(webhooks).where(webhooks.c.tenant == tenant, webhooks.c.ended_ms.is_(None))
    rows = (await connection.execute(asked.order_by(webhooks.c.created_ms, webhooks.c.id))).all()
    return [Webhook(id=row.id, tenant=row.tenant, url=row.url, created_ms=row.created_ms) for row in rows]


async def list_messages(
    connection: AsyncConnection, tenant: str, *, state: str | None, limit: int, before: str = ""
) -> tuple[list[WebhookMessage], str | None]:
    """Return a page of a tenant's messages, the newest first, of one state or of all, and the next page's `before`.

    Raises `InvalidParameter` for a `before` that no page gave.
    """
    asked = select(webhook_messages).where(webhook_messages.c.tenant == tenant)
    if state is not None:
        asked = asked.where(webhook_messages.c.state == state)
    if before:
        asked = asked.where(is_before(webhook_messages, before))
    rows = (await connection.execute(asked.order_by(*newest_first(webhook_messages)).limit(limit + 1))).all()
    shown, names = rows[:limit], WebhookMessage.__slots__
    page = [WebhookMessage(**{name: getattr(row, name) for name in names}) for row in shown]
    return page, cursor_of(shown[-1]) if len(rows) > limit else None


async def send_again(connection: AsyncConnection, tenant: str, message: str, *, now_ms: int) -> None:
    """Let a dead message wait for its delivery again, under its own id. Raise `ResourceNotFound`."""
    own = (
        webhook_messages.c.id == message,
        webhook_messages.c.tenant == tenant,
        webhook_messages.c.state == DEAD,
        webhook_messages.c.webhook.in_(select(webhooks.c.id).where(webhooks.c.ended_ms.is_(None))),
    )
    values = {"state": WAITING, "attempts": 0, "next_ms": now_ms, "error": ""}
    done = await connection.execute(update(webhook_messages).where(*own).values(values))
    if not done.rowcount:
        raise ResourceNotFound(f"there is no dead message `{message[:80]}` of a webhook that is in force")


def secret_of(pepper: str, webhook: str) -> str:
    """Return a webhook's secret in the form of Standard Webhooks: `whsec_` and 32 bytes in base64."""
    key = hmac.new(bytes.fromhex(pepper), f"webhook {webhook}".encode(), hashlib.sha256).digest()
    return f"whsec_{base64.b64encode(key).decode()}"


def signature(secret: str, message: str, timestamp_s: int, body: str) -> str:
    """Return the header `webhook-signature` of one attempt."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{message}.{timestamp_s}.{body}".encode()
    return f"v1,{base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()}"
