"""Invoices with numbers: gapless, exact, each row on one of them, and never changed once they are final."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import insert, select

from manylora.control.billing.ledger import correct, insert_records, pay_rows
from manylora.control.calendar import COMMIT_MS, SETTLING_MS
from manylora.control.storage.tables import ledger
from tests.control.plane import Plane, in_plane, migrated_in, record

COST = 110 * 200
ROOT = "/admin/billing/invoices"
DAY_S = 86_400
SETTLED_S = (SETTLING_MS + COMMIT_MS) / 1000


def to(plane: Plane, moment: datetime) -> None:
    plane.clock.advance(moment.timestamp() - plane.clock.wall_s())


async def spend(plane: Plane, *numbers: int, tenant: str = "acme", at: datetime | None = None, **changes: Any) -> None:
    opened_ms = plane.control.now_ms() if at is None else int(1000 * at.timestamp())
    records = [record(n, id=f"{tenant}-{n}", tenant=tenant, opened_ms=opened_ms, **changes) for n in numbers]
    await insert_records(plane.control, records)


async def act(plane: Plane, path: str = "", body: object = None, status: int = 200) -> dict[str, Any]:
    reply = await plane.call("POST", f"{ROOT}{path}", body)
    assert reply.status_code == status, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


async def draft(plane: Plane, month: str, tenant: str = "acme", status: int = 201, **more: Any) -> dict[str, Any]:
    return await act(plane, "", {"tenant": tenant, "month": month, **more}, status)


async def final(plane: Plane, month: str, tenant: str = "acme", **more: Any) -> dict[str, Any]:
    made = await draft(plane, month, tenant, **more)
    return await act(plane, f"/{made['id']}/finalise")


async def text_of(plane: Plane, invoice: str) -> str:
    reply = await plane.call("GET", f"{ROOT}/{invoice}/document?format=text")
    assert reply.status_code == 200, reply.text
    return reply.text


def test_each_row_is_on_one_invoice_of_its_zone_and_a_late_one_on_the_next(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        angeles = ZoneInfo("America/Los_Angeles")
        zone: dict[str, Any] = {"zone": "America/Los_Angeles"}
        to(plane, datetime(2031, 3, 15, tzinfo=angeles))
        await plane.new_tenant("acme", credit_nanousd=10**9)
        for number, moment in enumerate(
            (
                datetime(2031, 3, 31, 23, 59, 59, tzinfo=angeles),
                datetime(2031, 4, 1, 0, 0, 0, tzinfo=angeles),
                datetime(2031, 4, 30, 12, tzinfo=angeles),
            )
        ):
            to(plane, moment)
            await spend(plane, number)
        last = datetime(2031, 4, 30, 23, tzinfo=angeles)
        to(plane, datetime(2031, 5, 1, 0, 30, tzinfo=angeles))
        made = await draft(plane, "2031-04", **zone)
        refused = await act(plane, f"/{made['id']}/finalise", status=422)
        assert "may arrive until 2031-05-01T01:05:00-07:00" in str(refused)
        plane.clock.advance(SETTLED_S)
        april = (await act(plane, f"/{made['id']}/finalise"))["document"]
        assert (april["begin"], april["end"]) == ("2031-04-01T00:00:00-07:00", "2031-05-01T00:00:00-07:00")
        assert sum(line["quantity"] for line in april["lines"] if line["tokens"] == "prompt") == 200
        await spend(plane, 7, at=last)
        to(plane, datetime(2031, 6, 1, 3, tzinfo=angeles))
        may = (await final(plane, "2031-05", **zone))["document"]
        assert [(line["late"], line["nanousd"]) for line in may["lines"]] == [(True, 2000), (True, 20_000)]
        assert (april["subtotal_nanousd"], may["subtotal_nanousd"]) == (2 * COST, COST)
        assert "must begin at 2031-06-01" in str(await draft(plane, "2031-07", status=422, **zone))

    run(scenario)


def test_numbers_have_no_gap_and_a_final_document_never_changes(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        to(plane, datetime(2031, 3, 31, tzinfo=ZoneInfo("UTC")))
        names = [f"tenant-{number}" for number in range(5)]
        for name in names:
            await plane.new_tenant(name, credit_nanousd=COST)
            await spend(plane, 1, 2, tenant=name)
        plane.clock.advance(2 * DAY_S)
        drafts = [await draft(plane, "2031-03", name) for name in names]
        assert (await plane.call("DELETE", f"{ROOT}/{drafts[0]['id']}")).status_code == 204
        ids = [each["id"] for each in drafts[1:]]
        assert "a draft of 2031-04-02T" in await text_of(plane, ids[0]), "nothing is issued yet"
        made = await asyncio.gather(*(act(plane, f"/{each}/finalise") for each in ids))
        assert sorted(each["number"] for each in made) == [f"INV-{number:06d}" for number in range(1, 5)]
        first = made[0]
        assert "issued 2031-04-02T" in await text_of(plane, first["id"])
        assert first["document"]["due_nanousd"] == COST
        assert [(each["kind"], each["nanousd"]) for each in first["document"]["credits"]] == [("drawn", -COST)]
        await spend(plane, 9, tenant=first["tenant"])
        await act(plane, f"/{first['id']}/finalise", status=422)
        assert (await plane.call("DELETE", f"{ROOT}/{first['id']}")).status_code == 422
        paid = await act(plane, f"/{first['id']}/pay", {"note": "transfer 7"})
        await act(plane, f"/{first['id']}/void", {}, status=422)
        wallet = (await plane.call("GET", f"/admin/tenants/{first['tenant']}/wallet")).json()
        assert (wallet["balance"]["left_nanousd"], wallet["overdraft_nanousd"]) == (-COST, COST), "row 9 is owed"
        shown = (await plane.call("GET", f"{ROOT}/{first['id']}")).json()
        assert shown["document"] == first["document"] == paid["document"]
        assert (shown["state"], shown["note"]) == ("paid", "transfer 7")

    run(scenario)


def test_a_void_invoice_keeps_its_number_and_its_rows_go_to_the_next(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        to(plane, datetime(2031, 3, 31, tzinfo=ZoneInfo("UTC")))
        await plane.new_tenant("acme", credit_nanousd=COST)
        await spend(plane, 1)
        plane.clock.advance(2 * DAY_S)
        first = await final(plane, "2031-03")
        plane.clock.advance(30 * DAY_S)
        following = await draft(plane, "2031-04")
        refused = await act(plane, f"/{first['id']}/void", {"note": "wrong zone"}, 422)
        assert following["id"] in str(refused)
        assert (await plane.call("DELETE", f"{ROOT}/{following['id']}")).status_code == 204
        assert (await act(plane, f"/{first['id']}/void", {"note": "wrong zone"}))["state"] == "void"
        again = await final(plane, "2031-03")
        assert (first["number"], again["number"]) == ("INV-000001", "INV-000002")
        assert again["document"]["lines"] == first["document"]["lines"]
        listed = (await plane.call("GET", ROOT, None)).json()["invoices"]
        assert {each["number"]: each["state"] for each in listed} == {"INV-000001": "void", "INV-000002": "final"}

    in_plane(migrated_in(tmp_path), tmp_path, scenario)


def test_a_credit_note_gives_back_at_most_its_invoice_as_credit(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        to(plane, datetime(2031, 3, 31, tzinfo=ZoneInfo("UTC")))
        own = await plane.new_tenant("acme", credit_nanousd=COST)
        await spend(plane, 1)
        plane.clock.advance(2 * DAY_S)
        first = await final(plane, "2031-03")
        note = await act(plane, f"/{first['id']}/credit-notes", {"nanousd": COST - 1, "reason": "<b>sorry"}, 201)
        assert (note["number"], note["kind"], note["corrects"]) == ("INV-000002", "credit_note", first["id"])
        refused = await act(plane, f"/{first['id']}/credit-notes", {"nanousd": 2, "reason": "r"}, 422)
        assert "the rest of the invoice" in str(refused)
        await act(plane, f"/{first['id']}/void", {}, 422)
        balance = (await plane.call("GET", "/v1/account", key=own)).json()["balance"]
        assert balance["left_nanousd"] == COST - 1
        page = await plane.call("GET", f"/v1/account/billing/invoices/{note['id']}/document", key=own)
        assert "&lt;b&gt;sorry" in page.text
        assert page.headers["content-type"].startswith("text/html")
        text = await plane.call("GET", f"/v1/account/billing/invoices/{first['id']}/document?format=text", key=own)
        assert "Invoice INV-000001 for acme (acme)" in text.text

    in_plane(migrated_in(tmp_path), tmp_path, scenario)


def test_all_open_amounts_together_are_what_is_owed(tmp_path: Path) -> None:
    """Over overdrafts, grants that cover them, corrections and payments."""

    async def scenario(plane: Plane) -> None:
        to(plane, datetime(2031, 3, 31, tzinfo=ZoneInfo("UTC")))
        await plane.new_tenant("acme", credit_nanousd=COST)
        await spend(plane, 1, 2, 3)
        plane.clock.advance(2 * DAY_S)
        first = await final(plane, "2031-03")
        body = {"id": "top-up", "nanousd": COST, "reason": "paid"}
        await plane.call("POST", "/admin/tenants/acme/credits", body)
        for number, back in ((1, -10), (2, -100)):
            await correct(
                plane.control,
                f"acme-{number}",
                correction_id=f"back-{number}",
                prompt_tokens=back,
                completion_tokens=0,
                reason="too much",
                author="admin",
            )
        to(plane, datetime(2031, 5, 2, tzinfo=ZoneInfo("UTC")))
        second = await final(plane, "2031-04", tax_basis_points=1900)
        wallet = (await plane.call("GET", "/admin/tenants/acme/wallet")).json()
        assert first["document"]["due_nanousd"] == 2 * COST
        again = (await plane.call("GET", f"{ROOT}/{first['id']}")).json()
        assert (again["open_nanousd"], second["open_nanousd"]) == (wallet["overdraft_nanousd"], 0)
        lines = [(each["kind"], each["nanousd"]) for each in second["document"]["credits"]]
        assert lines == [("offset", 110 * 200)], "the corrections of April paid debts of March"
        assert second["document"]["subtotal_nanousd"] == -110 * 200
        await act(plane, f"/{first['id']}/pay", {})
        assert (await plane.call("GET", "/admin/tenants/acme/wallet")).json()["overdraft_nanousd"] == 0

    in_plane(migrated_in(tmp_path), tmp_path, scenario)


def test_the_seconds_of_a_deployment_have_a_line_with_their_exact_cost(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        to(plane, datetime(2031, 3, 31, tzinfo=ZoneInfo("UTC")))
        await plane.new_tenant("acme", credit_nanousd=COST)
        await spend(plane, 1)
        async with plane.control.database.write() as connection:
            [row] = (await connection.execute(select(ledger))).mappings().all()
            changes = {"id": "seconds", "number": None, "seconds": 7, "hourly_nanousd": 1000, "cost_nanousd": 1}
            counts = dict.fromkeys((name for name in row if name.startswith("charged_")), 0)
            values = {**row, **changes, **counts, "deployment": "ours"}
            del values["number"]
            await connection.execute(insert(ledger).values(values))
            await pay_rows(connection, [values], plane.control.now_ms())
        plane.clock.advance(2 * DAY_S)
        body = (await final(plane, "2031-03"))["document"]
        [line] = [each for each in body["lines"] if each["tokens"] == "replica_seconds"]
        assert (line["quantity"], line["hourly_nanousd"], line["nanousd"], line["deployment"]) == (7, 1000, 1, "ours")
        assert (body["subtotal_nanousd"], body["due_nanousd"]) == (COST + 1, 1)
        exported = (await plane.call("GET", "/admin/billing/exports/meter")).json()["events"]
        assert sum(each["data"]["nanousd"] for each in exported) == COST + 1

    in_plane(migrated_in(tmp_path), tmp_path, scenario)


def test_another_tenants_invoice_and_a_draft_are_unknown_to_a_caller(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        to(plane, datetime(2031, 3, 31, tzinfo=ZoneInfo("UTC")))
        own, other = await plane.new_tenant("acme"), await plane.new_tenant("beta")
        plane.clock.advance(2 * DAY_S)
        made = await draft(plane, "2031-03")
        path = f"/v1/account/billing/invoices/{made['id']}"
        assert (await plane.call("GET", path, key=own)).status_code == 404
        await act(plane, f"/{made['id']}/finalise")
        assert (await plane.call("GET", path, key=own)).status_code == 200
        for ending in ("", "/document"):
            assert (await plane.call("GET", path + ending, key=other)).status_code == 404
        assert (await plane.call("GET", "/v1/account/billing/invoices", key=other)).json()["invoices"] == []

    in_plane(migrated_in(tmp_path), tmp_path, scenario)
