"""Leases at once: however edges and shipments interleave, on either engine, no credit is promised twice."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from manylora.control.billing.ledger import insert_records
from manylora.control.billing.prices import set_price
from manylora.control.tenants.credit import balance_of, give_back_leases, grant_credit, lease_credit
from tests.conftest import long
from tests.control.plane import Plane, in_plane, record

CREDIT = 1000


@pytest.fixture
def run(url: URL, tmp_path: Path) -> Callable[..., None]:
    def go(scenario: Any) -> None:
        in_plane(url, tmp_path, scenario)

    return go


async def price_of_one(plane: Plane) -> None:
    """A base whose every token costs one nano-dollar."""
    now_ms = plane.control.now_ms()
    async with plane.control.database.write() as connection:
        await set_price(connection, "cheap", input_nanousd=1, output_nanousd=1, effective_ms=now_ms, now_ms=now_ms)


def test_twenty_edges_that_ask_at_once_are_granted_the_credit_and_no_more(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme", credit_nanousd=CREDIT)
        asked = (lease_credit(plane.control, f"edge-{number}", "acme", 90) for number in range(20))
        granted = [lease.granted_nanousd for lease in await asyncio.gather(*asked)]
        assert sorted(granted, reverse=True) == [*[90] * 11, 10, *[0] * 8]

    run(scenario)


def test_a_grant_that_is_sent_twice_at_once_counts_once(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme", credit_nanousd=0)

        async def grant() -> None:
            async with plane.control.database.write() as connection:
                await grant_credit(connection, "acme", 7, grant_id="paid-1", reason="paid", now_ms=1)

        await asyncio.gather(*(grant() for _ in range(8)))
        async with plane.control.database.read() as connection:
            assert (await balance_of(connection, "acme", plane.control.now_ms())).granted_nanousd == 7

    run(scenario)


@pytest.mark.parametrize("seed", [0, *long(1, 2)])
def test_edges_that_lease_spend_ship_and_leave_at_once_never_overspend(run: Callable[..., None], seed: int) -> None:
    """Each edge spends up to its lease, ships when it likes, then gives back: the ledger stays within the credit."""

    async def scenario(plane: Plane) -> None:
        await price_of_one(plane)
        await plane.new_tenant("acme", credit_nanousd=CREDIT, limits={"monthly_budget_nanousd": CREDIT - 100})

        async def edge(number: int) -> int:
            chance, spent, unshipped = random.Random(1000 * seed + number), 0, []
            for step in range(8):
                lease = await lease_credit(plane.control, f"edge-{number}", "acme", chance.randint(0, 120))
                cost = chance.randint(0, max(0, lease.granted_nanousd - spent))
                spent += cost
                values: dict[str, Any] = {
                    "edge": f"edge-{number}",
                    "base": "cheap",
                    "opened_ms": plane.control.now_ms(),
                    "charged_prompt_tokens": cost,
                    "charged_completion_tokens": 0,
                }
                unshipped.append(record(100 * number + step, **values))
                if chance.random() < 0.5:
                    await insert_records(plane.control, unshipped)
                    unshipped.clear()
            await insert_records(plane.control, unshipped)
            await give_back_leases(plane.control, f"edge-{number}")
            return spent

        spent = sum(await asyncio.gather(*(edge(number) for number in range(6))))
        async with plane.control.database.read() as connection:
            balance = await balance_of(connection, "acme", plane.control.now_ms())
        assert balance.charged_nanousd == spent
        assert 0 < spent <= CREDIT - 100
        assert balance.leased_nanousd == 0
        rest = await lease_credit(plane.control, "edge-last", "acme", CREDIT)
        assert rest.granted_nanousd == CREDIT - 100 - spent

    run(scenario)
