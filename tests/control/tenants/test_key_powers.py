"""What a key may do to other keys, and which keys and tenants belong to the server itself."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import URL

from manylora.clock import ManualClock
from manylora.config.settings import load_config
from manylora.control.app.application import create_control_app
from manylora.control.edges.snapshot import take_snapshot
from manylora.control.tenants.credit import lease_credit
from manylora.control.tenants.keys import MAX_LIVE_KEYS
from manylora.control.tenants.signup import SIGNUPS_PER_HOUR, SignupLimiter
from manylora.errors import ConfigInvalid, RequestRateExceeded
from manylora.http.loopback import EDGE_HEADER
from tests.control.plane import EDGE_TOKEN, Plane, in_plane


def id_of(key: str) -> str:
    return key.split("_")[1]


def test_the_scope_admin_is_for_the_operators_keys_alone(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        refused = await plane.call("POST", "/admin/tenants/acme/keys", {"scopes": ["query", "admin"]})
        assert refused.status_code == 422
        assert "`admin` is for keys of the tenant `operator`" in refused.json()["error"]
        made = await plane.call("POST", "/admin/tenants/operator/keys", {"scopes": ["admin"]})
        assert (await plane.call("GET", "/admin/tenants", key=made.json()["key"])).status_code == 200

    run(scenario)


def test_a_key_made_with_a_key_goes_no_further_than_it(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        terms: dict[str, object] = {"scopes": ["query", "manage"], "expires_in_s": 60}
        narrow = (await plane.call("POST", "/admin/tenants/acme/keys", terms)).json()
        asked = {"scopes": ["query"], "limits": {"concurrent_streams": 8}}
        made = (await plane.call("POST", "/v1/account/keys", asked, key=narrow["key"])).json()
        assert (made["expires"], made["limits"]["concurrent_streams"]) == (narrow["expires"], 8)
        wider = await plane.call("POST", "/v1/account/keys", {"scopes": ["upload"]}, key=narrow["key"])
        assert wider.status_code == 403

    run(scenario)


def test_a_key_with_limits_multiplies_and_widens_itself_in_no_way(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        full = await plane.new_tenant("acme")
        terms = {"scopes": ["query", "manage"], "limits": {"requests_per_minute": 5}}
        own = (await plane.call("POST", "/admin/tenants/acme/keys", terms)).json()
        another = await plane.call("POST", "/v1/account/keys", terms, key=own["key"])
        assert another.status_code == 403
        limits = f"/v1/account/keys/{own['id']}/limits"
        assert (await plane.call("PUT", limits, {}, key=own["key"])).status_code == 403
        rotated = (await plane.call("POST", f"/v1/account/keys/{own['id']}/rotate", {}, key=own["key"])).json()
        sibling = (await plane.call("POST", "/admin/tenants/acme/keys", terms)).json()
        taken = await plane.call("POST", f"/v1/account/keys/{sibling['id']}/rotate", {}, key=rotated["key"])
        assert (taken.status_code, "would have both" in taken.json()["error"]["message"]) == (403, True)
        facts = {key.id: key for key in (await take_snapshot(plane.control, -1)).keys}
        assert facts[rotated["id"]].origin == own["id"], "its bucket goes on where the old key's was"
        wider = await plane.call(
            "PUT", f"/v1/account/keys/{rotated['id']}/limits", {"requests_per_minute": 7}, key=full
        )
        assert wider.json()["limits"]["requests_per_minute"] == 7

    run(scenario)


def test_a_key_ends_and_rotates_none_that_may_do_more(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        full = await plane.new_tenant("acme")
        made = await plane.call("POST", "/v1/account/keys", {"scopes": ["manage"]}, key=full)
        narrow = made.json()["key"]
        assert (await plane.call("DELETE", f"/v1/account/keys/{id_of(full)}", key=narrow)).status_code == 403
        rotation = f"/v1/account/keys/{id_of(full)}/rotate"
        assert (await plane.call("POST", rotation, {}, key=narrow)).status_code == 403
        new = await plane.call("POST", rotation, {}, key=full)
        assert (new.status_code, new.json()["scopes"]) == (201, ["infer", "manage", "read", "upload"])
        assert (await plane.call("GET", "/v1/account", key=full)).status_code == 401
        ended = await plane.call("DELETE", f"/v1/account/keys/{id_of(narrow)}", key=new.json()["key"])
        assert ended.json()["revoked"] is not None

    run(scenario)


def test_rotating_another_key_gives_no_more_than_ones_own(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        full = await plane.new_tenant("acme")
        scopes = ["query", "manage"]
        wide = (await plane.call("POST", "/v1/account/keys", {"scopes": scopes}, key=full)).json()["key"]
        terms: dict[str, object] = {"scopes": scopes, "limits": {"requests_per_minute": 5}}
        for own in (terms, {"scopes": scopes, "expires_in_s": 60}):
            narrow = (await plane.call("POST", "/admin/tenants/acme/keys", own)).json()["key"]
            refused = await plane.call("POST", f"/v1/account/keys/{id_of(wide)}/rotate", {}, key=narrow)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_permissions")
            itself = await plane.call("POST", f"/v1/account/keys/{id_of(narrow)}/rotate", {}, key=narrow)
            assert itself.status_code == 201
        assert (await plane.call("GET", "/v1/account", key=wide)).status_code == 200
        assert (await plane.call("POST", f"/v1/account/keys/{id_of(wide)}/rotate", {}, key=full)).status_code == 201

    run(scenario)


def test_on_an_open_server_a_stranger_or_a_web_page_steers_no_keys(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        known = (await plane.call("POST", "/admin/tenants/acme/keys", {}, key=None)).status_code
        assert known == 403  # a stranger is no operator either
        made = await plane.call("POST", "/v1/account/keys", {}, key=None)
        assert (made.status_code, made.json()["error"]["code"]) == (403, "insufficient_permissions")
        for method, path in (("DELETE", "abcdefgh"), ("POST", "abcdefgh/rotate")):
            reply = await plane.call(method, f"/v1/account/keys/{path}", {}, key=None)
            assert reply.status_code == 403

    run(scenario, is_key_needed=False)


def test_from_its_own_machine_an_open_server_makes_keys_but_no_web_page_does(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        made = await plane.client.post("/v1/account/keys", json={})
        assert made.status_code == 201
        page = await plane.client.post("/v1/account/keys", json={}, headers={"origin": "https://evil.example"})
        assert page.status_code == 403
        assert (await plane.call("GET", "/v1/account", key=made.json()["key"])).json()["id"] == "default"
        # The same database behind a server that asks for keys.
        guarded = create_control_app(replace(plane.control, is_key_needed=True))
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(guarded), base_url="http://127.0.0.1") as client:
            headers = {"authorization": f"Bearer {made.json()['key']}"}
            assert (await client.get("/v1/account", headers=headers)).status_code == 401

    run(scenario, is_key_needed=False, client_host="127.0.0.1")


def test_default_has_no_keys_where_keys_are_needed(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        refused = await plane.call("POST", "/admin/tenants/default/keys", {})
        assert refused.status_code == 422
        assert "open server" in refused.json()["error"]

    run(scenario)


def test_another_tenants_key_cannot_be_rotated(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        mine, theirs = await plane.new_tenant("acme"), await plane.new_tenant("beta")
        reply = await plane.call("POST", f"/v1/account/keys/{id_of(theirs)}/rotate", {}, key=mine)
        assert reply.status_code == 404
        assert (await plane.call("GET", "/v1/account", key=theirs)).status_code == 200

    run(scenario)


def test_live_keys_are_bounded_and_dead_ones_are_not_told_to_a_new_edge(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        seen = (await take_snapshot(plane.control, -1)).revision
        for _ in range(MAX_LIVE_KEYS - 1):
            assert (await plane.call("POST", "/v1/account/keys", {}, key=key)).status_code == 201
        full = await plane.call("POST", "/v1/account/keys", {}, key=key)
        assert (full.status_code, full.json()["error"]["code"]) == (400, "invalid_parameter")
        others = [entry["id"] for entry in (await plane.call("GET", "/v1/account/keys", key=key)).json()["keys"]]
        gone = next(entry for entry in others if entry != id_of(key))
        await plane.call("DELETE", f"/v1/account/keys/{gone}", key=key)
        assert (await plane.call("POST", "/v1/account/keys", {}, key=key)).status_code == 201
        whole, news = await take_snapshot(plane.control, -1), await take_snapshot(plane.control, seen)
        assert gone not in {entry.id for entry in whole.keys}
        assert [entry.is_revoked for entry in news.keys if entry.id == gone] == [True]

    run(scenario)


def test_the_servers_own_tenants_stay(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        for path in ("operator/suspend", "operator/close", "default/close"):
            reply = await plane.call("POST", f"/admin/tenants/{path}")
            assert reply.status_code == 422
            assert "belongs to the server" in reply.json()["error"]
        assert (await plane.call("POST", "/admin/tenants/default/suspend")).status_code == 200
        for tenant in ("default", "operator"):
            assert (await lease_credit(plane.control, "edge-1", tenant, 10**9)).granted_nanousd >= 10**9

    run(scenario)


def test_a_plan_brings_its_weight_unless_one_is_given(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        async def weight(method: str, path: str, body: dict[str, object]) -> int:
            reply = (await plane.call(method, path, body)).json()
            return int(reply.get("tenant", reply)["weight"])

        assert await weight("POST", "/admin/tenants", {"id": "a"}) == 1
        assert await weight("POST", "/admin/tenants", {"id": "b", "plan": "pro"}) == 4
        assert await weight("POST", "/admin/tenants", {"id": "c", "plan": "pro", "weight": 7}) == 7
        assert await weight("PATCH", "/admin/tenants/a", {"plan": "enterprise"}) == 16
        assert await weight("PATCH", "/admin/tenants/a", {"plan": "unknown"}) == 16
        assert await weight("PATCH", "/admin/tenants/a", {"plan": "pro", "weight": 2}) == 2

    in_plane(url, tmp_path, scenario, settings={"control.plan_weights": ("pro=4", "enterprise=16")})


@pytest.mark.parametrize("pair", ["pro", "pro=0", "pro=1001", "=3", "pro=x"])
def test_a_plans_weight_that_is_none_is_refused(pair: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"control\.plan_weights"):
        load_config(flags={"control.plan_weights": (pair,)}, environ={})


def test_an_edge_that_knows_a_later_revision_is_told_everything(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        whole = await take_snapshot(plane.control, -1)
        later = await take_snapshot(plane.control, whole.revision + 1)
        assert (later.is_whole, later.tenants) == (True, whole.tenants)
        same = await take_snapshot(plane.control, whole.revision, plane.control.epoch)
        assert (same.is_whole, same.tenants) == (False, ())
        restored = await take_snapshot(plane.control, whole.revision, "of a database before")
        assert (restored.is_whole, restored.tenants) == (True, whole.tenants)

    run(scenario)


def test_an_edge_says_who_signs_up_and_nobody_else_does(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        async def sign_up(number: int, address: str, token: str) -> int:
            headers = {"x-forwarded-for": f"198.51.100.9, {address}", EDGE_HEADER: token}
            reply = await plane.client.post("/v1/signup", json={"id": f"acme-{number}"}, headers=headers)
            return int(reply.status_code)

        through = [await sign_up(number, f"203.0.113.{number}", EDGE_TOKEN) for number in range(8)]
        claimed = [await sign_up(10 + number, f"203.0.113.{number}", "guess") for number in range(8)]
        assert (through, claimed) == ([201] * 8, [201] * SIGNUPS_PER_HOUR + [429] * 3)

    in_plane(url, tmp_path, scenario, settings={"control.signup_open": True})


def test_a_network_of_ipv6_signs_up_as_one_caller() -> None:
    limiter = SignupLimiter(ManualClock(), is_open=True)
    for number in range(SIGNUPS_PER_HOUR):
        limiter.count(f"2001:db8::{number:x}")
    with pytest.raises(RequestRateExceeded):
        limiter.count("2001:db8::ffff")
    limiter.count("2001:db8:0:1::1")
    for _ in range(SIGNUPS_PER_HOUR):
        limiter.count("::ffff:192.0.2.1")
    with pytest.raises(RequestRateExceeded):
        limiter.count("192.0.2.1")
