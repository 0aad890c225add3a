"""Records become rows once, whatever happens on the way; and what edges lease never exceeds what there is."""

import asyncio
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from manylora.control.billing.ledger import correct, insert_records
from manylora.control.billing.prices import set_price
from manylora.control.calendar import bounds_of, month_of
from manylora.control.storage.database import database_url
from manylora.control.storage.tables import ledger, spending
from manylora.control.tenants.credit import balance_of, give_back_leases, grant_credit, lease_credit
from manylora.errors import InvalidParameter, NameTaken, QuotaExhausted, ResourceNotFound
from manylora.ids import KeyId, TenantId
from manylora.server.access.control_client import HttpControlClient
from manylora.server.access.credit import LeasedCredit
from manylora.tenancy import Lease, PriceFacts, Snapshot
from tests.control.plane import EDGE_TOKEN, Plane, in_plane, record

COST = 110 * 200


class Client(HttpControlClient):
    """The requests of leased credit to the control plane, without the way there."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane

    async def lease(self, edge: str, tenant: TenantId, nanousd: int, key: str = "") -> Lease:
        return await lease_credit(self.plane.control, edge, tenant, nanousd, key)


async def rows_of(plane: Plane) -> list[tuple[str, int, int | None]]:
    asked = select(ledger.c.id, ledger.c.cost_nanousd, ledger.c.price_version).order_by(ledger.c.id)
    async with plane.control.database.read() as connection:
        return [tuple(row) for row in (await connection.execute(asked)).all()]


async def spent(plane: Plane, tenant: str = "acme") -> int:
    async with plane.control.database.read() as connection:
        return (await balance_of(connection, tenant, plane.control.now_ms())).charged_nanousd


def test_a_record_becomes_one_row_however_often_it_comes(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        one, two = (record(number, opened_ms=plane.control.now_ms()) for number in (1, 2))
        assert await insert_records(plane.control, [one]) == 1
        assert await insert_records(plane.control, [two, one, one, two]) == 1
        assert await rows_of(plane) == [("usage-1", COST, 1), ("usage-2", COST, 1)]
        assert await spent(plane) == 2 * COST

    run(scenario)


def test_a_code_in_other_letters_is_the_same_tenants_and_stops_no_shipment(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        names = ("Acme", "ACME", "acme", "New", "new", "NEW")
        records = [record(number, tenant=name, opened_ms=1) for number, name in enumerate(names)]
        assert await insert_records(plane.control, records) == 6
        asked = select(ledger.c.tenant, func.count()).group_by(ledger.c.tenant)
        async with plane.control.database.read() as connection:
            counted = {tenant.lower(): number for tenant, number in (await connection.execute(asked)).all()}
        assert counted == {"acme": 3, "new": 3}

    run(scenario)


def test_an_edge_spends_on_after_its_lease_has_ended(run: Callable[..., None]) -> None:
    """What was spent, what is under way and what is new: the first request after the end asks for all of it."""

    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme", credit_nanousd=1000)
        price = PriceFacts(base="b", version=1, effective_ms=0, input_nanousd=1, output_nanousd=1)
        leased = LeasedCredit(Client(plane), plane.clock, edge="edge-1", lease_nanousd=100)

        async def hold(cost: int) -> Any:
            return await leased.hold(TenantId("acme"), price, prompt_tokens=cost, budget_tokens=0)

        (await hold(90)).settle(40, 0)
        under_way = await hold(50)
        plane.clock.advance(plane.control.config.control.lease_s + 1)
        again = await hold(60)
        plane.clock.advance(plane.control.config.control.lease_s + 1)
        rest = await hold(800)
        with pytest.raises(QuotaExhausted):
            await hold(60)
        for each, used in ((under_way, 50), (again, 60), (rest, 800)):
            each.settle(used, 0)
        assert (await hold(50)) is not None

    run(scenario)


def test_a_keys_budget_holds_over_edges_and_rotations(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme", credit_nanousd=10**9)
        made = await plane.call("POST", "/admin/tenants/acme/keys", {"limits": {"monthly_budget_nanousd": 300}})
        origin = made.json()["id"]
        price = PriceFacts(base="b", version=1, effective_ms=0, input_nanousd=1, output_nanousd=1)
        leased_of = [LeasedCredit(Client(plane), plane.clock, edge=f"edge-{n}", lease_nanousd=100) for n in range(2)]

        async def hold(number: int, cost: int, key: str | None = origin) -> Any:
            key_id = None if key is None else KeyId(key)
            return await leased_of[number].hold(
                TenantId("acme"), price, prompt_tokens=cost, budget_tokens=0, key=key_id, has_budget=key is not None
            )

        (await hold(0, 80)).settle(80, 0)
        (await hold(1, 150)).settle(150, 0)
        await hold(0, 20)
        with pytest.raises(QuotaExhausted, match="this key's budget"):
            await hold(0, 60)
        assert (await hold(0, 5000, None)) is not None, "the tenant's credit is there for other keys"
        now_ms = plane.control.now_ms()
        await set_price_of_b(plane, 1)
        usage: dict[str, Any] = {
            "prompt_tokens": 200,
            "charged_prompt_tokens": 200,
            "charged_completion_tokens": 0,
            "base": "b",
        }
        await insert_records(plane.control, [record(1, key=origin, edge="edge-0", opened_ms=now_ms, **usage)])
        rotated = await plane.call("POST", f"/admin/keys/{origin}/rotate", {})
        await insert_records(plane.control, [record(2, key=rotated.json()["id"], opened_ms=now_ms, **usage)])
        fresh = await lease_credit(plane.control, "edge-9", "acme", 300, origin)
        assert (fresh.granted_nanousd, fresh.reason) == (0, "budget")
        await plane.call("PUT", f"/admin/keys/{rotated.json()['id']}/limits", {"monthly_budget_nanousd": 1000})
        assert (await lease_credit(plane.control, "edge-9", "acme", 50, origin)).granted_nanousd == 50

    run(scenario)


def test_a_budget_that_comes_later_counts_what_was_spent_before(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme", credit_nanousd=10**9)
        made = (await plane.call("POST", "/admin/tenants/acme/keys", {})).json()
        await set_price_of_b(plane, 1)
        price = PriceFacts(base="b", version=1, effective_ms=0, input_nanousd=1, output_nanousd=1)
        leased = LeasedCredit(Client(plane), plane.clock, edge="edge-1", lease_nanousd=100)

        async def spend(number: int, cost: int, *, has_budget: bool) -> None:
            held = await leased.hold(
                TenantId("acme"),
                price,
                prompt_tokens=cost,
                budget_tokens=0,
                key=KeyId(made["id"]),
                has_budget=has_budget,
            )
            assert held is not None
            held.settle(cost, 0)
            usage: dict[str, Any] = {"base": "b", "charged_prompt_tokens": cost, "charged_completion_tokens": 0}
            opened_ms = plane.control.now_ms()
            await insert_records(
                plane.control, [record(number, key=made["id"], edge="edge-1", opened_ms=opened_ms, **usage)]
            )

        await spend(1, 1000, has_budget=False)
        await plane.call("PUT", f"/admin/keys/{made['id']}/limits", {"monthly_budget_nanousd": 1500})
        for number in range(2, 7):
            await spend(number, 100, has_budget=True)
        for _ in range(3):
            with pytest.raises(QuotaExhausted):
                await spend(9, 100, has_budget=True)
            plane.clock.advance(plane.control.config.control.lease_s + 1)

    run(scenario)


async def set_price_of_b(plane: Plane, nanousd: int) -> None:
    async with plane.control.database.write() as connection:
        now_ms = plane.control.now_ms()
        await set_price(
            connection, "b", input_nanousd=nanousd, output_nanousd=nanousd, effective_ms=now_ms, now_ms=now_ms
        )


def test_a_lowered_budget_takes_back_what_was_leased_and_not_spent(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme", credit_nanousd=1000)
        assert (await lease_credit(plane.control, "edge-1", "acme", 600)).granted_nanousd == 600
        await plane.call("PUT", "/admin/tenants/acme/limits", {"monthly_budget_nanousd": 100})
        prolonged = await lease_credit(plane.control, "edge-1", "acme", 0)
        assert (prolonged.granted_nanousd, prolonged.reason) == (100, "budget")

    run(scenario)


def test_a_late_record_comes_into_the_month_that_is_open(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        now_ms = plane.control.now_ms()
        month = month_of(now_ms)
        end_ms = bounds_of(month)[1]
        last = record(1, opened_ms=end_ms - 1)
        plane.clock.advance((end_ms - now_ms) / 1000 + 60)
        await insert_records(plane.control, [last])
        plane.clock.advance(3600)
        await insert_records(plane.control, [record(2, opened_ms=end_ms - 1)])
        asked = select(ledger.c.id, ledger.c.booked_ms).order_by(ledger.c.id)
        async with plane.control.database.read() as connection:
            booked = {row.id: month_of(row.booked_ms) for row in (await connection.execute(asked)).all()}
            spent_now = (await balance_of(connection, "acme", plane.control.now_ms())).spent_this_month_nanousd
        assert booked == {"usage-1": month, "usage-2": month_of(end_ms)}
        assert spent_now == COST

    run(scenario)


def test_shipments_at_once_are_counted_once(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        records = [record(number, opened_ms=plane.control.now_ms()) for number in range(10)]
        orders = [random.Random(seed).sample(records, 10) for seed in range(6)]
        new = await asyncio.gather(*(insert_records(plane.control, order) for order in orders))
        assert sum(new) == 10
        assert await spent(plane) == 10 * COST

    run(scenario)


def test_the_price_is_that_of_the_moment_a_request_came(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        now_ms = plane.control.now_ms()
        async with plane.control.database.write() as connection:
            await set_price(
                connection,
                "Mistral-7b-instruct",
                input_nanousd=1,
                output_nanousd=3,
                effective_ms=now_ms + 1000,
                now_ms=now_ms,
            )
        await insert_records(plane.control, [record(1, opened_ms=now_ms + 999), record(2, opened_ms=now_ms + 1000)])
        await insert_records(plane.control, [record(3, opened_ms=now_ms, base="unpriced")])
        assert await rows_of(plane) == [("usage-1", COST, 1), ("usage-2", 100 + 30, 2), ("usage-3", 0, None)]

    run(scenario)


def test_what_was_used_is_never_repriced(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        now_ms = plane.control.now_ms()

        async def put(effective_ms: int, amount: int = 1) -> None:
            async with plane.control.database.write() as connection:
                await set_price(
                    connection,
                    "Mistral-7b-instruct",
                    input_nanousd=amount,
                    output_nanousd=1,
                    effective_ms=effective_ms,
                    now_ms=now_ms,
                )

        with pytest.raises(InvalidParameter, match="never repriced"):
            await put(now_ms - 1)
        await put(now_ms + 5)
        with pytest.raises(InvalidParameter, match="never repriced"):
            await put(now_ms + 4)
        with pytest.raises(InvalidParameter, match="input_nanousd"):
            await put(now_ms + 6, -1)

    run(scenario)


def test_a_record_of_nobody_is_kept_under_a_closed_tenant(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await insert_records(plane.control, [record(1, tenant="nobody", opened_ms=plane.control.now_ms())])
        tenant = (await plane.call("GET", "/admin/tenants/nobody")).json()
        assert (tenant["state"], tenant["balance"]["charged_nanousd"]) == ("closed", COST)

    run(scenario)


def test_without_keys_whoever_names_himself_is_a_tenant(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await insert_records(plane.control, [record(1, tenant="anybody", opened_ms=plane.control.now_ms())])
        assert (await plane.call("GET", "/admin/tenants/anybody", key=None)).json()["state"] == "active"

    run(scenario, is_key_needed=False, client_host="127.0.0.1")


def test_a_correction_is_a_row_more(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        await insert_records(plane.control, [record(1, opened_ms=plane.control.now_ms())])

        async def take_back(record_id: str = "usage-1", reason: str = "it came twice") -> None:
            await correct(
                plane.control,
                record_id,
                correction_id="fix-1",
                prompt_tokens=-100,
                completion_tokens=-10,
                reason=reason,
                author="admin",
            )

        await take_back()
        assert await rows_of(plane) == [("fix-1", -COST, 1), ("usage-1", COST, 1)]
        assert await spent(plane) == 0
        await take_back()
        assert await spent(plane) == 0
        with pytest.raises(NameTaken):
            await take_back(reason="it came late")
        with pytest.raises(ResourceNotFound, match="usage-2"):
            await correct(
                plane.control,
                "usage-2",
                correction_id="fix-2",
                prompt_tokens=0,
                completion_tokens=0,
                reason="x",
                author="admin",
            )

    run(scenario)


def test_leases_stop_at_the_credit_and_at_the_budget(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme", credit_nanousd=100)
        first = await lease_credit(plane.control, "edge-1", "acme", 60)
        second = await lease_credit(plane.control, "edge-2", "acme", 60)
        third = await lease_credit(plane.control, "edge-1", "acme", 60)
        assert (first.granted_nanousd, first.reason) == (60, "")
        assert (second.granted_nanousd, second.reason) == (40, "credit")
        assert (third.granted_nanousd, third.reason) == (60, "credit")
        await give_back_leases(plane.control, "edge-2")
        assert (await lease_credit(plane.control, "edge-1", "acme", 60)).granted_nanousd == 100
        await plane.call("PUT", "/admin/tenants/acme/limits", {"monthly_budget_nanousd": 100})
        async with plane.control.database.write() as connection:
            await grant_credit(connection, "acme", 900, grant_id="more", reason="paid", now_ms=plane.control.now_ms())
        assert (await lease_credit(plane.control, "edge-1", "acme", 60)).reason == "budget"

    run(scenario)


def test_an_expired_lease_gives_its_rest_back(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme", credit_nanousd=100)
        await lease_credit(plane.control, "edge-1", "acme", 100)
        assert (await lease_credit(plane.control, "edge-2", "acme", 1)).granted_nanousd == 0
        plane.clock.advance(1801)
        assert (await lease_credit(plane.control, "edge-2", "acme", 100)).granted_nanousd == 100

    run(scenario)


def test_a_grant_of_one_id_counts_once(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme", credit_nanousd=0)
        for _ in range(2):
            reply = await plane.call("POST", "/admin/tenants/acme/credits", {"id": "g", "nanousd": 5, "reason": "paid"})
        assert reply.json()["left_nanousd"] == 5
        other = await plane.call("POST", "/admin/tenants/acme/credits", {"id": "g", "nanousd": 6, "reason": "paid"})
        assert other.status_code == 422

    run(scenario)


def test_credits_are_listed_page_by_page_the_newest_first(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        key, other = await plane.new_tenant("acme", credit_nanousd=7), await plane.new_tenant("beta", credit_nanousd=9)
        for number in range(4):
            plane.clock.advance(1)
            grant = {"id": f"g-{number}", "nanousd": -number, "reason": f"number {number}"}
            for _ in range(2):
                await plane.call("POST", "/admin/tenants/acme/credits", grant)
        found, before = [], ""
        for size in (2, 2, 1):
            reply = (await plane.call("GET", f"/v1/account/credits?limit=2{before}", key=key)).json()
            assert len(reply["credits"]) == size
            found += reply["credits"]
            before = f"&before={reply['before']}"
        assert reply["before"] is None
        assert [grant["id"] for grant in found[:4]] == ["g-3", "g-2", "g-1", "g-0"]
        assert [grant["nanousd"] for grant in found] == [-3, -2, -1, 0, 7]
        assert found[0] == {
            "id": "g-3",
            "nanousd": -3,
            "reason": "number 3",
            "created": "2023-11-14T22:30:04.000Z",
        }
        assert (await plane.call("GET", "/admin/tenants/acme/credits")).json() == {"credits": found, "before": None}
        (own,) = (await plane.call("GET", "/v1/account/credits", key=other)).json()["credits"]
        assert (own["nanousd"], own["reason"]) == (9, "sign-up")
        assert (await plane.call("GET", "/admin/tenants/nobody/credits")).status_code == 404
        assert (await plane.call("GET", "/admin/tenants/acme/credits", key=other)).status_code == 403
        assert (await plane.call("GET", "/v1/account/credits?limit=0", key=key)).status_code == 400

    run(scenario)


EVENTS = st.lists(
    st.tuples(st.sampled_from(["lease", "spend", "give back", "wait"]), st.integers(0, 2), st.integers(0, 90)),
    max_size=25,
)


@settings(
    max_examples=settings().max_examples // 3,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(EVENTS)
def test_no_order_of_leases_and_spending_exceeds_the_credit(
    migrated_file: Path, tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, int, int]]
) -> None:
    """Every edge spends what it holds a lease of, and no more: the ledger never charges more than the credit."""
    folder = tmp_path_factory.mktemp("leases")
    url = database_url("", folder)
    shutil.copyfile(migrated_file, str(url.database))

    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme", credit_nanousd=100)
        granted = dict.fromkeys(range(3), 0)
        used = dict.fromkeys(range(3), 0)
        for number, (kind, edge, amount) in enumerate(events):
            name = f"edge-{edge}"
            if kind == "lease":
                granted[edge] = (await lease_credit(plane.control, name, "acme", amount)).granted_nanousd
            elif kind == "spend" and granted[edge] - used[edge] > 0:
                tokens = min(amount, granted[edge] - used[edge])
                used[edge] += tokens
                await insert_records(
                    plane.control,
                    [
                        record(
                            number,
                            edge=name,
                            base="cheap",
                            opened_ms=plane.control.now_ms(),
                            charged_prompt_tokens=tokens,
                            charged_completion_tokens=0,
                        )
                    ],
                )
            elif kind == "give back":
                await give_back_leases(plane.control, name)
                granted[edge] = used[edge]
            else:
                plane.clock.advance(1801)
                granted = dict(used)
            unspent = sum(max(0, granted[each] - used[each]) for each in granted)
            assert await spent(plane) + unspent <= 100

    async def priced(plane: Plane) -> None:
        now_ms = plane.control.now_ms()
        async with plane.control.database.write() as connection:
            await set_price(connection, "cheap", input_nanousd=1, output_nanousd=1, effective_ms=now_ms, now_ms=now_ms)
        await scenario(plane)

    in_plane(url, folder, priced)


def test_edges_speak_to_the_control_plane_over_its_own_routes(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        headers = {"authorization": f"Bearer {EDGE_TOKEN}"}
        told = await plane.client.get("/internal/snapshot?since=-1", headers=headers)
        snapshot = msgspec.json.decode(told.content, type=Snapshot)
        assert {tenant.id for tenant in snapshot.tenants} == {"acme", "default", "operator"}
        assert {price.base for price in snapshot.prices} >= {"Mistral-7b-instruct", "SmolLM2-135M-Instruct"}
        since = f"/internal/snapshot?since={snapshot.revision}&epoch={snapshot.epoch}"
        again = await plane.client.get(since, headers=headers)
        later = msgspec.json.decode(again.content, type=Snapshot)
        assert (later.tenants, later.keys, later.is_whole) == ((), (), False)
        await plane.call("POST", "/admin/tenants/acme/suspend")
        changed = await plane.client.get(since, headers=headers)
        assert [t.state for t in msgspec.json.decode(changed.content, type=Snapshot).tenants] == ["suspended"]

        body = msgspec.json.encode({"records": [record(1, opened_ms=plane.control.now_ms())]})
        for _ in range(2):
            shipped = await plane.client.post("/internal/usage", content=body, headers=headers)
        assert shipped.json() == {"accepted": 0}
        wish = {"edge": "e", "tenant": "acme", "nanousd": 5}
        lease = await plane.client.post("/internal/leases", json=wish, headers=headers)
        assert msgspec.json.decode(lease.content, type=Lease).granted_nanousd == 5
        assert (await plane.client.delete("/internal/leases/e", headers=headers)).status_code == 204

    run(scenario)


@pytest.mark.parametrize("header", [None, "Bearer ", "Bearer wrong", f"Basic {EDGE_TOKEN}"])
def test_nobody_else_reaches_them(run: Callable[..., None], header: str | None) -> None:
    async def scenario(plane: Plane) -> None:
        headers = {} if header is None else {"authorization": header}
        for method, path in (
            ("GET", "/internal/snapshot"),
            ("POST", "/internal/usage"),
            ("POST", "/internal/leases"),
            ("DELETE", "/internal/leases/e"),
        ):
            reply = await plane.client.request(method, path, headers=headers)
            assert reply.status_code == 401

    run(scenario)


def test_sums_of_spending_are_those_of_the_ledger(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        source = random.Random(3)
        records = [
            record(
                number,
                tenant=source.choice(["acme", "beta"]),
                edge=source.choice(["e", "f"]),
                opened_ms=plane.control.now_ms() + source.randrange(90 * 86_400_000),
                charged_completion_tokens=source.randrange(100),
            )
            for number in range(40)
        ]
        for start in range(0, 40, 7):
            await insert_records(plane.control, records[max(0, start - 3) : start + 7])
        async with plane.control.database.read() as connection:
            for table in (ledger, spending):
                asked = select(table.c.tenant, func.sum(table.c.cost_nanousd)).group_by(table.c.tenant)
                found = sorted((tenant, int(cost)) for tenant, cost in (await connection.execute(asked)).all())
                expected = sorted(
                    (tenant, sum(100 * 200 + r.charged_completion_tokens * 200 for r in records if r.tenant == tenant))
                    for tenant in ("acme", "beta")
                )
                assert found == expected

    run(scenario)
