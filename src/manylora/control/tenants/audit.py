"""The audit table: one row for each act of an operator or a key, written in the act's transaction, never changed.

Rows hold no secret: neither keys, nor tokens, nor the query of a URL. They are removed by age alone.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from sqlalchemy import delete, func, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request

from manylora.control.calendar import DAY_MS
from manylora.control.control import Control
from manylora.control.storage.tables import audit
from manylora.control.tenants.callers import address_of, request_id_of
from manylora.control.tenants.tenants import OPERATOR
from manylora.errors import InvalidParameter, RequestRateExceeded
from manylora.http.callers import Caller
from manylora.tenancy import AdapterAct

MACHINE = "on the machine"
"""Address of an act without a request: of a command that opens the database itself, and of a first start."""
MAX_LETTERS = 4_000
"""Limit of `before`, and of `after`."""
MAX_TEXT, MAX_ITEMS = 200, 50
PACED_ELSEWHERE = frozenset({("create", "key"), ("rotate", "key"), ("revoke", "key")})
"""Acts that `keys.py` counts, so that ending and rotating keys is always possible."""
MAX_ACTS_A_DAY = 20_000
"""Limit of the acts of one tenant's keys on its own objects."""
MAX_REMOVED = 100_000
"""Limit of the rows that one round of the janitor removes."""
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_SINCE = "`since` must be a day or a moment such as 2026-01-31 or 2026-01-31T12:00:00Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """The caller of an act, and its moment.

    tenant, key  None: the route needs no key, as at a sign-up
    address      address of the client, or `MACHINE`
    """

    at_ms: int
    tenant: str | None = None
    key: str | None = None
    address: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One act: `verb` on the object `name` of a kind. tenant: its owner; None: none, as of a price."""

    number: int
    at_ms: int
    tenant: str | None
    actor: Actor
    verb: str
    kind: str
    name: str
    before: Any  # JSON
    after: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Rows, the newest first. before: the argument that returns the next page; None on the last page."""

    rows: list[Row]
    before: int | None


def actor_of(control: Control, request: Request) -> Actor:
    """Return the actor of a request."""
    caller: Caller | None = getattr(request.state, "caller", None)
    return Actor(
        at_ms=control.now_ms(),
        tenant=None if caller is None else caller.tenant,
        key=None if caller is None else caller.key,
        address=address_of(control, request)[:64],
        request_id=request_id_of(request),
    )


def on_the_machine(control: Control) -> Actor:
    """Return the operator as the actor of an act without a request: a first start, or a command on the database."""
    return Actor(at_ms=control.now_ms(), tenant=OPERATOR, address=MACHINE)


async def record(
    connection: AsyncConnection,
    actor: Actor,
    verb: str,
    kind: str,
    name: str,
    *,
    tenant: str | None,
    before: object = None,
    after: object = None,
) -> None:
    """Add a row, in the transaction of the act. before, after: the object's values, without secrets.

    Raises `RequestRateExceeded` after `MAX_ACTS_A_DAY` acts of a tenant in a day.
    """
    if tenant not in (None, OPERATOR) and tenant == actor.tenant and (verb, kind) not in PACED_ELSEWHERE:
        await _require_pace(connection, actor, tenant)
    values = {
        "at_ms": actor.at_ms,
        "tenant": tenant,
        "actor_tenant": actor.tenant,
        "actor_key": actor.key,
        "address": actor.address,
        "request_id": actor.request_id,
        "verb": verb,
        "kind": kind,
        "name": _text(name),
        "before": bounded_json(before),
        "after": bounded_json(after),
    }
    await connection.execute(insert(audit).values(values))


async def _require_pace(connection: AsyncConnection, actor: Actor, tenant: str) -> None:
    """Bound the rows that a stolen key can add: they stay for a year and more. Raise `RequestRateExceeded`."""
    begun_ms = actor.at_ms - DAY_MS
    own = (audit.c.tenant == tenant, audit.c.at_ms > begun_ms, audit.c.actor_tenant == tenant)
    asked = select(func.count(), func.min(audit.c.at_ms)).where(*own)
    count, first_ms = (await connection.execute(asked)).one()
    if count >= MAX_ACTS_A_DAY:
        raise RequestRateExceeded(
            f"Rate limit exceeded: {MAX_ACTS_A_DAY} changes a day of tenant `{tenant}`",
            wait_s=(first_ms - begun_ms) / 1000,
        )


async def record_adapter_acts(control: Control, acts: Sequence[AdapterAct]) -> None:
    """Add rows for acts on a server's adapters, which the server reports after the act."""
    async with control.database.write() as connection:
        for act in acts:
            actor = Actor(
                at_ms=min(act.at_ms, control.now_ms()),
                tenant=act.actor,
                key=act.key,
                address=None if act.address is None else act.address[:64],
                request_id=act.request_id[:128],
            )
            scheme, _, rest = act.adapter.partition("://")
            await record(connection, actor, act.verb, "adapter", public_source(scheme, rest), tenant=act.owner)


async def audit_page(
    connection: AsyncConnection,
    *,
    tenant: str | None = None,
    since_ms: int | None = None,
    by: str | None = None,
    verb: str | None = None,
    before: int | None = None,
    limit: int = 100,
    is_own: bool = False,
) -> Page:
    """Return a page of rows, the newest first.

    Args:  tenant  the owner of the objects; None: all owners
           by      the tenant or the key that acted
           is_own  whether the tenant itself reads: `by` then matches no key of another tenant
    """
    asked = select(audit).order_by(audit.c.number.desc()).limit(limit)
    if tenant is not None:
        asked = asked.where(audit.c.tenant == tenant)
    if since_ms is not None:
        asked = asked.where(audit.c.at_ms >= since_ms)
    if by is not None:
        is_key = audit.c.actor_key == by
        is_key = is_key & (audit.c.actor_tenant == tenant) if is_own else is_key
        asked = asked.where(or_(audit.c.actor_tenant == by, is_key))
    if verb is not None:
        asked = asked.where(audit.c.verb == verb)
    if before is not None:
        asked = asked.where(audit.c.number < before)
    rows = [_row(dict(row)) for row in (await connection.execute(asked)).mappings()]
    return Page(rows=rows, before=rows[-1].number if len(rows) == limit else None)


async def remove_old_rows(control: Control) -> None:
    """Remove rows older than `control.audit_days`, the oldest first, at most `MAX_REMOVED`."""
    oldest_ms = control.now_ms() - control.config.control.audit_days * DAY_MS
    old = select(audit.c.number).where(audit.c.at_ms < oldest_ms).order_by(audit.c.number).limit(MAX_REMOVED)
    async with control.database.read() as connection:
        if (await connection.execute(old.limit(1))).first() is None:
            return
    async with control.database.write() as connection:
        await connection.execute(delete(audit).where(audit.c.number.in_(old)))


def parse_since(text: str) -> int | None:
    """Parse a day or a moment, by default in UTC, into milliseconds. Raise `InvalidParameter`."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise InvalidParameter(f"{_SINCE}. Given: {text[:40]!r}", parameter="since") from error


def bounded_json(value: object) -> str | None:
    """Return a value as JSON of at most `MAX_LETTERS` characters: long texts and lists are cut and marked."""
    if value is None:
        return None
    text = json.dumps(_plain(value), separators=(",", ":"), ensure_ascii=False, sort_keys=True)
    return text if len(text) <= MAX_LETTERS else json.dumps({"cut": _text(text, MAX_LETTERS // 2)}, ensure_ascii=False)


def public_source(scheme: str, name: str) -> str:
    """Return a source's address without its possible secrets: user name, password, signed query."""
    rest = re.split(r"[?#]", name.partition("://")[2] or name, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2] if slash else host}{slash}{path}"


def _plain(value: object) -> Any:
    """Return a value as JSON values; a dataclass without the fields that have their defaults."""
    if is_dataclass(value) and not isinstance(value, type):
        told = {each.name: getattr(value, each.name) for each in fields(value)}
        return {name: _plain(each) for name, each in told.items() if each not in (None, ())}
    if isinstance(value, Mapping):
        return {_text(str(name)): _plain(each) for name, each in list(value.items())[:MAX_ITEMS]}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Sequence):
        more = [f"… {len(value) - MAX_ITEMS} more"] if len(value) > MAX_ITEMS else []
        return [*map(_plain, value[:MAX_ITEMS]), *more]
    return value if value is None or isinstance(value, int | float) else _text(str(value))


def _text(text: str, most: int = MAX_TEXT) -> str:
    clean = _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)
    return clean if len(clean) <= most else f"{clean[: most - 1]}…"


def _row(row: dict[str, Any]) -> Row:
    actor = Actor(
        at_ms=row["at_ms"],
        tenant=row["actor_tenant"],
        key=row["actor_key"],
        address=row["address"],
        request_id=row["request_id"],
    )
    before, after = (None if row[name] is None else json.loads(row[name]) for name in ("before", "after"))
    told = {name: row[name] for name in ("number", "at_ms", "tenant", "verb", "kind", "name")}
    return Row(actor=actor, before=before, after=after, **told)
