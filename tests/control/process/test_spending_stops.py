"""Budgets of deployments: seconds count in those of the tenant and of the key that pays, and a used up one stops."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, event, select

from manylora.control.deployments.stops import SpendingStops
from manylora.control.storage.placement_tables import deployment_payers
from manylora.control.storage.tables import deployments, ledger
from tests.control.plane import Plane, in_plane
from tests.control.process.placing_site import CREDIT, SECOND, Site, at_a_site

BUDGETS: dict[str, tuple[dict[str, bool] | None, str]] = {
    "of the tenant": ({}, "the budget `b` of"),
    "of the key": ({"key": True}, "the budget `b` of"),
    "of the key's month": (None, "which pays for it"),
    "of the tenant's month": (None, "its tenant's budget of the month"),
}


@pytest.mark.parametrize("cause", BUDGETS)
def test_a_used_up_budget_stops_it_and_refuses_another(url: URL, tmp_path: Path, cause: str) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(minReplicas=1)
        call, key_id, (fields, told) = site.plane.call, site.key.split("_")[1], BUDGETS[cause]
        if fields is not None:
            body = {"name": "b", "limit_nanousd": 20 * SECOND, **({"key": key_id} if fields else {})}
            made = await call("POST", "/admin/tenants/acme/budgets", body)
        else:
            place = f"keys/{key_id}" if "key" in cause else "tenants/acme"
            made = await call("PUT", f"/admin/{place}/limits", {"monthly_budget_nanousd": 20 * SECOND})
        assert made.is_success, made.text
        await site.start()
        await site.rounds(10)
        await site.placing.bill(site.plane.control.now_ms())
        await site.rounds(1)
        assert await site.status() == "ready"
        await site.rounds(15)
        await site.placing.bill(site.plane.control.now_ms())
        await site.rounds(1, 1)
        shown = await site.shown()
        assert (shown["status"], len(site.placer.drained), site.placer.killed) == ("stopped", 1, [])
        assert told in shown["statusDetail"]
        body = {"name": "more", "config": {"baseModel": "Tiny-Base"}}
        refused = await call("POST", "/v2/deployments", body, key=site.key)
        assert (refused.status_code, told in refused.text) == (429, True), refused.text
        for budget in (await call("GET", "/v1/account/budgets", key=site.key)).json()["budgets"]:
            assert (budget["alerts"], budget["stopped"]) == ([50, 80, 100], True)

    at_a_site(url, tmp_path, scenario)


def test_a_key_without_manage_makes_no_deployment_and_the_last_changer_pays(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(minReplicas=0)
        call = site.plane.call
        body: dict[str, Any] = {"name": "loader", "scopes": ["read", "upload"]}
        loader = (await call("POST", "/v1/account/keys", body, key=site.key)).json()["key"]
        asked = {"name": "more", "config": {"baseModel": "Tiny-Base"}}
        for method, path, sent in (
            ("POST", "/v2/deployments", asked),
            ("PUT", "/v2/deployments/mine", {"config": {"minReplicas": 1}}),
        ):
            assert (await call(method, path, sent, key=loader)).status_code == 403
        second = (await call("POST", "/v1/account/keys", {"name": "two", "scopes": ["manage"]}, key=site.key)).json()
        for change, payer in (({"description": "d"}, site.key), ({"config": {"minReplicas": 1}}, second["key"])):
            assert (await call("PUT", "/v2/deployments/mine", change, key=second["key"])).status_code == 200
            async with site.plane.control.database.read() as connection:
                row = (await connection.execute(select(deployments))).one()
            assert row.key == payer.split("_")[1]

    at_a_site(url, tmp_path, scenario)


def test_a_change_of_no_setting_changes_no_payer(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(minReplicas=1)
        asked = {"name": "two", "scopes": ["manage"]}
        two = (await site.plane.call("POST", "/v1/account/keys", asked, key=site.key)).json()["key"]
        for change in ({"description": "words"}, {"config": {"minReplicas": 1}}):
            changed = await site.plane.call("PUT", "/v2/deployments/mine", change, key=two)
            assert changed.status_code == 200, changed.text
        async with site.plane.control.database.read() as connection:
            payers = (await connection.execute(select(deployment_payers.c.key))).scalars().all()
        assert payers == [site.key.split("_")[1]]

    at_a_site(url, tmp_path, scenario)


def test_a_second_goes_to_the_key_that_paid_as_it_began(url: URL, tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await site.deploy(minReplicas=1)
        asked = {"name": "two", "scopes": ["manage"]}
        two = (await site.plane.call("POST", "/v1/account/keys", asked, key=site.key)).json()["key"]
        await site.start()
        await site.rounds(10)
        for key, pause in ((two, 7), (site.key, 5), (two, 6)):  # between two bills
            change = {"config": {"cooldownTime": 600 + pause}}
            changed = await site.plane.call("PUT", "/v2/deployments/mine", change, key=key)
            assert changed.status_code == 200, changed.text
            await site.rounds(pause)
        await site.placing.bill(site.plane.control.now_ms())
        await site.plane.call("PUT", "/v2/deployments/mine", {"config": {"cooldownTime": 600}}, key=site.key)
        async with site.plane.control.database.read() as connection:
            rows = (await connection.execute(select(ledger).order_by(ledger.c.number))).all()
            payers = (await connection.execute(select(deployment_payers.c.key))).scalars().all()
        first, second = site.key.split("_")[1], two.split("_")[1]
        assert [(row.key, row.seconds) for row in rows] == [(first, 10), (second, 7), (first, 5), (second, 6)]
        assert [row.cost_nanousd for row in rows] == [10 * SECOND + 1, 7 * SECOND, 5 * SECOND + 1, 6 * SECOND + 1]
        assert payers == [first]  # what is billed needs no other

    at_a_site(url, tmp_path, scenario)


def test_more_tenants_and_keys_take_no_more_statements(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        rows: list[dict[str, Any]] = []
        budgets: tuple[dict[str, Any], ...] = (
            {"limit_nanousd": 0},
            {"limit_nanousd": 0, "hard": False},
            {"limit_nanousd": 0, "adapter": "triage"},
            {"limit_nanousd": 1},
        )
        for number, budget in enumerate(budgets):
            credit = 0 if number == 3 else CREDIT
            code = f"t{number}"
            key = (await plane.new_tenant(code, credit_nanousd=credit)).split("_")[1]
            made = await plane.call("POST", f"/admin/tenants/{code}/budgets", {"name": "b", **budget})
            assert made.status_code == 201, made.text
            rows += [{"number": 10 * number + each, "tenant": code, "key": key if each else None} for each in range(2)]
        statements = list[str]()

        def note(*arguments: Any) -> None:
            statements.append(arguments[2])

        stops, now_ms = SpendingStops(plane.control), plane.control.now_ms()
        await stops.reasons(rows, now_ms)  # it tells the stop of the first budget
        event.listen(plane.control.database._engine.sync_engine, "before_cursor_execute", note)
        few = await stops.reasons(rows[:2], now_ms)
        assert sorted(few) == [0, 1]
        number = len(statements)
        statements.clear()
        found = await stops.reasons(rows, now_ms)
        assert len(statements) == number
        assert found == few | dict.fromkeys((30, 31), "its tenant has no credit left")

    in_plane(url, tmp_path, scenario)
