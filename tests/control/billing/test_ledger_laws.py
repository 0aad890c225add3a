"""The law of the ledger: whatever way records come, and however often, they are what they are once."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, delete, select, update

from manylora.control.billing.invoice_forms import render
from manylora.control.billing.invoices import invoice_rows, make_invoice
from manylora.control.billing.ledger import insert_records
from manylora.control.billing.prices import set_price
from manylora.control.calendar import month_of
from manylora.control.storage.tables import leases, ledger, prices, spending, tenants
from manylora.control.storage.wallet_tables import debts, grants, wallet_entries, wallet_holds, wallets
from manylora.control.tenants.credit import balance_of, lease_credit
from manylora.usage import UsageRecord
from tests.control.plane import Plane, record, standing_plane

HOUR_MS = 3_600_000
MONTH_MS = 31 * 24 * HOUR_MS
EDGES = ("edge-1", "edge-2")
MADE_BY_RECORDS = ("nobody", "Acme")
TENANTS = ("acme", *MADE_BY_RECORDS)
RECORDS = st.lists(
    st.fixed_dictionaries(
        {
            "tenant": st.sampled_from(TENANTS),
            "edge": st.sampled_from(EDGES),
            "base": st.sampled_from(("Mistral-7b-instruct", "changing", "unpriced")),
            "adapter": st.sampled_from((None, "triage/1", "triage/2")),
            "after_ms": st.sampled_from((0, HOUR_MS - 1, HOUR_MS, MONTH_MS)),
            "charged_prompt_tokens": st.integers(0, 10**9),
            "charged_completion_tokens": st.integers(0, 10**9),
            "first_token_ms": st.none() | st.floats(0, 1e6),
        }
    ),
    max_size=10,
)
SHIPMENTS = st.lists(st.lists(st.integers(0, 9), max_size=8), max_size=6)
"""Each of the records of these numbers, in this order."""


async def begin_afresh(plane: Plane) -> None:
    """An empty ledger, and a base whose price changes after an hour."""
    now_ms = plane.control.now_ms()
    async with plane.control.database.write() as connection:
        for table in (ledger, spending, leases, debts, wallet_holds, wallet_entries, wallets):
            await connection.execute(delete(table))
        await connection.execute(update(grants).values(spent_nanousd=0, expired_nanousd=0))
        await connection.execute(delete(tenants).where(tenants.c.id.in_(MADE_BY_RECORDS)))
        if (await connection.execute(select(prices).where(prices.c.base == "changing"))).first() is None:
            for after_ms, amount in ((0, 3), (HOUR_MS, 70)):
                await set_price(
                    connection,
                    "changing",
                    input_nanousd=amount,
                    output_nanousd=2 * amount,
                    effective_ms=now_ms + after_ms,
                    now_ms=now_ms,
                )
        known = (await connection.execute(select(tenants.c.id))).scalars().all()
    if "acme" not in known:
        await plane.new_tenant("acme")


async def books(plane: Plane) -> dict[str, Any]:
    """All that the control plane says of money, without the order in which rows came and when."""
    found: dict[str, Any] = {}
    now_ms = plane.control.now_ms()
    async with plane.control.database.read() as connection:
        rows = (await connection.execute(select(ledger).order_by(ledger.c.id))).mappings()
        found["ledger"] = [{**row, "number": None, "received_ms": None} for row in rows]
        columns = (spending.c.tenant, spending.c.edge, spending.c.month)
        found["spending"] = (await connection.execute(select(spending).order_by(*columns))).all()
        states = select(tenants.c.id, tenants.c.state).order_by(tenants.c.id)
        found["tenants"] = (await connection.execute(states)).all()
        for tenant in TENANTS:
            asked = select(grants.c.id, grants.c.spent_nanousd).where(grants.c.tenant == tenant).order_by(grants.c.id)
            found[f"grants of {tenant}"] = (await connection.execute(asked)).all()
            found[f"balance of {tenant}"] = await balance_of(connection, tenant, now_ms)
            for month in (month_of(now_ms), month_of(now_ms + MONTH_MS)):
                lines = await invoice_rows(connection, tenant, month)
                invoice = make_invoice(tenant, tenant, month, lines, is_preliminary=False)
                found[f"invoice of {tenant} for {month}"] = render(invoice, "json")
    # Of nothing more: what an edge may spend that asks now.
    found["lease"] = await lease_credit(plane.control, EDGES[0], "acme", 0)
    return found


async def ship(plane: Plane, shipments: Sequence[Sequence[UsageRecord]], *, is_at_once: bool) -> int:
    """Hand shipments over, one after the other or all at once; returns how many records were new."""
    if is_at_once:
        return sum(await asyncio.gather(*(insert_records(plane.control, each) for each in shipments)))
    return sum([await insert_records(plane.control, each) for each in shipments])


async def replay(
    plane: Plane, drawn: Sequence[dict[str, Any]], shipments: Sequence[Sequence[int]], *, is_at_once: bool
) -> None:
    now_ms = plane.control.now_ms()
    records = []
    for number, values in enumerate(drawn):
        own = {name: value for name, value in values.items() if name != "after_ms"}
        records.append(record(number, opened_ms=now_ms + values["after_ms"], **own))
    await begin_afresh(plane)
    assert await insert_records(plane.control, records) == len(records)
    once = await books(plane)
    assert len(once["ledger"]) == len(records)

    await begin_afresh(plane)
    picked = [[records[number] for number in each if number < len(records)] for each in shipments]
    assert await ship(plane, picked, is_at_once=is_at_once) == len(records)
    assert await books(plane) == once
    assert await ship(plane, picked, is_at_once=is_at_once) == 0
    assert await books(plane) == once


@pytest.mark.parametrize("examples", [7, pytest.param(20, marks=pytest.mark.long)])
def test_replaying_the_spool_changes_nothing_in_the_ledger(url: URL, tmp_path: Path, examples: int) -> None:
    """Split, repeated and shuffled in any way, at once or not: rows, sums, balances and invoices are the same."""
    with standing_plane(url, tmp_path) as (runner, plane):

        @settings(max_examples=examples, derandomize=True)
        @given(drawn=RECORDS, some=SHIPMENTS, all_of_them=st.permutations(range(10)), is_at_once=st.booleans())
        def law(drawn: list[dict[str, Any]], some: list[list[int]], all_of_them: list[int], is_at_once: bool) -> None:
            runner.run(replay(plane, drawn, [*some, all_of_them], is_at_once=is_at_once))

        law()
