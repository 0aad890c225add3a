"""The ledger: one row a request, inserted once by its id and never changed; a correction is a row more.

A correction belongs to the moment at which it is made, so that no month that is over ever changes by one.
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.audit import Actor, on_the_machine, record
from manylora.control.control import Control
from manylora.control.credit import MOST_NANOUSD
from manylora.control.keys import note_uses
from manylora.control.months import booked_ms_of, month_of
from manylora.control.prices import price_at, price_versions
from manylora.control.tables import ledger, spending, tenants
from manylora.control.tenants import insert_tenant
from manylora.errors import InvalidParameter, NameTaken, ResourceNotFound
from manylora.tenancy import PriceFacts, TenantState
from manylora.usage import UsageRecord

log = logging.getLogger(__name__)

MAX_COUNT = 2**53
"""Of tokens in one record: above it, it is no count."""
Spender = tuple[str, str, str, int]
"""Tenant, key or empty, edge or empty, month."""
MAX_REASON = 200
"""Characters."""
OPERATOR = "admin"
"""The author of what is done where nobody is asked for a key."""


async def insert_records(control: Control, records: Sequence[UsageRecord]) -> int:
    """Price records and insert those that are not there; returns how many were new.

    A record is money: it is never refused. One of a tenant that is not known makes that tenant: closed, so that a
    person looks, or active where no keys are needed and anybody may name himself.
    """
    if not records:
        return 0
    async with control.database.write() as connection:
        payers = await _know_tenants(control, connection, {record.tenant for record in records})
        versions = await price_versions(connection)
        free = frozenset(control.config.control.free_bases)
        rows = {
            record.id: _row(record, _price_of(record, versions, free), control.now_ms())
            | {"tenant": payers[record.tenant]}
            for record in sorted(records, key=lambda record: record.id)  # in one order, so that no two shipments block
        }
        inserting = control.database.insert_once(ledger).values(list(rows.values())).returning(ledger.c.id)
        new = (await connection.execute(inserting)).scalars().all()
        spent: Counter[Spender] = Counter()
        for row in map(rows.__getitem__, new):
            spent[row["tenant"], row["key"] or "", row["edge"], month_of(row["booked_ms"])] += row["cost_nanousd"]
        await _add_spending(control, connection, spent)
        await note_uses(connection, _last_uses(rows[each] for each in new))
    return len(new)


async def correct(
    control: Control,
    record_id: str,
    *,
    correction_id: str,
    prompt_tokens: int,
    completion_tokens: int,
    reason: str,
    author: str,
    actor: Actor | None = None,
) -> None:
    """Add a row, now, that charges (or, below zero, gives back) tokens at the price of the row it corrects.

    Args:    reason  1 to `MAX_REASON` characters, not all of them blank
             author  the id of the key that wants it, or `OPERATOR`
             actor   who asks, for the audit table; None: an operator with the database in hand
    Raises:  `ResourceNotFound` for a row that is not there, `NameTaken` if a row of that id is, `InvalidParameter`
    """
    if abs(prompt_tokens) > MAX_COUNT or abs(completion_tokens) > MAX_COUNT:
        raise InvalidParameter(f"a correction is of at most {MAX_COUNT} tokens", parameter="prompt_tokens")
    if not reason.strip() or len(reason) > MAX_REASON:
        raise InvalidParameter(f"`reason` must have 1 to {MAX_REASON} characters", parameter="reason")
    async with control.database.write() as connection:
        # One correction of a row at a time, so that together they give back no more than was charged.
        asked = select(ledger).where(ledger.c.id == record_id).with_for_update()
        found = (await connection.execute(asked)).mappings().one_or_none()
        if found is None:
            raise ResourceNotFound(f"there is no record `{record_id[:80]}` in the ledger")
        old: dict[str, Any] = dict(found)
        if old["corrects"] is not None:
            raise InvalidParameter(
                f"`{record_id[:80]}` is a correction itself; correct the row `{old['corrects']}` again",
                parameter="corrects",
            )
        if (await connection.execute(select(ledger.c.id).where(ledger.c.id == correction_id))).first() is not None:
            raise _taken(correction_id)
        await _require_charged(connection, old, prompt_tokens, completion_tokens)
        cost = prompt_tokens * old["input_nanousd"] + completion_tokens * old["output_nanousd"]
        if abs(cost) > MOST_NANOUSD:
            raise InvalidParameter(
                f"a correction is of at most {MOST_NANOUSD} nano-dollars. Given: {cost}", parameter="prompt_tokens"
            )
        now_ms = control.now_ms()
        row = {name: value for name, value in old.items() if name != "number"} | {
            "id": correction_id,
            "opened_ms": now_ms,
            "booked_ms": now_ms,
            "prompt_tokens": 0,
            "cached_tokens": 0,
            "completion_tokens": 0,
            "charged_prompt_tokens": prompt_tokens,
            "charged_completion_tokens": completion_tokens,
            "num_sequences": 0,
            "finish_reason": "correction",
            "cost_nanousd": cost,
            "corrects": record_id,
            "corrects_month": month_of(old["booked_ms"]),
            "reason": reason.strip(),
            "author": author,
            "received_ms": now_ms,
        }
        inserting = control.database.insert_once(ledger).values(row).returning(ledger.c.id)
        if (await connection.execute(inserting)).first() is None:
            raise _taken(correction_id)
        # No edge spent it: what it changes is the balance and the month's budget, not a lease.
        spender = (old["tenant"], old["key"] or "", "", month_of(now_ms))
        await _add_spending(control, connection, Counter({spender: cost}))
        told = {name: row[name] for name in ("id", "charged_prompt_tokens", "charged_completion_tokens", "reason")}
        told["cost_nanousd"] = cost
        actor = actor or on_the_machine(control)
        await record(connection, actor, "correct", "record", record_id, tenant=old["tenant"], after=told)


def _last_uses(rows: Iterable[dict[str, Any]]) -> list[tuple[str, int]]:
    """Of the keys that rows name: when each was last used."""
    last: dict[str, int] = {}
    for row in rows:
        if row["key"] is not None:
            last[row["key"]] = max(row["opened_ms"], last.get(row["key"], 0))
    return list(last.items())


def _taken(correction_id: str) -> NameTaken:
    return NameTaken(f"there is a row `{correction_id[:80]}` already", parameter="id")


async def _require_charged(
    connection: AsyncConnection, row: dict[str, Any], prompt_tokens: int, completion_tokens: int
) -> None:
    """Raises `InvalidParameter` where a row and all its corrections together would charge less than nothing."""
    changes = {"charged_prompt_tokens": prompt_tokens, "charged_completion_tokens": completion_tokens}
    sums = [func.coalesce(func.sum(ledger.c[name]), 0).label(name) for name in changes]
    so_far = (await connection.execute(select(*sums).where(ledger.c.corrects == row["id"]))).mappings().one()
    for name, change in changes.items():
        left = row[name] + int(so_far[name])
        if left + change < 0:
            parameter = name.removeprefix("charged_")
            raise InvalidParameter(
                f"`{parameter}` may give back at most the {left} tokens that are charged. Given: {change}",
                parameter=parameter,
            )


async def _add_spending(control: Control, connection: AsyncConnection, spent: Counter[Spender]) -> None:
    for spender, cost in sorted(spent.items()):  # in one order, so that no two wait for each other
        values = dict(zip(("tenant", "key", "edge", "month"), spender, strict=True))
        await connection.execute(control.database.insert_once(spending).values(**values, cost_nanousd=0))
        matching = [spending.c[name] == value for name, value in values.items()]
        added = update(spending).where(*matching).values(cost_nanousd=spending.c.cost_nanousd + cost)
        await connection.execute(added)


async def _know_tenants(control: Control, connection: AsyncConnection, wanted: set[str]) -> dict[str, str]:
    """Each tenant named by records, as the one that pays: codes that differ by case alone are one tenant's."""
    payers = await _payers(connection, wanted)
    for tenant in sorted(wanted - payers.keys()):
        if tenant.lower() in {known.lower() for known in payers}:
            payers |= await _payers(connection, {tenant})
            continue
        state = TenantState.ACTIVE
        if control.is_key_needed:
            state = TenantState.CLOSED
            log.error("ledger.unknown_tenant tenant=%s: made, closed, to keep its usage", tenant)
        with contextlib.suppress(NameTaken):  # then another shipment has made it meanwhile
            await insert_tenant(connection, tenant, now_ms=control.now_ms(), state=state)
        payers |= await _payers(connection, {tenant})
    return payers


async def _payers(connection: AsyncConnection, wanted: set[str]) -> dict[str, str]:
    """Of tenants that are there: the code as a record has it → as it was given."""
    asked = select(tenants.c.id).where(func.lower(tenants.c.id).in_({name.lower() for name in wanted}))
    known = {tenant.lower(): str(tenant) for tenant in (await connection.execute(asked)).scalars()}
    return {name: known[name.lower()] for name in wanted if name.lower() in known}


def _price_of(record: UsageRecord, versions: Sequence[PriceFacts], free: frozenset[str]) -> PriceFacts | None:
    return None if record.base in free else price_at(versions, record.base, record.opened_ms)


def _row(record: UsageRecord, price: PriceFacts | None, now_ms: int) -> dict[str, Any]:
    input_nanousd = price.input_nanousd if price else 0
    output_nanousd = price.output_nanousd if price else 0
    cost = record.charged_prompt_tokens * input_nanousd + record.charged_completion_tokens * output_nanousd
    return {
        "id": record.id,
        "tenant": record.tenant,
        "key": record.key,
        "request_id": record.request_id,
        "edge": record.edge,
        "base": record.base,
        "adapter": record.adapter,
        "adapter_source": record.adapter_source,
        "adapter_owner": record.adapter_owner,
        "adapter_digest": record.adapter_digest,
        "opened_ms": record.opened_ms,
        "booked_ms": booked_ms_of(record.opened_ms, now_ms),
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "completion_tokens": record.completion_tokens,
        "charged_prompt_tokens": record.charged_prompt_tokens,
        "charged_completion_tokens": record.charged_completion_tokens,
        "num_sequences": record.num_sequences,
        "finish_reason": record.finish_reason,
        "tier": record.tier,
        "queue_us": _microseconds(record.queue_ms),
        "load_us": _microseconds(record.load_ms),
        "first_token_us": _microseconds(record.first_token_ms),
        "total_us": _microseconds(record.total_ms),
        "price_version": price.version if price else None,
        "input_nanousd": input_nanousd,
        "output_nanousd": output_nanousd,
        "cost_nanousd": cost,
        "corrects": None,
        "corrects_month": None,
        "reason": None,
        "author": None,
        "received_ms": now_ms,
    }


def _microseconds(duration_ms: float | None) -> int | None:
    return None if duration_ms is None else round(1000 * duration_ms)
