"""The ledger: one row a request, inserted once by its id and never changed; a correction is a row more."""

import contextlib
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.control import Control
from manylora.control.months import month_of
from manylora.control.prices import price_at, price_versions
from manylora.control.tables import ledger, spending, tenants
from manylora.control.tenants import insert_tenant
from manylora.errors import InvalidParameter, NameTaken, ResourceNotFound
from manylora.tenancy import PriceFacts, TenantState
from manylora.usage import UsageRecord

log = logging.getLogger(__name__)

MAX_COUNT = 2**53
"""Of tokens in one record: above it, it is no count."""


async def insert_records(control: Control, records: Sequence[UsageRecord]) -> int:
    """Price records and insert those that are not there; returns how many were new.

    A record is money: it is never refused. One of a tenant that is not known makes that tenant: closed, so that a
    person looks, or active where no keys are needed and anybody may name himself.
    """
    if not records:
        return 0
    async with control.database.write() as connection:
        await _know_tenants(control, connection, {record.tenant for record in records})
        versions = await price_versions(connection)
        free = frozenset(control.config.control.free_bases)
        rows = {
            record.id: _row(record, _price_of(record, versions, free), control.now_ms())
            for record in sorted(records, key=lambda record: record.id)  # in one order, so that no two shipments block
        }
        inserting = control.database.insert_once(ledger).values(list(rows.values())).returning(ledger.c.id)
        new = (await connection.execute(inserting)).scalars().all()
        spent: Counter[tuple[str, str, int]] = Counter()
        for row in map(rows.__getitem__, new):
            spent[row["tenant"], row["edge"], month_of(row["opened_ms"])] += row["cost_nanousd"]
        await _add_spending(control, connection, spent)
    return len(new)


async def correct(
    control: Control,
    record_id: str,
    *,
    correction_id: str,
    prompt_tokens: int,
    completion_tokens: int,
) -> None:
    """Add a row that charges (or, below zero, gives back) tokens at the price of the row it corrects.

    Raises `ResourceNotFound` for a row that is not there, `NameTaken` if a correction of that id is.
    """
    if abs(prompt_tokens) > MAX_COUNT or abs(completion_tokens) > MAX_COUNT:
        raise InvalidParameter(f"a correction is of at most {MAX_COUNT} tokens", parameter="prompt_tokens")
    async with control.database.write() as connection:
        found = (await connection.execute(select(ledger).where(ledger.c.id == record_id))).one_or_none()
        if found is None:
            raise ResourceNotFound(f"there is no record `{record_id[:80]}` in the ledger")
        if (await connection.execute(select(ledger.c.id).where(ledger.c.id == correction_id))).first() is not None:
            raise NameTaken(f"there is a row `{correction_id[:80]}` already", parameter="id")
        old: dict[str, Any] = dict(zip(found._fields, found, strict=True))
        cost = prompt_tokens * old["input_nanousd"] + completion_tokens * old["output_nanousd"]
        row = {name: value for name, value in old.items() if name != "number"} | {
            "id": correction_id,
            "prompt_tokens": 0,
            "cached_tokens": 0,
            "completion_tokens": 0,
            "charged_prompt_tokens": prompt_tokens,
            "charged_completion_tokens": completion_tokens,
            "num_sequences": 0,
            "finish_reason": "correction",
            "cost_nanousd": cost,
            "corrects": record_id,
            "received_ms": control.now_ms(),
        }
        await connection.execute(insert(ledger).values(row))
        # No edge spent it: what it changes is the balance, not a lease.
        await _add_spending(control, connection, Counter({(old["tenant"], "", month_of(old["opened_ms"])): cost}))


async def _add_spending(control: Control, connection: AsyncConnection, spent: Counter[tuple[str, str, int]]) -> None:
    for (tenant, edge, month), cost in sorted(spent.items()):  # in one order, so that no two wait for each other
        key = {"tenant": tenant, "edge": edge, "month": month}
        await connection.execute(control.database.insert_once(spending).values(**key, cost_nanousd=0))
        matching = [spending.c[name] == value for name, value in key.items()]
        added = update(spending).where(*matching).values(cost_nanousd=spending.c.cost_nanousd + cost)
        await connection.execute(added)


async def _know_tenants(control: Control, connection: AsyncConnection, wanted: set[str]) -> None:
    known = set((await connection.execute(select(tenants.c.id).where(tenants.c.id.in_(wanted)))).scalars())
    for tenant in sorted(wanted - known):
        state = TenantState.ACTIVE
        if control.is_key_needed:
            state = TenantState.CLOSED
            log.error("ledger.unknown_tenant tenant=%s: made, closed, to keep its usage", tenant)
        with contextlib.suppress(NameTaken):  # then another shipment has made it meanwhile
            await insert_tenant(connection, tenant, now_ms=control.now_ms(), state=state, is_case_told_apart=True)


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
        "received_ms": now_ms,
    }


def _microseconds(duration_ms: float | None) -> int | None:
    return None if duration_ms is None else round(1000 * duration_ms)
