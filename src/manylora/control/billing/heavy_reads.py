"""Reads of the ledger that may take long: the query as data, the whole reply as bytes.

None of them runs on the event loop that serves requests: `heavy_read_client.py` passes them to a process.
"""

import base64
import binascii
import io
import json
import zipfile
from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import select

from manylora.control.billing.activity import activity_of
from manylora.control.billing.invoice_forms import render
from manylora.control.billing.invoices import invoice_rows, make_invoice, rule_of
from manylora.control.billing.usage_queries import UsageSum, ledger_page, usage_page
from manylora.control.calendar import is_final
from manylora.control.storage.database import Database
from manylora.control.storage.tables import ledger
from manylora.control.tenants.tenants import get_tenant
from manylora.control.zones import zone_of
from manylora.errors import InvalidParameter

MAX_CURSOR = 4_096
LOG_BLOCK = 1_000
MAX_LOGGED = 100_000
LOGGED = (
    *("request_id", "opened_ms", "base", "adapter", "adapter_source", "prompt_tokens", "cached_tokens"),
    *("completion_tokens", "finish_reason", "tier", "queue_us", "load_us", "first_token_us", "total_us"),
    *("cost_nanousd", "charged_prompt_tokens", "charged_cached_tokens", "charged_completion_tokens"),
)
"""Columns of a request log: neither prompts nor completions are among them."""


class UsageRead(msgspec.Struct, frozen=True, tag=True):
    """Sums over [begin_ms, end_ms), of one tenant or of all.

    begin, end  the same moments in the form of the reply
    after       the cursor of the page before, or empty
    zone        of days
    """

    begin_ms: int
    end_ms: int
    begin: str
    end: str
    tenant: str | None
    groups: tuple[str, ...]
    limit: int
    after: str = ""
    zone: str = "UTC"


class ActivityRead(msgspec.Struct, frozen=True, tag=True):
    """A tenant's requests in [begin_ms, end_ms). begin, end: the same moments in the form of the reply."""

    begin_ms: int
    end_ms: int
    begin: str
    end: str
    tenant: str
    zone: str


class LedgerRead(msgspec.Struct, frozen=True, tag=True):
    """Single rows, the newest first, without the columns in `hidden`."""

    tenant: str | None
    before: int | None
    limit: int
    hidden: tuple[str, ...]


class InvoiceRead(msgspec.Struct, frozen=True, tag=True):
    """A tenant's invoice of a month, 202611, in one of the forms of `invoice_forms.py`."""

    tenant: str
    month: int
    form: str
    now_ms: int


class LogRead(msgspec.Struct, frozen=True, tag=True):
    """A tenant's requests in [begin_ms, end_ms) on a base, of one adapter or of all: a zip of JSON lines.

    deployment  the dedicated deployment that served them; None: the shared one
    """

    tenant: str
    base: str
    adapter: str | None
    begin_ms: int
    end_ms: int
    deployment: str | None = None


HeavyRead = UsageRead | ActivityRead | LedgerRead | InvoiceRead | LogRead


async def answer(database: Database, asked: HeavyRead) -> bytes:
    """Return the body of the reply. Raise `InvalidParameter`, `ResourceNotFound`, `ControlUnavailable`."""
    match asked:
        case UsageRead():
            return await _usage(database, asked)
        case ActivityRead():
            return await _activity(database, asked)
        case LedgerRead():
            return await _ledger(database, asked)
        case InvoiceRead():
            return await _invoice(database, asked)
        case LogRead():
            return await _log(database, asked)


async def _usage(database: Database, asked: UsageRead) -> bytes:
    async with database.read() as connection:
        page = await usage_page(
            connection,
            begin_ms=asked.begin_ms,
            end_ms=asked.end_ms,
            tenant=asked.tenant,
            groups=asked.groups,
            limit=asked.limit,
            after=_place(asked.after, len(asked.groups)),
            zone=zone_of(asked.zone),
        )
    following = None if page.place is None else _cursor(page.place)
    return msgspec.json.encode(
        {
            "begin": asked.begin,
            "end": asked.end,
            "zone": asked.zone,
            "by": asked.groups,
            "usage": [_usage_json(each) for each in page.sums],
            "has_more": following is not None,
            "next": following,
        }
    )


async def _activity(database: Database, asked: ActivityRead) -> bytes:
    async with database.read() as connection:
        found = await activity_of(connection, asked.tenant, begin_ms=asked.begin_ms, end_ms=asked.end_ms)
    return msgspec.json.encode({"begin": asked.begin, "end": asked.end, "zone": asked.zone, **found})


def _usage_json(usage: UsageSum) -> dict[str, Any]:
    return {name: getattr(usage, name) for name in UsageSum.__slots__}


async def _ledger(database: Database, asked: LedgerRead) -> bytes:
    async with database.read() as connection:
        page = await ledger_page(connection, tenant=asked.tenant, before=asked.before, limit=asked.limit)
    rows = [{name: value for name, value in row.items() if name not in asked.hidden} for row in page.rows]
    return msgspec.json.encode({"rows": rows, "has_more": page.before is not None, "before": page.before})


async def _invoice(database: Database, asked: InvoiceRead) -> bytes:
    async with database.read() as connection:
        found = await get_tenant(connection, asked.tenant)
        rows = await invoice_rows(connection, asked.tenant, asked.month)
        rule = await rule_of(connection, asked.month)
    is_preliminary = not is_final(asked.month, asked.now_ms)
    invoice = make_invoice(found.id, found.name, asked.month, rows, is_preliminary=is_preliminary, rule=rule)
    return render(invoice, asked.form)


async def _log(database: Database, asked: LogRead) -> bytes:
    wanted = select(*(ledger.c[name] for name in LOGGED)).where(
        ledger.c.tenant == asked.tenant,
        ledger.c.base == asked.base,
        ledger.c.deployment.is_(None) if asked.deployment is None else ledger.c.deployment == asked.deployment,
        ledger.c.seconds.is_(None),
        ledger.c.opened_ms >= asked.begin_ms,
        ledger.c.opened_ms < asked.end_ms,
    )
    if asked.adapter is not None:
        wanted = wanted.where(ledger.c.adapter == asked.adapter)
    wanted = wanted.order_by(ledger.c.opened_ms, ledger.c.number).limit(MAX_LOGGED)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("requests.jsonl", "w") as file:
        async with database.read() as connection, connection.stream(wanted) as found:
            async for rows in found.mappings().partitions(LOG_BLOCK):
                file.write("".join(json.dumps(dict(row)) + "\n" for row in rows).encode())
    return target.getvalue()


def _cursor(place: Sequence[str | int]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode("ascii").rstrip("=")


def _place(cursor: str, num_groups: int) -> tuple[str | int, ...] | None:
    """Parse a cursor. Raise `InvalidParameter` for one that no page of these columns had."""
    if not cursor:
        return None
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        place = msgspec.json.decode(text, type=tuple[str | int, ...])
    except (binascii.Error, ValueError, msgspec.DecodeError):
        place = ()
    if not place or len(place) != num_groups:
        raise InvalidParameter("`after` must be the `next` of the page before, with the same `by`", parameter="after")
    return place
