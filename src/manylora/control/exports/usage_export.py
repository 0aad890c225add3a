"""Hourly sums of usage for OpenMeter, Stripe or a table, each under an id that follows from the ledger alone.

The rows of an export are those that the ledger received in one hour [window, window + 1 h). The hour is over once no
transaction can add a row to it, so that its sums never change; a late record is of the hour in which it arrived. So an
export needs no list of what was sent: a repetition has the same ids and the same sums, and the cursor of a sink says
where the next one begins.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, Select, and_, func, literal_column, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.calendar import COMMIT_MS
from manylora.control.storage.database import Database
from manylora.control.storage.invoice_tables import export_cursors
from manylora.control.storage.tables import ledger
from manylora.errors import InvalidParameter

HOUR_MS = 3_600_000
MOST_HOURS = 24
"""Limit of the hours of one export."""
MOST_SUMS = 5_000
"""Limit of the sums of a page; each gives an event for each kind of token."""
SOURCE = "manylora"
EVENT = "manylora.usage"
STRIPE_EVENT = "manylora_usage"
FORMS = ("cloudevents", "stripe", "csv")
ALIKE = ("tenant", "base", "adapter", "adapter_owner", "price_version", "deployment", "hourly_nanousd")
PRICES = ("input_nanousd", "cached_input_nanousd", "output_nanousd")
COUNTS = ("charged_prompt_tokens", "charged_cached_tokens", "charged_completion_tokens", "seconds", "cost_nanousd")
# A literal: PostgreSQL treats two expressions with parameters as different.
_HOUR: ColumnElement[int] = literal_column(str(HOUR_MS))


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageExport:
    """A page of the events of the hours [begin_ms, end_ms), by the moment at which the ledger received the rows."""

    begin_ms: int
    end_ms: int
    events: list[dict[str, Any]]
    page: int = 1
    pages: int = 1


async def next_export(
    connection: AsyncConnection, sink: str, form: str, now_ms: int, *, page: int = 1, end_ms: int | None = None
) -> UsageExport:
    """Return a page of what a sink has not been sent yet, up to `MOST_HOURS`; without a whole hour there is no event.

    Args:    page    from 1 on
             end_ms  the end of the export that page 1 named; None: as late as it can be now
    Raises:  `InvalidParameter` for an unknown form, for a page that the export does not have, and for another end
    """
    if form not in FORMS:
        raise InvalidParameter(f"`form` must be one of {', '.join(FORMS)}. Given: {form[:40]!r}", parameter="form")
    begin_ms = await _begin_ms(connection, sink, now_ms)
    last_ms = max(begin_ms, min(_whole_ms(now_ms), begin_ms + MOST_HOURS * HOUR_MS))
    end_ms = last_ms if end_ms is None else end_ms
    if end_ms % HOUR_MS or not begin_ms <= end_ms <= last_ms:
        raise InvalidParameter(f"`end_ms` must be that of an export of `{sink}`. Given: {end_ms}", parameter="end_ms")
    pages = await _num_pages(connection, begin_ms, end_ms)
    if not 1 <= page <= pages:
        raise InvalidParameter(f"`page` must be 1 to {pages}. Given: {page}", parameter="page")
    lines = [line for row in await _rows(connection, begin_ms, end_ms, page) for line in _lines(row)]
    lines.sort(key=lambda line: (line["window_ms"], line["hour_ms"], line["id"]))
    make = {"cloudevents": _cloud_event, "stripe": _stripe_event, "csv": _table_row}[form]
    events = [make(line) for line in lines]
    return UsageExport(begin_ms=begin_ms, end_ms=end_ms, events=events, page=page, pages=pages)


async def acknowledge(
    database: Database, connection: AsyncConnection, sink: str, begin_ms: int, end_ms: int, now_ms: int, *, pages: int
) -> bool:
    """Move a sink's cursor from the begin of an export to its end. Return False for an export that was acknowledged.

    Args:    pages  the pages that the sink has taken
    Raises:  `InvalidParameter` for bounds that no export of the sink has, and for pages that were not taken
    """
    is_whole = begin_ms % HOUR_MS == 0 == end_ms % HOUR_MS
    if not is_whole or not begin_ms < end_ms <= min(begin_ms + MOST_HOURS * HOUR_MS, now_ms - COMMIT_MS):
        raise InvalidParameter(
            f"`begin_ms` and `end_ms` must be those of an export. Given: {begin_ms} and {end_ms}", parameter="end_ms"
        )
    first_ms = await _first_ms(connection, now_ms)
    sent_ms = await _held_ms(database, connection, sink, first_ms)
    if first_ms <= begin_ms < end_ms <= sent_ms:
        return False
    if begin_ms != sent_ms:
        raise InvalidParameter(
            f"no export of `{sink}` that waits begins at {begin_ms}: the next one begins at {sent_ms}",
            parameter="begin_ms",
        )
    if pages != (wanted := await _num_pages(connection, begin_ms, end_ms)):
        raise InvalidParameter(f"`pages` must be {wanted}, those of the export. Given: {pages}", parameter="pages")
    await connection.execute(update(export_cursors).where(export_cursors.c.sink == sink).values(sent_ms=end_ms))
    return True


async def _held_ms(database: Database, connection: AsyncConnection, sink: str, first_ms: int) -> int:
    """Return a sink's cursor, `first_ms` for a new sink; other acknowledgements of the sink wait for this transaction.

    Without the lock, statements of one transaction on PostgreSQL see the cursor before and after a concurrent change.
    """
    await connection.execute(database.insert_once(export_cursors).values(sink=sink, sent_ms=first_ms))
    held = select(export_cursors.c.sent_ms).where(export_cursors.c.sink == sink).with_for_update()
    return int((await connection.execute(held)).scalar_one())


async def _sent_ms(connection: AsyncConnection, sink: str) -> int | None:
    asked = select(export_cursors.c.sent_ms).where(export_cursors.c.sink == sink)
    return (await connection.execute(asked)).scalar_one_or_none()


def _whole_ms(now_ms: int) -> int:
    """Return the end of the last hour to which no transaction can add a row."""
    return (now_ms - COMMIT_MS) // HOUR_MS * HOUR_MS


async def _begin_ms(connection: AsyncConnection, sink: str, now_ms: int) -> int:
    """Return the begin of a sink's next export: the end of the last one, or the hour of the first row."""
    if (sent_ms := await _sent_ms(connection, sink)) is not None:
        return sent_ms
    return await _first_ms(connection, now_ms)


async def _first_ms(connection: AsyncConnection, now_ms: int) -> int:
    """Return the hour of the first row of the ledger; of an empty one, the end of the last whole hour."""
    first = (await connection.execute(select(func.min(ledger.c.received_ms)))).scalar_one()
    return _whole_ms(now_ms) if first is None else int(first) // HOUR_MS * HOUR_MS


async def _num_pages(connection: AsyncConnection, begin_ms: int, end_ms: int) -> int:
    counted = select(func.count()).select_from(_sums(begin_ms, end_ms).subquery())
    return max(1, -(-int((await connection.execute(counted)).scalar_one()) // MOST_SUMS))


async def _rows(connection: AsyncConnection, begin_ms: int, end_ms: int, page: int) -> Sequence[RowMapping]:
    """Return the sums of a page. The hours are over, so that a place in their order is the same for every call."""
    asked = _sums(begin_ms, end_ms)
    keys = [each.asc().nulls_first() for each in asked.selected_columns if each.name not in COUNTS]
    asked = asked.order_by(*keys).limit(MOST_SUMS).offset((page - 1) * MOST_SUMS)
    rows: Sequence[RowMapping] = (await connection.execute(asked)).mappings().all()
    return rows


def _sums(begin_ms: int, end_ms: int) -> Select[Any]:
    window = (ledger.c.received_ms - ledger.c.received_ms % _HOUR).label("window_ms")
    hour = (ledger.c.booked_ms - ledger.c.booked_ms % _HOUR).label("hour_ms")
    alike = [ledger.c[name] for name in (*ALIKE, *PRICES)]
    is_correction = ledger.c.corrects.is_not(None).label("is_correction")
    sums = [func.sum(ledger.c[name]).label(name) for name in COUNTS]
    return (
        select(window, hour, *alike, is_correction, *sums)
        .where(and_(ledger.c.received_ms >= begin_ms, ledger.c.received_ms < end_ms))
        .group_by(window, hour, *alike, is_correction)
    )


def _lines(row: RowMapping) -> Iterator[dict[str, Any]]:
    """Yield the sums of each kind of token and of seconds in a row, those of none left out."""
    prompt, cached, completion = (
        int(row[f"charged_{name}_tokens"] or 0) for name in ("prompt", "cached", "completion")
    )
    cached_nanousd = row["input_nanousd"] if row["cached_input_nanousd"] is None else row["cached_input_nanousd"]
    owner, adapter = row["adapter_owner"], row["adapter"]
    amounts = [
        ("prompt", prompt - cached, row["input_nanousd"], (prompt - cached) * row["input_nanousd"]),
        ("cached_prompt", cached, cached_nanousd, cached * cached_nanousd),
        ("completion", completion, row["output_nanousd"], completion * row["output_nanousd"]),
    ]
    rest = int(row["cost_nanousd"]) - sum(each[3] for each in amounts)
    for kind, quantity, unit, nanousd in (*amounts, ("replica_seconds", int(row["seconds"] or 0), None, rest)):
        if not quantity and not nanousd:
            continue
        facts = {
            "window_ms": int(row["window_ms"]),
            "hour_ms": int(row["hour_ms"]),
            "tenant": row["tenant"],
            "base": row["base"],
            "adapter": f"{owner}/{adapter}" if owner and adapter else adapter,
            "kind": kind,
            "price_version": row["price_version"],
            "unit_nanousd": unit,
            "deployment": row["deployment"],
            "is_correction": bool(row["is_correction"]),
        }
        yield {"id": _id(facts, row), **facts, "quantity": quantity, "nanousd": nanousd}


def _id(facts: Mapping[str, Any], row: RowMapping) -> str:
    # All that the rows are grouped by, so that two sums never have one id.
    whole = [*facts.values(), *(row[name] for name in (*ALIKE, *PRICES))]
    return f"mlu_{hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:40]}"


def _data(line: Mapping[str, Any]) -> dict[str, Any]:
    names = ("base", "adapter", "deployment", "kind", "quantity", "price_version", "unit_nanousd", "is_correction")
    return {name: line[name] for name in (*names, "nanousd")}


def _iso(moment_ms: int) -> str:
    return datetime.fromtimestamp(moment_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _cloud_event(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a CloudEvent (specification 1.0) as OpenMeter takes it: `subject` is the customer."""
    return {
        "specversion": "1.0",
        "id": line["id"],
        "source": SOURCE,
        "type": EVENT,
        "subject": line["tenant"],
        "time": _iso(line["hour_ms"]),
        "datacontenttype": "application/json",
        "data": _data(line),
    }


def _stripe_event(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a meter event of Stripe's API; the customer is the tenant's code, and `timestamp` is in seconds."""
    kept = {name: value for name, value in _data(line).items() if name != "quantity" and value is not None}
    payload = {"stripe_customer_id": line["tenant"], "value": str(line["quantity"])}
    payload |= {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in kept.items()}
    return {
        "event_name": STRIPE_EVENT,
        "identifier": line["id"],
        "timestamp": line["hour_ms"] // 1000,
        "payload": payload,
    }


def _table_row(line: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": line["id"], "hour": _iso(line["hour_ms"]), "tenant": line["tenant"], **_data(line)}
