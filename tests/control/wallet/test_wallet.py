"""Wallets over the routes and in the database: terms of grants, what edges lease of them, and the sums in SQL."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import case, func, select

from manylora.control.billing.ledger import correct, insert_records
from manylora.control.storage.tables import ledger
from manylora.control.storage.wallet_tables import grants, wallet_entries, wallet_holds
from manylora.control.tenants.credit import balance_of, give_back_leases, lease_credit, sweep_wallets
from manylora.control.wallet.book import SPENDING, USING, EntryKind
from manylora.control.wallet.wallet import overdraft_of
from tests.conftest import long
from tests.control.plane import Plane, in_plane, migrated_in, record

COST = 110 * 200
"""Of a record at the shipped price."""
DAY_S = 86_400


async def give(plane: Plane, name: str, nanousd: int, **terms: Any) -> None:
    body = {"id": name, "nanousd": nanousd, "reason": "a test", **terms}
    reply = await plane.call("POST", "/admin/tenants/acme/credits", body)
    assert reply.status_code == 201, reply.text


async def wallet_of(plane: Plane) -> dict[str, Any]:
    """The wallet as the route shows it, after the law of its sums was checked."""
    await check_sums(plane)
    body: dict[str, Any] = (await plane.call("GET", "/admin/tenants/acme/wallet")).json()
    return body


async def check_sums(plane: Plane) -> None:
    """What was granted is what was spent, what expired and the balance; the stored sums are those of the entries."""
    own = wallet_entries.c.tenant == "acme"

    def sum_of(*kinds: EntryKind) -> Any:
        amount = case((wallet_entries.c.kind.in_([kind.value for kind in kinds]), wallet_entries.c.nanousd), else_=0)
        return func.coalesce(func.sum(amount), 0)

    kinds = (sum_of(EntryKind.GRANT), sum_of(*SPENDING), sum_of(EntryKind.EXPIRE))
    async with plane.control.database.read() as connection:
        row = (await connection.execute(select(*kinds).where(own))).one()
        granted, spent, expired = map(int, row)
        left = func.coalesce(func.sum(grants.c.nanousd - grants.c.spent_nanousd - grants.c.expired_nanousd), 0)
        in_grants = int((await connection.execute(select(left).where(grants.c.tenant == "acme"))).scalar_one())
        owed = await overdraft_of(connection, "acme")
        assert granted == spent + expired + in_grants - owed
        charged = select(func.coalesce(func.sum(ledger.c.cost_nanousd), 0)).where(ledger.c.tenant == "acme")
        balance = await balance_of(connection, "acme", plane.control.now_ms())
        assert balance.charged_nanousd == int((await connection.execute(charged)).scalar_one())
        by_grant = (
            select(wallet_entries.c.grant_number, sum_of(*USING), sum_of(EntryKind.EXPIRE))
            .where(own, wallet_entries.c.grant_number.is_not(None))
            .group_by(wallet_entries.c.grant_number)
        )
        sums = {number: (int(used), int(ended)) for number, used, ended in (await connection.execute(by_grant)).all()}
        stored = select(grants.c.number, grants.c.spent_nanousd, grants.c.expired_nanousd)
        rows = (await connection.execute(stored.where(grants.c.tenant == "acme"))).all()
        assert sums == {row.number: (row.spent_nanousd, row.expired_nanousd) for row in rows}
        # What has ended and is not booked yet is no part of the balance.
        assert balance.left_nanousd <= in_grants - owed
        held = select(func.coalesce(func.sum(wallet_holds.c.nanousd), 0)).where(wallet_holds.c.tenant == "acme")
        assert balance.leased_nanousd <= int((await connection.execute(held)).scalar_one())


def test_a_sign_ups_credit_is_free_and_expires_and_the_operators_does_not(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        signed = await plane.call("POST", "/v1/signup", {"id": "acme"}, key=None)
        own = signed.json()["key"]["key"]
        await give(plane, "paid-1", 7)
        body = (await plane.call("GET", "/v1/account/wallet", key=own)).json()
        assert [(each["kind"], each["expires"] is None) for each in body["grants"]] == [("free", False), ("paid", True)]
        plane.clock.advance(90 * DAY_S - 1)
        assert (await wallet_of(plane))["balance"]["left_nanousd"] == 25 * 10**9 + 7
        plane.clock.advance(1)
        body = await wallet_of(plane)
        assert (body["balance"]["left_nanousd"], body["balance"]["expired_nanousd"]) == (7, 25 * 10**9)
        assert await sweep_wallets(plane.control) == 1
        assert await sweep_wallets(plane.control) == 0
        assert await wallet_of(plane) | {"grants": []} == body | {"grants": []}
        kinds = [
            each["kind"] for each in (await plane.call("GET", "/v1/account/wallet/entries", key=own)).json()["entries"]
        ]
        assert kinds == ["expire", "grant", "grant"]

    run(scenario, settings={"control.signup_open": True})


def test_a_lease_draws_grants_in_order_and_outlives_their_end_by_what_it_holds(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme", credit_nanousd=0)
        await give(plane, "last", 10 * COST)
        await give(plane, "first", COST, priority=1)
        await give(plane, "ends", 3 * COST, expires_in_s=60)
        opened_ms = plane.control.now_ms()
        assert (await lease_credit(plane.control, "edge-1", "acme", 2 * COST)).granted_nanousd == 2 * COST
        held = {each["id"]: each["held_nanousd"] for each in (await wallet_of(plane))["grants"]}
        assert held == {"first": COST, "ends": COST, "last": 0}
        plane.clock.advance(60)
        balance = (await wallet_of(plane))["balance"]
        assert (balance["expired_nanousd"], balance["left_nanousd"]) == (2 * COST, 12 * COST)
        again = await lease_credit(plane.control, "edge-2", "acme", 11 * COST)
        assert again.granted_nanousd == 10 * COST, "the part that edge-1 holds is no other edge's"
        await insert_records(plane.control, [record(n, opened_ms=opened_ms) for n in (1, 2)])
        spent = {each["id"]: each["spent_nanousd"] for each in (await wallet_of(plane))["grants"]}
        assert spent == {"first": COST, "ends": COST, "last": 0}
        await give_back_leases(plane.control, "edge-2")
        await sweep_wallets(plane.control)
        body = await wallet_of(plane)
        assert body["balance"]["left_nanousd"] == 10 * COST
        assert sum(each["held_nanousd"] for each in body["grants"]) == 0

    run(scenario)


def test_what_an_ended_lease_gives_back_of_an_ended_grant_expires(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme", credit_nanousd=0)
        await give(plane, "ends", COST, expires_in_s=60)
        await lease_credit(plane.control, "edge-1", "acme", COST)
        plane.clock.advance(60)
        assert (await wallet_of(plane))["balance"]["expired_nanousd"] == 0
        plane.clock.advance(plane.control.config.control.lease_s)
        assert (await wallet_of(plane))["balance"]["expired_nanousd"] == COST
        await insert_records(plane.control, [record(1, opened_ms=plane.control.now_ms())])
        body = await wallet_of(plane)
        assert (body["balance"]["left_nanousd"], body["overdraft_nanousd"]) == (-COST, COST)
        await give(plane, "paid", 3 * COST)
        body = await wallet_of(plane)
        assert (body["balance"]["left_nanousd"], body["overdraft_nanousd"]) == (2 * COST, 0)

    run(scenario)


def test_pages_of_grants_have_each_once_in_the_order_of_drawing_and_used_ones_last(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme", credit_nanousd=0)
        await give(plane, "used", COST, priority=1)
        await insert_records(plane.control, [record(1, opened_ms=plane.control.now_ms())])
        for name, terms in {"third": {"expires_in_s": 60}, "last": {}, "first": {"priority": 2}, "later": {}}.items():
            await give(plane, name, COST, **terms)
        whole = await wallet_of(plane)
        assert (whole["has_more"], whole["after"]) == (False, None)
        names, after = list[str](), ""
        while after is not None:
            page = (await plane.call("GET", f"/admin/tenants/acme/wallet?limit=2&after={after}")).json()
            assert page["has_more"] == (page["after"] is not None)
            names += [each["id"] for each in page["grants"]]
            after = page["after"]
        assert names == [each["id"] for each in whole["grants"]] == ["first", "third", "last", "later", "used"]
        for strange in ("x", "0_1_2", "2_1_1_1", "0_1_1_" + "9" * 19):
            reply = await plane.call("GET", f"/admin/tenants/acme/wallet?after={strange}")
            assert (reply.status_code, "`after`" in reply.text) == (422, True)

    run(scenario)


def test_a_correction_that_gives_back_pays_what_is_owed_and_becomes_a_grant(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme", credit_nanousd=COST)
        await insert_records(plane.control, [record(n, opened_ms=plane.control.now_ms()) for n in (1, 2)])
        for number, tokens in ((1, -100), (2, -100)):
            await correct(
                plane.control,
                f"usage-{number}",
                correction_id=f"back-{number}",
                prompt_tokens=tokens,
                completion_tokens=-10,
                reason="charged twice",
                author="admin",
            )
            assert (await wallet_of(plane))["balance"]["left_nanousd"] == (number - 1) * COST
        assert [each["kind"] for each in (await wallet_of(plane))["grants"]] == ["refund", "paid"]

    run(scenario)


@pytest.mark.parametrize("seed", [0, *long(1, 2, 3)])
def test_the_sums_hold_at_every_step_of_a_random_history(run: Callable[..., None], seed: int) -> None:
    async def scenario(plane: Plane) -> None:
        chance = random.Random(seed)
        await plane.new_tenant("acme", credit_nanousd=COST)
        for step in range(14):
            edge = f"edge-{chance.randrange(3)}"
            match chance.randrange(6):
                case 0:
                    lasts_s = chance.choice([None, 5, 30])
                    amount = chance.choice([-COST, COST, 3 * COST])
                    await give(plane, f"grant-{step}", amount, priority=chance.randint(1, 3), expires_in_s=lasts_s)
                case 1 | 2:
                    await lease_credit(plane.control, edge, "acme", chance.randint(0, 2 * COST))
                case 3 | 4:
                    opened_ms = plane.control.now_ms()
                    rows = [record(10 * step + n, edge=edge, opened_ms=opened_ms) for n in range(chance.randint(1, 3))]
                    await asyncio.gather(*(insert_records(plane.control, rows) for _ in range(2)))
                case _:
                    await give_back_leases(plane.control, edge)
            plane.clock.advance(chance.choice([0, 1, 7]))
            await check_sums(plane)

    run(scenario, settings={"control.lease_s": 10, "control.snapshot_max_age_s": 5})


def test_terms_out_of_range_are_refused_by_name(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        for name, value in {"priority": 0, "expires_in_s": 0, "kind": "refund"}.items():
            body = {"id": "x", "nanousd": 1, "reason": "r", name: value}
            reply = await plane.call("POST", "/admin/tenants/acme/credits", body)
            assert reply.status_code in (400, 422)
            assert name in reply.text

    in_plane(migrated_in(tmp_path), tmp_path, scenario)
