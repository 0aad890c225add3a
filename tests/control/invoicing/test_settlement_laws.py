"""The settlement of invoices, for every history: no debt is asked for twice or paid twice, and none is lost."""

import random
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import URL, Select, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.billing.ledger import correct
from manylora.control.invoicing.contents import BEFORE_WALLETS
from manylora.control.storage.invoice_tables import invoice_documents
from manylora.control.storage.tables import ledger
from manylora.control.storage.wallet_tables import debts, grants, wallet_entries
from manylora.control.tenants.credit import balance_of
from manylora.control.wallet.wallet import overdraft_of
from tests.conftest import long
from tests.control.invoicing.test_documents import COST, DAY_S, ROOT, act, draft, final, spend, to
from tests.control.plane import Plane, in_plane, migrated_in

UTC = ZoneInfo("UTC")


@pytest.fixture
def run(url: URL, tmp_path: Path) -> Callable[..., None]:
    def go(scenario: Any, **options: Any) -> None:
        in_plane(url, tmp_path, scenario, **options)

    return go


async def listed(plane: Plane) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await plane.call("GET", f"{ROOT}?limit=1000")).json()["invoices"]
    return found


async def pairs(connection: AsyncConnection, asked: Select[Any]) -> dict[Any, Any]:
    rows = (await connection.execute(asked)).all()
    return {row[0]: row[1] for row in rows}


async def check(plane: Plane) -> None:
    async with plane.control.database.read() as connection:
        owed = (await connection.execute(select(debts).where(debts.c.tenant == "acme"))).all()
        paying = select(wallet_entries.c.debt, func.sum(wallet_entries.c.nanousd)).where(
            wallet_entries.c.debt.is_not(None), wallet_entries.c.kind == "cover"
        )
        covers = await pairs(connection, paying.group_by(wallet_entries.c.debt))
        giving = select(wallet_entries.c.debt, -func.sum(wallet_entries.c.nanousd)).where(
            wallet_entries.c.debt.is_not(None), wallet_entries.c.kind == "settle"
        )
        given = await pairs(connection, giving.group_by(wallet_entries.c.debt))
        for debt in owed:
            paid = int(covers.get(debt.number, 0)) + int(given.get(debt.number, 0))
            assert debt.nanousd - paid == debt.left_nanousd >= 0, "each payment of a debt is one movement"
        overdraft = await overdraft_of(connection, "acme")
        assert sum(debt.left_nanousd for debt in owed) == overdraft
        left = func.coalesce(func.sum(grants.c.nanousd - grants.c.spent_nanousd - grants.c.expired_nanousd), 0)
        in_grants = int((await connection.execute(select(left))).scalar_one())
        balance = await balance_of(connection, "acme", plane.control.now_ms())
        assert balance.left_nanousd == in_grants - overdraft
        charged = int((await connection.execute(select(func.sum(ledger.c.cost_nanousd)))).scalar_one() or 0)
        assert balance.charged_nanousd == charged
        states = await pairs(connection, select(invoice_documents.c.id, invoice_documents.c.state))
        payments = (await connection.execute(select(grants).where(grants.c.kind == "payment"))).all()
        for payment in payments:
            own = select(debts.c.document, func.sum(wallet_entries.c.nanousd)).join(
                wallet_entries, wallet_entries.c.debt == debts.c.number
            )
            used = own.where(wallet_entries.c.grant_number == payment.number).group_by(debts.c.document)
            [(document, amount)] = (await connection.execute(used)).all()
            assert (payment.id, int(amount)) == (f"payment-{document}", payment.nanousd), "it pays its invoice alone"
    by_document: dict[str | None, int] = defaultdict(int)
    for debt in owed:
        by_document[debt.document] += debt.left_nanousd
    found = await listed(plane)
    opened = {each["id"]: each["open_nanousd"] for each in found if each["open_nanousd"]}
    assert opened == {name: amount for name, amount in by_document.items() if amount and name is not None}
    assert all(states[name] == "final" for name in opened)
    assert sum(opened.values()) + by_document[None] == overdraft


async def check_body(made: dict[str, Any]) -> None:
    body = made["document"]
    assert body["due_nanousd"] == body["subtotal_nanousd"] + sum(each["nanousd"] for each in body["credits"]) >= 0
    assert body["due_nanousd"] == made["open_nanousd"]
    assert BEFORE_WALLETS not in {each["grant"] for each in body["credits"]}


class History:
    """A tenant whose months pass; each act is drawn, and those that a state forbids are left out."""

    def __init__(self, plane: Plane, seed: int) -> None:
        self.plane, self.chance = plane, random.Random(seed)
        self.month, self.number = 3, 0
        self.rows: list[str] = []

    async def spend(self) -> None:
        numbers = [self.number + place for place in range(self.chance.randint(1, 2))]
        self.number += len(numbers)
        await spend(self.plane, *numbers)
        self.rows += [f"acme-{number}" for number in numbers]

    async def credit(self) -> None:
        self.number += 1
        amount = self.chance.choice([-COST, COST // 2, COST])
        body = {"id": f"credit-{self.number}", "nanousd": amount, "reason": "r"}
        assert (await self.plane.call("POST", "/admin/tenants/acme/credits", body)).is_success

    async def correct(self) -> None:
        if self.rows:
            row = self.rows.pop(self.chance.randrange(len(self.rows)))
            asked: dict[str, Any] = {"prompt_tokens": -self.chance.randint(1, 100), "completion_tokens": 0}
            name = f"back-{row}"
            await correct(self.plane.control, row, correction_id=name, reason="r", author="admin", **asked)

    async def finalise(self) -> None:
        self.month += 1
        to(self.plane, datetime(2031 + (self.month - 1) // 12, (self.month - 1) % 12 + 1, 2, tzinfo=UTC))
        live = [each for each in await listed(self.plane) if each["state"] in ("final", "paid")]
        begin = max((each["end"][:7] for each in live if each["kind"] == "invoice"), default="2031-03")
        made = await draft(self.plane, begin)
        if self.chance.random() < 0.2:
            assert (await self.plane.call("DELETE", f"{ROOT}/{made['id']}")).status_code == 204
        else:
            await check_body(await act(self.plane, f"/{made['id']}/finalise"))

    async def settle(self) -> None:
        invoices = [each for each in await listed(self.plane) if each["kind"] == "invoice"]
        if invoices:
            each = self.chance.choice(invoices)
            verb = self.chance.choice(["pay", "pay", "void"])
            await self.plane.call("POST", f"{ROOT}/{each['id']}/{verb}", {"note": "n"})

    async def note(self) -> None:
        invoices = [each for each in await listed(self.plane) if each["kind"] == "invoice"]
        if invoices:
            body = {"nanousd": self.chance.choice([1, COST // 3, COST]), "reason": "r"}
            await self.plane.call("POST", f"{ROOT}/{self.chance.choice(invoices)['id']}/credit-notes", body)


@pytest.mark.parametrize("seed", [0, *long(*range(1, 9))])
def test_open_amounts_and_other_debts_are_together_the_overdraft(run: Callable[..., None], seed: int) -> None:
    async def scenario(plane: Plane) -> None:
        to(plane, datetime(2031, 3, 30, tzinfo=UTC))
        await plane.new_tenant("acme", credit_nanousd=COST)
        history = History(plane, seed)
        acts = [history.spend] * 3 + [history.credit, history.correct, history.settle, history.note, history.finalise]
        for _ in range(16 if seed == 0 else 40):
            await history.chance.choice(acts)()
            await check(plane)

    run(scenario)


def test_a_payment_is_of_what_credit_and_credit_notes_left_open(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        to(plane, datetime(2031, 3, 31, tzinfo=UTC))
        await plane.new_tenant("acme", credit_nanousd=COST)
        await spend(plane, 1, 2, 3, 4)
        plane.clock.advance(2 * DAY_S)
        first = await final(plane, "2031-03")
        assert first["open_nanousd"] == 3 * COST
        await plane.call("POST", "/admin/tenants/acme/credits", {"id": "t", "nanousd": COST, "reason": "r"})
        await act(plane, f"/{first['id']}/credit-notes", {"nanousd": COST, "reason": "r"}, 201)
        to(plane, datetime(2031, 5, 2, tzinfo=UTC))
        second = await final(plane, "2031-04")
        assert (second["document"]["due_nanousd"], second["document"]["credits"]) == (0, []), "covered once, by March"
        shown = (await plane.call("GET", f"{ROOT}/{first['id']}")).json()
        assert (shown["open_nanousd"], shown["document"]["due_nanousd"]) == (COST, 3 * COST)
        paid = await act(plane, f"/{first['id']}/pay", {})
        assert (paid["state"], paid["open_nanousd"]) == ("paid", 0)
        wallet = (await plane.call("GET", "/admin/tenants/acme/wallet")).json()
        assert (wallet["balance"]["left_nanousd"], wallet["overdraft_nanousd"]) == (0, 0)
        await check(plane)

    in_plane(migrated_in(tmp_path), tmp_path, scenario)


def test_credit_notes_give_back_the_tax_of_the_amount_due_and_no_more(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        to(plane, datetime(2031, 3, 31, tzinfo=UTC))
        await plane.new_tenant("acme", credit_nanousd=100_000 * COST)
        await spend(plane, *range(3))
        big = 10**6 * 200
        await plane.call("POST", "/admin/tenants/acme/credits", {"id": "t", "nanousd": -100_000 * COST, "reason": "r"})
        for number in range(4, 8):
            await spend(plane, number, charged_prompt_tokens=10**6, charged_completion_tokens=0)
        plane.clock.advance(2 * DAY_S)
        first = await final(plane, "2031-03", tax_basis_points=1900)
        body = first["document"]
        assert body["due_nanousd"] == 4 * big
        assert first["open_usd"] == body["total_usd"]
        notes = []
        for part in (big // 3, big, body["subtotal_nanousd"] - big // 3 - big):
            note = await act(plane, f"/{first['id']}/credit-notes", {"nanousd": part, "reason": "r"}, 201)
            notes.append(note["document"])
            assert note["document"]["tax"]["basis_points"] == 1900
        assert sum(note["tax"]["nanousd"] for note in notes) == -body["tax"]["nanousd"] != 0
        shown = (await plane.call("GET", f"{ROOT}/{first['id']}")).json()
        assert (shown["open_nanousd"], shown["open_usd"]) == (0, "0.00")
        refused = await act(plane, f"/{first['id']}/credit-notes", {"nanousd": 1, "reason": "r"}, 422)
        assert "nothing of the invoice is left" in str(refused)

    in_plane(migrated_in(tmp_path), tmp_path, scenario)


def test_pages_of_invoices_have_each_once(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        to(plane, datetime(2031, 3, 31, tzinfo=UTC))
        for tenant in ("acme", "beta"):
            await plane.new_tenant(tenant, credit_nanousd=9 * COST)
            await spend(plane, 1, tenant=tenant)
        plane.clock.advance(2 * DAY_S)
        for tenant in ("acme", "beta"):
            made = await final(plane, "2031-03", tenant)
            for _ in range(3):
                await act(plane, f"/{made['id']}/credit-notes", {"nanousd": 1, "reason": "r"}, 201)
        for query, number in (("?limit=3", 8), ("?limit=3&tenant=beta", 4), ("?limit=8", 8)):
            ids: list[str] = []
            page = (await plane.call("GET", ROOT + query)).json()
            while True:
                ids += [each["id"] for each in page["invoices"]]
                if page["before"] is None:
                    break
                page = (await plane.call("GET", f"{ROOT}{query}&before={page['before']}")).json()
            assert len(ids) == len(set(ids)) == number
        for before in ("x", "1-inv", "9" * 30):
            refused = await plane.call("GET", f"{ROOT}?before={before}")
            assert (refused.status_code, "before" in refused.text) == (422, True)

    run(scenario)
