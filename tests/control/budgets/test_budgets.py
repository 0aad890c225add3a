"""Budgets: what counts against them, what they refuse on every edge, and the alerts of each period."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import select

from manylora.control.billing.ledger import insert_records
from manylora.control.billing.prices import set_price
from manylora.control.edges.snapshot import take_snapshot
from manylora.control.storage.budget_tables import budget_alerts
from manylora.control.storage.wallet_tables import wallet_holds
from manylora.control.tenants.credit import UNLIMITED_NANOUSD, lease_credit
from manylora.control.zones import PeriodKind, month_in, period_at
from manylora.errors import InvalidParameter, QuotaExhausted
from manylora.ids import KeyId, TenantId
from manylora.server.access.credit import LeasedCredit
from manylora.tenancy import BudgetFacts, PriceFacts, called_adapter
from tests.conftest import long
from tests.control.billing.test_ledger_and_credit import Client
from tests.control.plane import Plane, in_plane, migrated_in, record

COST = 110 * 200
"""Of a record at the shipped price."""
PRICE = PriceFacts(base="cheap", version=1, effective_ms=0, input_nanousd=1, output_nanousd=1)
ACME = TenantId("acme")


async def begin(plane: Plane) -> str:
    """A tenant with credit and a base of one nano-dollar a token; returns its key's text."""
    now_ms = plane.control.now_ms()
    async with plane.control.database.write() as connection:
        await set_price(connection, "cheap", input_nanousd=1, output_nanousd=1, effective_ms=now_ms, now_ms=now_ms)
    return await plane.new_tenant("acme", credit_nanousd=10**9)


async def spend(plane: Plane, number: int, cost: int, **changes: Any) -> None:
    usage: dict[str, Any] = {"base": "cheap", "charged_prompt_tokens": cost, "charged_completion_tokens": 0}
    await insert_records(plane.control, [record(number, opened_ms=plane.control.now_ms(), **usage, **changes)])


async def budget_of(plane: Plane, **fields: Any) -> dict[str, Any]:
    reply = await plane.call("POST", "/admin/tenants/acme/budgets", {"name": "team", "limit_nanousd": 100} | fields)
    assert reply.status_code == 201, reply.text
    body: dict[str, Any] = reply.json()
    return body


async def states(plane: Plane) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await plane.call("GET", "/admin/tenants/acme/budgets")).json()["budgets"]
    return found


def test_a_tenants_budget_of_a_day_bounds_all_edges_and_begins_anew_at_midnight_of_its_zone(
    run: Callable[..., None],
) -> None:
    async def scenario(plane: Plane) -> None:
        await begin(plane)
        made = await budget_of(plane, period="day", zone="Asia/Kathmandu")
        leased_of = [LeasedCredit(Client(plane), plane.clock, edge=f"edge-{n}", lease_nanousd=10) for n in range(2)]
        for leased, cost in ((leased_of[0], 60), (leased_of[1], 40)):
            held = await leased.hold(ACME, PRICE, prompt_tokens=cost, budget_tokens=0)
            assert held is not None
            held.settle(cost, 0)
        for leased in leased_of:
            with pytest.raises(QuotaExhausted) as refused:
                await leased.hold(ACME, PRICE, prompt_tokens=1, budget_tokens=0)
            for word in ("`team`", "$0.0000001", "a day", made["end"], "Asia/Kathmandu"):
                assert word in refused.value.message
        await spend(plane, 1, 60, edge="edge-0")
        await spend(plane, 2, 40, edge="edge-1")
        [state] = await states(plane)
        assert (state["spent_nanousd"], state["alerts"], state["stopped"]) == (100, [50, 80, 100], True)
        midnight = datetime.fromisoformat(made["end"])
        assert (midnight.hour, midnight.minute) == (0, 0)
        plane.clock.advance(midnight.timestamp() - plane.clock.wall_s())
        [state] = await states(plane)
        assert (state["spent_nanousd"], state["alerts"], state["stopped"]) == (0, [], False)
        for leased in leased_of:
            assert await leased.hold(ACME, PRICE, prompt_tokens=50, budget_tokens=0) is not None

    run(scenario)


@pytest.mark.parametrize("of", ["key", "adapter"])
def test_a_budget_of_a_key_or_an_adapter_bounds_its_own_requests_alone(run: Callable[..., None], of: str) -> None:
    async def scenario(plane: Plane) -> None:
        own = await begin(plane)
        key = own.split("_")[1]
        await spend(plane, 1, 30, key=key)
        made = await budget_of(plane, **({"key": key} if of == "key" else {"adapter": "triage"}))
        assert made["spent_nanousd"] == 30, "what came before counts"
        snapshot = await take_snapshot(plane.control, -1)
        [facts] = next(each for each in snapshot.tenants if each.id == "acme").budgets
        assert facts.covers(KeyId(key), "triage/2")
        assert not facts.covers(KeyId("another1"), "other")
        leased_of = [LeasedCredit(Client(plane), plane.clock, edge=f"edge-{n}", lease_nanousd=10) for n in range(2)]

        async def hold(number: int, cost: int, budgets: tuple[str, ...] = (facts.id,)) -> Any:
            return await leased_of[number].hold(ACME, PRICE, prompt_tokens=cost, budget_tokens=0, budgets=budgets)

        (await hold(0, 40)).settle(40, 0)
        plane.clock.advance(1)
        await spend(plane, 2, 40, key=key, edge="edge-0")
        (await hold(1, 25)).settle(25, 0)
        for number in (0, 1):
            with pytest.raises(QuotaExhausted, match="the budget `team`"):
                await hold(number, 6)
            assert await hold(number, 500, ()) is not None, "other requests go on"
        await spend(plane, 3, 500, key=None, adapter="other/1")
        [state] = await states(plane)
        assert (state["spent_nanousd"], state["alerts"]) == (70, [50])
        assert (await plane.call("DELETE", f"/admin/budgets/{made['id']}")).status_code == 204
        snapshot = await take_snapshot(plane.control, snapshot.revision, plane.control.epoch)
        assert snapshot.tenants[0].budgets == ()

    run(scenario)


def test_a_budget_stops_no_request_that_has_begun(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        await begin(plane)
        await budget_of(plane)
        leased = LeasedCredit(Client(plane), plane.clock, edge="edge-1", lease_nanousd=10)
        running = await leased.hold(ACME, PRICE, prompt_tokens=60, budget_tokens=0)
        await spend(plane, 1, 40, edge="edge-2")
        with pytest.raises(QuotaExhausted):
            await leased.hold(ACME, PRICE, prompt_tokens=1, budget_tokens=0)
        assert running is not None
        running.settle(60, 0)
        await spend(plane, 2, 60)
        [state] = await states(plane)
        assert (state["spent_nanousd"], state["left_nanousd"]) == (100, 0)

    in_plane(migrated_in(tmp_path), tmp_path, scenario)


def test_alerts_come_once_a_period_however_rows_come(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        own = await begin(plane)
        await plane.call("POST", "/v1/account/webhooks", {"url": "https://hooks.example/x"}, key=own)
        await budget_of(plane, hard=False)
        await asyncio.gather(*(spend(plane, number, 17) for number in range(1, 8)))
        await spend(plane, 3, 17)
        messages = (await plane.call("GET", "/v1/account/webhooks/messages", key=own)).json()["messages"]
        assert [each["kind"] for each in messages] == ["budget.alert"] * 3
        assert len({each["id"] for each in messages}) == 3
        lease = await lease_credit(plane.control, "edge-9", "acme", 50)
        assert (lease.granted_nanousd, lease.told) == (50, ""), "a soft budget refuses nothing"

    run(scenario)


def test_a_budget_alerts_of_what_was_spent_before_it_and_of_late_rows(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        own = await begin(plane)
        await plane.call("POST", "/v1/account/webhooks", {"url": "https://hooks.example/x"}, key=own)
        plane.clock.advance(86_400 - plane.clock.wall_s() % 86_400 + 60)
        await spend(plane, 1, 55)
        await budget_of(plane, hard=False, period="day")
        opened_ms = plane.control.now_ms()
        plane.clock.advance(86_400)
        late: dict[str, Any] = {"base": "cheap", "charged_prompt_tokens": 30, "charged_completion_tokens": 0}
        await insert_records(plane.control, [record(2, opened_ms=opened_ms, **late)])
        async with plane.control.database.read() as connection:
            asked = select(budget_alerts.c.mark, budget_alerts.c.period_ms).order_by(budget_alerts.c.mark)
            rows = (await connection.execute(asked)).all()
        assert [row.mark for row in rows] == [50, 80]
        assert len({row.period_ms for row in rows}) == 1, "the late row is of the day before"
        messages = (await plane.call("GET", "/v1/account/webhooks/messages", key=own)).json()["messages"]
        assert len(messages) == 2

    in_plane(migrated_in(tmp_path), tmp_path, scenario)


def test_whose_budget_it_is_decides_who_ends_it(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        own = await begin(plane)
        key = own.split("_")[1]
        of_operator = await budget_of(plane)
        reply = await plane.call("DELETE", f"/v1/account/budgets/{of_operator['id']}", key=own)
        assert (reply.status_code, "the operator made" in reply.text) == (403, True)
        body = {"name": "own", "limit_nanousd": 5, "key": key}
        made = (await plane.call("POST", "/v1/account/budgets", body, key=own)).json()
        for method, path, sent in (
            ("DELETE", f"/v1/account/budgets/{made['id']}", None),
            ("POST", "/v1/account/keys", {"name": "around it"}),
        ):
            assert (await plane.call(method, path, sent, key=own)).status_code == 403
        other = await plane.new_tenant("beta")
        assert (await plane.call("DELETE", f"/v1/account/budgets/{made['id']}", key=other)).status_code == 404
        assert (await plane.call("DELETE", f"/admin/budgets/{made['id']}")).status_code == 204
        verbs = [
            (row["verb"], row["kind"]) for row in (await plane.call("GET", "/admin/audit?tenant=acme")).json()["audit"]
        ]
        assert verbs[:3] == [("end", "budget"), ("create", "budget"), ("create", "budget")]

    in_plane(migrated_in(tmp_path), tmp_path, scenario)


@pytest.mark.parametrize(
    ("field", "value"),
    [("zone", "Mars/Olympus"), ("zone", "../etc"), ("limit_nanousd", -1), ("period", "week"), ("adapter", "a,b")],
)
def test_a_bad_budget_is_refused_by_its_field(tmp_path: Path, field: str, value: object) -> None:
    async def scenario(plane: Plane) -> None:
        await begin(plane)
        body = {"name": "x", "limit_nanousd": 1} | {field: value}
        reply = await plane.call("POST", "/admin/tenants/acme/budgets", body)
        assert reply.status_code in (400, 422)
        assert field in reply.text

    in_plane(migrated_in(tmp_path), tmp_path, scenario)


def test_periods_of_a_zone_are_half_open_also_where_the_clock_changes() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    for day, hours in ((28, 24), (29, 23), (30, 24)):
        noon_ms = int(1000 * datetime(2026, 3, day, 12, tzinfo=berlin).timestamp())
        period = period_at(PeriodKind.DAY, "Europe/Berlin", noon_ms)
        assert (period.end_ms - period.begin_ms) == hours * 3_600_000
        assert period_at(PeriodKind.DAY, "Europe/Berlin", period.end_ms).begin_ms == period.end_ms
        assert period_at(PeriodKind.DAY, "Europe/Berlin", period.end_ms - 1) == period
    march = month_in("Europe/Berlin", 202603)
    assert march.end_ms - march.begin_ms == (31 * 24 - 1) * 3_600_000
    assert month_in("Europe/Berlin", 202604).begin_ms == march.end_ms
    with pytest.raises(InvalidParameter, match="zone"):
        period_at(PeriodKind.DAY, "", 0)


def test_an_adapters_budget_covers_its_versions_and_its_members() -> None:
    budget = BudgetFacts(id="b_000000", adapter="triage")
    for name, is_covered in (
        ("triage", True),
        ("triage/3", True),
        ("a/1,triage/2", True),
        ("triage2", False),
        (None, False),
    ):
        assert budget.covers(None, name) is is_covered, name
    assert called_adapter("acme", "triage/3", "acme") == "triage/3"
    assert called_adapter("acme", "triage/3,x/1", "beta") == "beta/triage/3,beta/x/1"


@pytest.mark.parametrize("tenant", ["operator", *long("default")])
def test_a_hard_budget_bounds_a_tenant_whose_credit_has_no_bound(run: Callable[..., None], tenant: str) -> None:
    async def scenario(plane: Plane) -> None:
        async def leased(edge: str, nanousd: int) -> tuple[int, str]:
            lease = await lease_credit(plane.control, edge, tenant, nanousd)
            return lease.granted_nanousd, lease.reason

        path, body = f"/admin/tenants/{tenant}", {"name": "team", "limit_nanousd": 5 * COST}
        soft = await plane.call("POST", f"{path}/budgets", {**body, "name": "soft", "hard": False})
        assert soft.status_code == 201, soft.text
        assert await leased("edge-1", COST) == (UNLIMITED_NANOUSD, "")
        made = await plane.call("POST", f"{path}/budgets", body)
        assert made.status_code == 201, made.text
        assert await leased("edge-1", 0) == (0, ""), "at the renewal of its lease"
        assert await leased("edge-1", 3 * COST) == (3 * COST, "")
        assert await leased("edge-2", 4 * COST) == (2 * COST, "budget")
        used = [record(n, tenant=tenant, opened_ms=plane.control.now_ms(), edge="edge-1") for n in range(3)]
        await insert_records(plane.control, used)
        assert await leased("edge-1", COST) == (3 * COST, "budget"), "the rest is leased to the other"
        async with plane.control.database.read() as connection:
            assert (await connection.execute(select(wallet_holds))).all() == [], "no grant is set aside"
        ended = await plane.call("DELETE", f"/admin/budgets/{made.json()['id']}")
        assert ended.is_success, ended.text
        assert await leased("edge-1", COST) == (UNLIMITED_NANOUSD, "")
        limits = await plane.call("PUT", f"{path}/limits", {"monthly_budget_nanousd": 4 * COST})
        assert limits.is_success, limits.text
        assert (await leased("edge-3", 9 * COST))[1] == "budget"

    run(scenario)
