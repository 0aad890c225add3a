"""Changes of keys and of a tenant at one time on PostgreSQL: each is made to what the one before it has left."""

import asyncio
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import URL

from manylora.control.key_uses import note_uses
from manylora.control.tenants.credit import grant_credit
from tests.conftest import long
from tests.control.plane import Plane, in_plane
from tests.control.queued_calls import in_turn, until_waiting

KEYS = "/v1/account/keys"


@pytest.mark.parametrize("url", long("postgresql"), indirect=True)
def test_a_revocation_by_the_operator_ends_a_key_that_is_made_meanwhile(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        first = await plane.new_tenant("acme")
        making = partial(plane.call, "POST", KEYS, {"scopes": ["read"]}, key=first)
        ending = partial(plane.call, "DELETE", f"/admin/keys/{first.split('_')[1]}")
        made, ended = await in_turn(plane, making, ending)
        assert (made.status_code, ended.status_code) == (201, 200)
        assert made.json()["id"] in ended.json()["ended"]
        assert (await plane.call("GET", "/v1/account/key", key=made.json()["key"])).status_code == 401

    in_plane(url, tmp_path, scenario)


@pytest.mark.parametrize("url", long("postgresql"), indirect=True)
def test_of_two_last_keys_of_the_operator_one_stays(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        second = (await plane.call("POST", "/admin/tenants/operator/keys", {"scopes": ["admin"]})).json()
        ids = (plane.admin_key.split("_")[1], second["id"])
        replies = await in_turn(plane, *(partial(plane.call, "DELETE", f"/admin/keys/{each}") for each in ids))
        assert [reply.status_code for reply in replies] == [200, 422]
        assert (await plane.call("GET", "/admin/tenants", key=second["key"])).status_code == 200

    in_plane(url, tmp_path, scenario)


@pytest.mark.parametrize("url", long("postgresql"), indirect=True)
def test_a_tenant_that_is_closed_and_resumed_at_one_time_stays_closed(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        assert (await plane.call("POST", "/admin/tenants/acme/suspend")).status_code == 200
        acts = (partial(plane.call, "POST", f"/admin/tenants/acme/{verb}") for verb in ("close", "resume"))
        assert [reply.status_code for reply in await in_turn(plane, *acts)] == [200, 422]
        assert (await plane.call("GET", "/admin/tenants/acme")).json()["state"] == "closed"

    in_plane(url, tmp_path, scenario)


@pytest.mark.parametrize("url", long("postgresql"), indirect=True)
def test_the_audit_of_two_changes_at_one_time_shows_one_after_the_other(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        acts = (partial(plane.call, "PATCH", "/admin/tenants/acme", {"weight": weight}) for weight in (2, 3))
        assert [reply.status_code for reply in await in_turn(plane, *acts)] == [200, 200]
        rows = (await plane.call("GET", "/admin/audit?tenant=acme&verb=change")).json()["audit"]
        assert [(row["before"]["weight"], row["after"]["weight"]) for row in rows] == [(2, 3), (1, 2)]

    in_plane(url, tmp_path, scenario)


@pytest.mark.parametrize("url", long("postgresql"), indirect=True)
def test_keys_that_end_while_their_uses_are_noted_let_no_transaction_fail(url: URL, tmp_path: Path) -> None:
    """A shipment notes the uses of keys in the order of their ids, and keeps those rows until its end."""

    async def scenario(plane: Plane) -> None:
        first = await plane.new_tenant("acme")
        bodies = [await plane.call("POST", KEYS, {"scopes": ["read"]}, key=first) for _ in range(8)]
        ids = sorted([first.split("_")[1], *(body.json()["id"] for body in bodies)])
        async with plane.control.database.write() as connection:
            await note_uses(connection, [(ids[0], plane.control.now_ms())])
            ending = asyncio.create_task(plane.call("DELETE", f"/admin/keys/{first.split('_')[1]}"))
            await until_waiting(plane, 1)
            await note_uses(connection, [(each, plane.control.now_ms()) for each in ids[1:]])
        assert sorted((await ending).json()["ended"]) == ids

    in_plane(url, tmp_path, scenario)


@pytest.mark.parametrize("url", long("postgresql"), indirect=True)
def test_grants_of_two_tenants_with_one_id_at_one_time_are_one_grant(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        for tenant in ("acme", "beta"):
            await plane.new_tenant(tenant)
        now_ms = plane.control.now_ms()
        async with plane.control.database.write() as connection:
            await grant_credit(connection, "beta", 5, grant_id="paid-1", reason="paid", now_ms=now_ms)
            body = {"id": "paid-1", "nanousd": 5, "reason": "paid"}
            granting = asyncio.create_task(plane.call("POST", "/admin/tenants/acme/credits", body))
            await until_waiting(plane, 1)
        reply = await granting
        assert (reply.status_code, reply.json()["code"]) == (422, "invalid_parameter"), reply.text

    in_plane(url, tmp_path, scenario)
