"""Tenants and keys over HTTP, on both engines: made, changed, suspended, rotated, revoked; and who may do what."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import URL

from manylora.config.settings import load_config
from manylora.errors import ConfigInvalid
from manylora.tenancy import mint_key
from tests.control.plane import Plane, in_plane


def test_a_new_tenant_has_its_credit_and_a_key_shown_once(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        made = (await plane.call("POST", "/admin/tenants", {"id": "acme", "name": "Acme"})).json()
        key = made["key"]["key"]
        account = (await plane.call("GET", "/v1/account", key=key)).json()
        assert (account["id"], account["state"]) == ("acme", "active")
        assert account["balance"]["left_nanousd"] == 25_000_000_000
        listed = (await plane.call("GET", "/v1/account/keys", key=key)).json()["keys"]
        assert [entry["key"] for entry in listed] == [None]
        assert key.split("_")[2] not in (await plane.call("GET", "/admin/tenants/acme/keys")).text

    run(scenario)


@pytest.mark.parametrize("code", ["", "a/b", "..", "-x", "v1", "Admin", "default", "operator", "x" * 65, "é", "a b"])
def test_a_code_that_cannot_be_one_is_refused_by_name(run: Callable[..., None], code: str) -> None:
    async def scenario(plane: Plane) -> None:
        reply = await plane.call("POST", "/admin/tenants", {"id": code})
        assert reply.status_code == 422
        assert "`id`" in reply.json()["error"]

    run(scenario)


def test_a_code_is_given_once_whatever_its_case(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        for code in ("acme", "ACME"):
            reply = await plane.call("POST", "/admin/tenants", {"id": code})
            assert (reply.status_code, reply.json()["code"]) == (409, "name_taken")

    run(scenario)


def test_every_wrong_key_is_answered_alike(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        expiring = await plane.call("POST", "/admin/tenants/acme/keys", {"expires_in_s": 60})
        revoked = await plane.call("POST", "/admin/tenants/acme/keys", {})
        await plane.call("DELETE", f"/admin/keys/{revoked.json()['id']}")
        assert (await plane.call("GET", "/v1/account", key=expiring.json()["key"])).status_code == 200
        plane.clock.advance(61)
        altered = key[:-1] + ("a" if key[-1] != "a" else "b")
        wrong = (mint_key()[1], altered, expiring.json()["key"], revoked.json()["key"])
        replies = [await plane.call("GET", "/v1/account", key=text) for text in wrong]
        assert {reply.status_code for reply in replies} == {401}
        assert len({reply.text for reply in replies}) == 1
        assert {reply.headers["www-authenticate"] for reply in replies} == {"Bearer"}
        assert (await plane.call("GET", "/v1/account", key=None)).status_code == 401
        assert (await plane.call("GET", "/v1/account", key=key)).status_code == 200

    run(scenario)


def test_a_suspended_tenant_is_refused_until_it_is_resumed(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await plane.call("POST", "/admin/tenants/acme/suspend")
        reply = await plane.call("GET", "/v1/account", key=key)
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "tenant_suspended")
        await plane.call("POST", "/admin/tenants/acme/resume")
        assert (await plane.call("GET", "/v1/account", key=key)).status_code == 200
        await plane.call("POST", "/admin/tenants/acme/close")
        assert (await plane.call("POST", "/admin/tenants/acme/resume")).status_code == 422

    run(scenario)


def test_only_the_operator_reaches_the_admin_routes(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        for method, path, body in (
            ("GET", "/admin/tenants", None),
            ("POST", "/admin/tenants", {"id": "other"}),
            ("POST", "/admin/tenants/acme/credits", {"id": "x", "nanousd": 1, "reason": "gift"}),
            ("GET", "/admin/tenants/acme/keys", None),
            ("DELETE", f"/admin/keys/{key.split('_')[1]}", None),
        ):
            reply = await plane.call(method, path, body, key=key)
            assert (reply.status_code, reply.json()["code"]) == (403, "insufficient_permissions")
        reply = await plane.call("POST", "/v1/account/keys", {"scopes": ["admin"]}, key=key)
        assert reply.status_code == 403

    run(scenario)


def test_a_tenant_cannot_touch_anothers_key(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        mine, theirs = await plane.new_tenant("acme"), await plane.new_tenant("beta")
        foreign = await plane.call("DELETE", f"/v1/account/keys/{theirs.split('_')[1]}", key=mine)
        unknown = await plane.call("DELETE", "/v1/account/keys/00000000", key=mine)
        assert foreign.status_code == unknown.status_code == 404
        assert foreign.text.replace(theirs.split("_")[1], "00000000") == unknown.text
        assert (await plane.call("GET", "/v1/account", key=theirs)).status_code == 200

    run(scenario)


def test_a_rotated_key_lives_through_its_grace(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        new = (await plane.call("POST", f"/admin/keys/{key.split('_')[1]}/rotate", {"grace_s": 30})).json()["key"]
        assert [(await plane.call("GET", "/v1/account", key=text)).status_code for text in (key, new)] == [200, 200]
        plane.clock.advance(31)
        assert [(await plane.call("GET", "/v1/account", key=text)).status_code for text in (key, new)] == [401, 200]
        await plane.call("POST", f"/admin/keys/{new.split('_')[1]}/rotate", {})
        assert (await plane.call("GET", "/v1/account", key=new)).status_code == 401

    run(scenario)


def test_limits_and_terms_are_replaced_and_bad_ones_named(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme", limits={"requests_per_minute": 5})
        reply = await plane.call("PUT", "/admin/tenants/acme/limits", {"max_rank": 16})
        others = ("requests_per_minute", "tokens_per_minute", "concurrent_streams", "adapters", "adapter_bytes")
        none = dict.fromkeys([*others, "monthly_budget_nanousd"])
        assert reply.json() == {**none, "max_rank": 16, "bases": {}}
        for body, field in (
            ({"max_rank": -1}, "max_rank"),
            ({"max_rank": "16"}, "max_rank"),
            ({"max_rank": 2**70}, "max_rank"),
            ({"maxRank": 1}, "maxRank"),
        ):
            wrong = await plane.call("PUT", "/admin/tenants/acme/limits", body)
            assert wrong.status_code == 422
            assert field in wrong.json()["error"]
        assert (await plane.call("PATCH", "/admin/tenants/acme", {"weight": 0})).status_code == 422
        changed = await plane.call("PATCH", "/admin/tenants/acme", {"weight": 3, "plan": "gold"})
        assert (changed.json()["weight"], changed.json()["limits"]["max_rank"]) == (3, 16)

    run(scenario)


def test_tenants_are_listed_page_by_page(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        for code in ("b", "a", "c"):
            await plane.new_tenant(code)
        seen, after = [], ""
        while True:
            page = (await plane.call("GET", f"/admin/tenants?limit=2&after={after}")).json()
            seen += [tenant["id"] for tenant in page["tenants"]]
            if page["next"] is None:
                break
            after = page["next"]
        assert seen == ["a", "b", "c", "default", "operator"]

    run(scenario)


def test_signing_up_is_closed_unless_it_is_opened_and_then_bounded(run: Callable[..., None]) -> None:
    async def closed(plane: Plane) -> None:
        reply = await plane.call("POST", "/v1/signup", {"id": "acme"}, key=None)
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "signup_closed")

    run(closed)


def test_signing_up_gives_a_tenant_its_credit_and_its_key(run: Callable[..., None]) -> None:
    async def opened(plane: Plane) -> None:
        for number in range(5):
            made = await plane.call("POST", "/v1/signup", {"id": f"acme-{number}"}, key=None)
            account = await plane.call("GET", "/v1/account", key=made.json()["key"]["key"])
            assert account.json()["balance"]["left_nanousd"] == 7
            assert account.json()["limits"]["adapters"] == 3
            assert account.json()["limits"]["tokens_per_minute"] is None
            assert account.json()["limits"]["bases"]["org/large"]["requests_per_minute"] == 9
        refused = await plane.call("POST", "/v1/signup", {"id": "acme-5"}, key=None)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "3600")
        plane.clock.advance(3601)
        assert (await plane.call("POST", "/v1/signup", {"id": "acme-5"}, key=None)).status_code == 201

    settings = {
        "control.signup_open": True,
        "control.signup_credit_nanousd": 7,
        "control.signup_limits": ("adapters=3", "org/large/requests_per_minute=9"),
    }
    run(opened, settings=settings)


@pytest.mark.parametrize(
    "pair", ["adapters", "adapters=", "adapters=-1", "friends=3", "=3", "large/adapters=3", "/tokens_per_minute=3"]
)
def test_a_sign_ups_limit_that_is_none_is_refused(pair: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"control\.signup_limits"):
        load_config(flags={"control.signup_limits": (pair,)}, environ={})


def test_without_keys_a_program_here_is_the_operator_and_a_stranger_is_not(url: URL, tmp_path: Path) -> None:
    async def here(plane: Plane) -> None:
        assert (await plane.call("GET", "/admin/tenants", key=None)).status_code == 200
        assert (await plane.call("GET", "/v1/account", key=None)).json()["id"] == "default"

    async def stranger(plane: Plane) -> None:
        assert (await plane.call("GET", "/admin/tenants", key=None)).status_code == 403

    in_plane(url, tmp_path, here, is_key_needed=False, client_host="127.0.0.1")
    in_plane(url, tmp_path, stranger, is_key_needed=False)


def test_any_key_may_ask_what_it_is(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        for scope in ("infer", "read", "upload", "manage"):
            body = {"name": "ci", "scopes": [scope], "limits": {"max_rank": 8}, "expires_in_s": 60}
            made = (await plane.call("POST", "/admin/tenants/acme/keys", body)).json()
            told = (await plane.call("GET", "/v1/account/key", key=made["key"])).json()
            assert told == {name: made[name] for name in ("tenant", "id", "name", "scopes", "limits", "expires")}
        assert (await plane.call("GET", "/v1/account/key", key=None)).status_code == 401

    run(scenario)


def test_who_needs_no_key_may_ask_what_he_may_do(url: URL, tmp_path: Path) -> None:
    for host, is_operator in (("127.0.0.1", True), ("192.0.2.9", False)):

        async def scenario(plane: Plane, *, is_operator: bool = is_operator) -> None:
            told = (await plane.call("GET", "/v1/account/key", key=None)).json()
            assert (told["tenant"], told["id"], "admin" in told["scopes"]) == ("default", None, is_operator)

        in_plane(url, tmp_path, scenario, is_key_needed=False, client_host=host)


def test_the_admin_key_is_shown_at_the_first_start_only(url: URL, tmp_path: Path) -> None:
    shown: list[str] = []

    async def scenario(plane: Plane) -> None:
        shown.append(plane.admin_key)
        if shown[0]:
            assert (await plane.call("GET", "/admin/tenants", key=shown[0])).status_code == 200

    in_plane(url, tmp_path, scenario)
    in_plane(url, tmp_path, scenario)
    assert shown[0].startswith("pb_")
    assert shown[1] == ""


def test_unknown_routes_and_methods_are_told_as_errors(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        unknown = await plane.call("GET", "/admin/nothing")
        assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_route")
        wrong = await plane.call("DELETE", "/admin/tenants")
        assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")
        broken = await plane.client.post(
            "/admin/tenants",
            content=b"{",
            headers={"authorization": f"Bearer {plane.admin_key}", "content-type": "application/json"},
        )
        assert (broken.status_code, broken.json()["code"]) == (400, "invalid_json")

    run(scenario)


def test_every_route_of_operators_and_accounts_is_explained_with_the_form_of_its_reply(
    run: Callable[..., None],
) -> None:
    async def scenario(plane: Plane) -> None:
        document = (await plane.call("GET", "/admin/openapi.json")).json()
        mine = {path: found for path, found in document["paths"].items() if path.startswith(("/admin", "/v1/account"))}
        assert "/admin/tenants/{tenant}/credits" in mine
        for path, methods in mine.items():
            for method, operation in methods.items():
                assert operation.get("description"), f"{method} {path} has no docstring"
                reply = next(found for status, found in operation["responses"].items() if status.startswith("2"))
                schema = reply.get("content", {}).get("application/json", {}).get("schema")
                is_formless = schema in ({}, {"type": "object"})  # what is no JSON, or nothing, has no form to be told
                assert not is_formless, f"{method} {path} has no reply model"

    run(scenario)
