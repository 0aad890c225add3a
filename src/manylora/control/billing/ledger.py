"""The ledger: one row for each request, inserted once by its id, never changed; a correction is a further row.

A correction belongs to the month in which it is made, so that a closed month never changes.
"""

import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.billing.prices import price_versions
from manylora.control.budgets.spending import count_rows
from manylora.control.calendar import booked_ms_of, month_of
from manylora.control.control import Control
from manylora.control.key_uses import note_uses
from manylora.control.storage.locks import lock_tenants
from manylora.control.storage.tables import ledger, spending, tenants
from manylora.control.tenants.audit import Actor, on_the_machine, record
from manylora.control.tenants.credit import MOST_NANOUSD
from manylora.control.tenants.tenants import insert_tenant, is_unlimited
from manylora.control.wallet.wallet import Wallet
from manylora.errors import InvalidParameter, NameTaken, ResourceNotFound
from manylora.money import cost_nanousd
from manylora.tenancy import PriceFacts, TenantState, price_at
from manylora.usage import UsageRecord

log = logging.getLogger(__name__)

MAX_COUNT = 2**53
"""Limit of the tokens in one record."""
Spender = tuple[str, str, str, int]
"""Tenant, key or empty, edge or empty, month."""
MAX_REASON = 200
"""Limit in characters."""
TOLD_OF_A_CORRECTION = (
    *("id", "charged_prompt_tokens", "charged_cached_tokens", "charged_completion_tokens"),
    *("reason", "cost_nanousd"),
)
"""Fields of a correction in the audit table."""
OPERATOR = "admin"
"""Author of a correction without a key."""


async def insert_records(control: Control, records: Sequence[UsageRecord]) -> int:
    """Price records and insert unknown ones; return the number of new rows.

    A record is never refused, since it is money. A record of an unknown tenant creates that tenant: closed, so that
    the operator notices it, or active on a control plane without keys.
    """
    if not records:
        return 0
    async with control.database.write() as connection:
        payers = await _know_tenants(control, connection, {record.tenant for record in records})
        await lock_tenants(connection, set(payers.values()))
        versions = await price_versions(connection)
        free = frozenset(control.config.control.free_bases)
        batch_percent = control.config.control.batch_price_percent
        rows = {
            record.id: _row(record, _price_of(record, versions, free, batch_percent), control.now_ms())
            | {"tenant": payers[record.tenant]}
            for record in sorted(
                records, key=lambda record: record.id
            )  # in a fixed order, so that two shipments cannot deadlock
        }
        # The rows are parameters: a statement that holds 500 rows has 15,000 parts to compile for each shipment.
        inserting = control.database.insert_once(ledger).returning(ledger.c.id)
        new = (await connection.execute(inserting, list(rows.values()))).scalars().all()
        spent: Counter[Spender] = Counter()
        for row in map(rows.__getitem__, new):
            spent[row["tenant"], row["key"] or "", row["edge"], month_of(row["booked_ms"])] += row["cost_nanousd"]
        await add_spending(control, connection, spent)
        added = [rows[each] for each in sorted(new)]
        await pay_rows(connection, added, control.now_ms())
        await count_rows(control.database, connection, added, control.now_ms())
        await note_uses(connection, _last_uses(rows[each] for each in new))
    return len(new)


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """Tokens charged in addition to those of a row, or given back by negative counts, at the row's own price.

    id             chosen by the caller; a repeated correction changes nothing
    corrects       id of the corrected row, which is no correction itself
    cached_tokens  part of `prompt_tokens` at the cached price. None: as few as possible, so that the more expensive
                   tokens are given back
    reason         1 to `MAX_REASON` characters, not all of them blank
    """

    id: str
    corrects: str
    prompt_tokens: int
    completion_tokens: int
    reason: str
    cached_tokens: int | None = None


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
    cached_tokens: int | None = None,
) -> str:
    """Add a row for a correction and return its author; for a repeated correction return the earlier author.

    Args:    as in `Correction`
             author  id of the key that orders it, or `OPERATOR`
             actor   actor for the audit table; None: an operator on the machine of the database
    Raises:  `ResourceNotFound` for an unknown row, `NameTaken` if another correction or row has that id,
             `InvalidParameter`
    """
    wanted = Correction(
        id=correction_id,
        corrects=record_id,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        reason=reason,
        cached_tokens=cached_tokens,
    )
    _check(wanted)
    async with control.database.write() as connection:
        # The lock orders corrections of one row, so that together they give back no more than was charged.
        asked = select(ledger).where(ledger.c.id == record_id).with_for_update()
        found = (await connection.execute(asked)).mappings().one_or_none()
        # Every writer locks the tenant before the sums of its spending.
        await lock_tenants(connection, [] if found is None else [found["tenant"]])
        if (made := await _made_before(connection, wanted)) is not None:
            return made
        if found is None:
            raise ResourceNotFound(f"there is no record `{record_id[:80]}` in the ledger")
        row = await _correction_row(connection, dict(found), wanted, author, control.now_ms())
        inserting = control.database.insert_once(ledger).values(row).returning(ledger.c.id)
        if (await connection.execute(inserting)).first() is None:
            made = await _made_before(connection, wanted)
            assert made is not None, "a row of this id came between, and is there now"
            return made
        # No edge spent it: the row changes the balance and the month's spending, not a lease.
        spender = (row["tenant"], row["key"] or "", "", month_of(row["booked_ms"]))
        await add_spending(control, connection, Counter({spender: row["cost_nanousd"]}))
        await pay_rows(connection, [row | {"edge": ""}], control.now_ms())
        await count_rows(control.database, connection, [row], control.now_ms())
        told = {name: row[name] for name in TOLD_OF_A_CORRECTION}
        actor = actor or on_the_machine(control)
        await record(connection, actor, "correct", "record", record_id, tenant=row["tenant"], after=told)
    return author


def _last_uses(rows: Iterable[dict[str, Any]]) -> list[tuple[str, int]]:
    """Return the last use of each key that rows name."""
    last: dict[str, int] = {}
    for row in rows:
        if row["key"] is not None:
            last[row["key"]] = max(row["opened_ms"], last.get(row["key"], 0))
    return list(last.items())


def _check(wanted: Correction) -> None:
    """Raise `InvalidParameter` for values that no row can hold."""
    counts = (wanted.prompt_tokens, wanted.completion_tokens, wanted.cached_tokens or 0)
    if max(map(abs, counts)) > MAX_COUNT:
        raise InvalidParameter(f"a correction is of at most {MAX_COUNT} tokens", parameter="prompt_tokens")
    if not wanted.reason.strip() or len(wanted.reason) > MAX_REASON:
        raise InvalidParameter(f"`reason` must have 1 to {MAX_REASON} characters", parameter="reason")


async def _made_before(connection: AsyncConnection, wanted: Correction) -> str | None:
    """Return the author of a repeated correction; None for a new id. Raise `NameTaken` for another row of that id."""
    row = (await connection.execute(select(ledger).where(ledger.c.id == wanted.id))).mappings().one_or_none()
    if row is None:
        return None
    if row["corrects"] is None:
        raise NameTaken(f"`{wanted.id[:80]}` is the id of a request's row; give the correction another", parameter="id")
    cached = row["charged_cached_tokens"]
    compared = {
        "corrects": (wanted.corrects, row["corrects"]),
        "prompt_tokens": (wanted.prompt_tokens, row["charged_prompt_tokens"]),
        "cached_tokens": (cached if wanted.cached_tokens is None else wanted.cached_tokens, cached),
        "completion_tokens": (wanted.completion_tokens, row["charged_completion_tokens"]),
        "reason": (wanted.reason.strip(), row["reason"]),
    }
    for name, (given, known) in compared.items():
        if given != known:
            raise NameTaken(
                f"`{wanted.id[:80]}` is the id of another correction, whose `{name}` is {known!r}. Given: {given!r}",
                parameter="id",
            )
    return row["author"] or OPERATOR


async def _correction_row(
    connection: AsyncConnection, old: dict[str, Any], wanted: Correction, author: str, now_ms: int
) -> dict[str, Any]:
    """Return the row that corrects another. Raise `InvalidParameter`."""
    if old["corrects"] is not None:
        raise InvalidParameter(
            f"`{wanted.corrects[:80]}` is a correction itself; correct the row `{old['corrects']}` again",
            parameter="corrects",
        )
    if old["seconds"] is not None:
        raise InvalidParameter(
            f"`{wanted.corrects[:80]}` bills seconds of a deployment, and no tokens; give credit back in its place",
            parameter="corrects",
        )
    cached_tokens = await _cached_of(connection, old, wanted)
    cached_nanousd = old["input_nanousd"] if old["cached_input_nanousd"] is None else old["cached_input_nanousd"]
    cost = cost_nanousd(
        prompt_tokens=wanted.prompt_tokens,
        cached_tokens=cached_tokens,
        completion_tokens=wanted.completion_tokens,
        input_nanousd=old["input_nanousd"],
        cached_input_nanousd=cached_nanousd,
        output_nanousd=old["output_nanousd"],
    )
    if abs(cost) > MOST_NANOUSD:
        raise InvalidParameter(
            f"a correction is of at most {MOST_NANOUSD} nano-dollars. Given: {cost}", parameter="prompt_tokens"
        )
    return {name: value for name, value in old.items() if name != "number"} | {
        "id": wanted.id,
        "opened_ms": now_ms,
        "booked_ms": now_ms,
        "prompt_tokens": 0,
        "cached_tokens": 0,
        "completion_tokens": 0,
        "charged_prompt_tokens": wanted.prompt_tokens,
        "charged_cached_tokens": cached_tokens,
        "charged_completion_tokens": wanted.completion_tokens,
        "num_sequences": 0,
        "finish_reason": "correction",
        "cost_nanousd": cost,
        "corrects": wanted.corrects,
        "corrects_month": month_of(old["booked_ms"]),
        "reason": wanted.reason.strip(),
        "author": author,
        "received_ms": now_ms,
        "alias": old["alias"],
        "is_shadow": old["is_shadow"],
    }


async def _cached_of(connection: AsyncConnection, row: dict[str, Any], wanted: Correction) -> int:
    """Return the number of a correction's prompt tokens that are cached.

    Raises `InvalidParameter` where a row and all its corrections together would charge less than nothing.
    """
    names = ("prompt", "cached", "completion")
    sums = [func.coalesce(func.sum(ledger.c[f"charged_{name}_tokens"]), 0).label(name) for name in names]
    so_far = (await connection.execute(select(*sums).where(ledger.c.corrects == row["id"]))).mappings().one()
    left = {name: row[f"charged_{name}_tokens"] + int(so_far[name]) for name in names}
    uncached = left["prompt"] - left["cached"]
    _require_left("prompt_tokens", left["prompt"], wanted.prompt_tokens)
    _require_left("completion_tokens", left["completion"], wanted.completion_tokens)
    if wanted.cached_tokens is None:
        return int(min(0, uncached + wanted.prompt_tokens))
    _require_left("cached_tokens", left["cached"], wanted.cached_tokens)
    if uncached + wanted.prompt_tokens - wanted.cached_tokens < 0:
        raise InvalidParameter(
            f"`prompt_tokens` less `cached_tokens` may give back at most the {uncached} tokens that are charged and "
            f"not cached. Given: {wanted.prompt_tokens - wanted.cached_tokens}",
            parameter="prompt_tokens",
        )
    return wanted.cached_tokens


def _require_left(parameter: str, left: int, change: int) -> None:
    if left + change < 0:
        raise InvalidParameter(
            f"`{parameter}` may give back at most the {left} tokens that are charged. Given: {change}",
            parameter=parameter,
        )


async def add_spending(control: Control, connection: AsyncConnection, spent: Counter[Spender]) -> None:
    """Add amounts to the sums of `spending`, in the transaction of their rows."""
    for spender, cost in sorted(spent.items()):  # in a fixed order, so that two transactions cannot deadlock
        values = dict(zip(("tenant", "key", "edge", "month"), spender, strict=True))
        await connection.execute(control.database.insert_once(spending).values(**values, cost_nanousd=0))
        matching = [spending.c[name] == value for name, value in values.items()]
        added = update(spending).where(*matching).values(cost_nanousd=spending.c.cost_nanousd + cost)
        await connection.execute(added)


async def pay_rows(connection: AsyncConnection, rows: Sequence[dict[str, Any]], now_ms: int) -> None:
    """Pay new rows of the ledger from the wallets of their tenants, whose locks the transaction holds."""
    costly: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["cost_nanousd"] and not is_unlimited(row["tenant"]):
            costly[row["tenant"]].append(row)
    for tenant in sorted(costly):
        wallet = await Wallet.opened(connection, tenant, now_ms)
        for row in costly[tenant]:
            await wallet.charge(row["edge"], row["cost_nanousd"], row["id"], row["reason"] or "", row["corrects"])
        await wallet.save()


async def _know_tenants(control: Control, connection: AsyncConnection, wanted: set[str]) -> dict[str, str]:
    """Return the paying tenant for each code in records: codes that differ in case alone are one tenant's."""
    payers = await _payers(connection, wanted)
    for tenant in sorted(wanted - payers.keys()):
        if tenant.lower() in {known.lower() for known in payers}:
            payers |= await _payers(connection, {tenant})
            continue
        state = TenantState.ACTIVE
        if control.is_key_needed:
            state = TenantState.CLOSED
            log.error("ledger.unknown_tenant tenant=%s: made, closed, to keep its usage", tenant)
        with contextlib.suppress(NameTaken):  # another shipment has created it meanwhile
            await insert_tenant(connection, tenant, now_ms=control.now_ms(), state=state)
        payers |= await _payers(connection, {tenant})
    return payers


async def _payers(connection: AsyncConnection, wanted: set[str]) -> dict[str, str]:
    """Return, for known tenants, the code in a record → the tenant's own code."""
    asked = select(tenants.c.id).where(func.lower(tenants.c.id).in_({name.lower() for name in wanted}))
    known = {tenant.lower(): str(tenant) for tenant in (await connection.execute(asked)).scalars()}
    return {name: known[name.lower()] for name in wanted if name.lower() in known}


def _price_of(
    record: UsageRecord, versions: Sequence[PriceFacts], free: frozenset[str], batch_percent: int
) -> PriceFacts | None:
    is_free = record.base in free or record.deployment is not None  # the seconds of a deployment are billed
    price = None if is_free else price_at(versions, record.base, record.opened_ms)
    return price.at_percent(batch_percent) if price is not None and record.is_batch else price


def _row(record: UsageRecord, price: PriceFacts | None, now_ms: int) -> dict[str, Any]:
    input_nanousd = price.input_nanousd if price else 0
    output_nanousd = price.output_nanousd if price else 0
    cached_nanousd, cached_tokens = price.cached_nanousd if price else 0, record.cached_charge
    cost = cost_nanousd(
        prompt_tokens=record.charged_prompt_tokens,
        cached_tokens=cached_tokens,
        completion_tokens=record.charged_completion_tokens,
        input_nanousd=input_nanousd,
        cached_input_nanousd=cached_nanousd,
        output_nanousd=output_nanousd,
    )
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
        "charged_cached_tokens": cached_tokens,
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
        "cached_input_nanousd": cached_nanousd,
        "cost_nanousd": cost,
        "corrects": None,
        "corrects_month": None,
        "reason": None,
        "author": None,
        "received_ms": now_ms,
        "alias": record.alias,
        "is_shadow": record.is_shadow,
        "deployment": record.deployment,
    }


def _microseconds(duration_ms: float | None) -> int | None:
    return None if duration_ms is None else round(1000 * duration_ms)
