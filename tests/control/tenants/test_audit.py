"""The audit table: each act of an operator or a key leaves a row, in its transaction, for as long as it is kept."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, update

from manylora.control.billing.ledger import insert_records
from manylora.control.calendar import DAY_MS
from manylora.control.process.janitor import Janitor
from manylora.control.storage.budget_tables import webhook_messages
from manylora.control.tenants.audit import MAX_LETTERS, bounded_json, public_source
from manylora.control.webhooks.outbox import DEAD, enqueue
from manylora.http.paths import CONTROL_ROUTES
from tests.control.plane import Plane, in_plane, record
from tests.control.uploading import PLAIN, base_settings, put, upload

pytestmark = pytest.mark.usefixtures("checks_in_process")

NO_ACTS = {"PUT /v2/adapters/upload/{tenant}/{upload}/{file}"}
"""Bytes of an upload: its beginning and its end are the acts."""
KEYLESS = ("POST /v1/signup", "POST /v1/account/sessions", "POST /v1/account/login/reset")
DEDICATED = {"name": "ours", "config": {"baseModel": "Tiny-Base", "hfToken": "hf_secret"}}


@pytest.fixture
def run(url: URL, tmp_path: Path) -> Callable[..., None]:
    def go(scenario: Any, **settings: Any) -> None:
        in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path, **settings))

    return go


async def rows_of(plane: Plane, **query: Any) -> list[dict[str, Any]]:
    reply = await plane.call("GET", "/admin/audit", params={"limit": 1000, **query})
    assert reply.status_code == 200, reply.text
    return list(reply.json()["audit"])


class Walk:
    """Acts, one after another; each has to leave at least one row that names who did it."""

    def __init__(self, plane: Plane, key: str) -> None:
        self.plane = plane
        self.key = key
        self.walked: set[str] = set()

    async def act(self, route: str, body: object = None, *, is_own: bool = False, query: str = "", **names: str) -> Any:
        """Call a route of the table; returns the reply's JSON, None where there is none."""
        method, _, path = route.partition(" ")
        before = await rows_of(self.plane)
        chosen = self.key if is_own else self.plane.admin_key
        if route in KEYLESS:
            chosen = ""
        reply = await self.plane.call(method, path.format(**names) + query, body, key=chosen or None)
        assert reply.is_success, (route, reply.text)
        new = (await rows_of(self.plane))[: -len(before) or None]
        assert new, f"{route} leaves no row"
        assert {row["by_key"] for row in new} == {chosen.split("_")[1] if chosen else None}, route
        assert all(row["request_id"] and row["address"] == "192.0.2.7" for row in new)
        self.walked.add(route)
        return reply.json() if reply.content else None


async def act_as_operator(walk: Walk) -> None:
    beta: dict[str, Any] = {"tenant": "beta"}
    await walk.act("POST /admin/tenants", {"id": "beta"})
    await walk.act("PATCH /admin/tenants/{tenant}", {"plan": "pro"}, **beta)
    await walk.act("PUT /admin/tenants/{tenant}/limits", {"adapters": 3}, **beta)
    grant = {"id": "g-1", "nanousd": 5, "reason": "paid"}
    await walk.act("POST /admin/tenants/{tenant}/credits", grant, **beta)
    await walk.act("POST /admin/tenants/{tenant}/suspend", **beta)
    await walk.act("POST /admin/tenants/{tenant}/resume", **beta)
    made = await walk.act("POST /admin/tenants/{tenant}/keys", {}, **beta)
    await walk.act("PUT /admin/keys/{key}/limits", {"requests_per_minute": 5}, key=made["id"])
    made = await walk.act("POST /admin/keys/{key}/rotate", {}, key=made["id"])
    await walk.act("DELETE /admin/keys/{key}", key=made["id"])
    price = {"base": "Tiny-Base", "input_nanousd": 1, "output_nanousd": 2}
    await walk.act("POST /admin/prices", price)
    opened_ms = walk.plane.control.now_ms()
    await insert_records(walk.plane.control, [record(1, opened_ms=opened_ms)])
    correction = {"id": "c-1", "corrects": "usage-1", "reason": "sorry", "prompt_tokens": -1, "completion_tokens": 0}
    await walk.act("POST /admin/corrections", correction)


async def act_as_customer(walk: Walk) -> None:
    plane, key = walk.plane, walk.key
    made = await walk.act("POST /v1/account/keys", {"scopes": ["infer"]}, is_own=True)
    await walk.act("PUT /v1/account/keys/{key}/limits", {"max_rank": 8}, is_own=True, key=made["id"])
    made = await walk.act("POST /v1/account/keys/{key}/rotate", {}, is_own=True, key=made["id"])
    await walk.act("DELETE /v1/account/keys/{key}", is_own=True, key=made["id"])
    await walk.act("POST /v2/repos", {"name": "triage"}, is_own=True)
    begun = await walk.act("POST /v2/adapters/upload", {"repo": "triage"}, is_own=True)
    for name, data in (("adapter_config.json", PLAIN.config), ("adapter_model.safetensors", PLAIN.weights)):
        await put(plane, begun["presignedUrls"][name], data)
    await walk.act("PUT /v2/adapters/upload", {"uploadToken": begun["uploadToken"]}, is_own=True)
    await upload(plane, key, "triage")
    triage: dict[str, Any] = {"repo": "triage"}
    await walk.act("PUT /v2/repos/{repo}", {"description": "d", "public": False}, is_own=True, **triage)
    await walk.act("PUT /v2/repos/{repo}/aliases/{alias}", {"version": 1}, is_own=True, **triage, alias="prod")
    await act_on_rollouts(walk)
    await walk.act("DELETE /v2/repos/{repo}/aliases/{alias}", is_own=True, **triage, alias="prod")
    await walk.act("POST /v2/repos/{repo}/shares", {"tenants": ["beta"]}, is_own=True, **triage)
    await walk.act("DELETE /v2/repos/{repo}/shares/{tenant}", is_own=True, **triage, tenant="beta")
    signed = {"adapter_id": "store/x", "adapter_source": "https"}
    await walk.act("POST /v2/repos/{repo}/versions", signed, is_own=True, **triage)
    await walk.act("PUT /v2/repos/{repo}/version/{tag}", {"archived": True}, is_own=True, **triage, tag="1")
    await walk.act("DELETE /v2/repos/{repo}/version/{tag}", is_own=True, **triage, tag="1")
    await walk.act("POST /v2/deployments", DEDICATED, is_own=True)
    await walk.act("PUT /v2/deployments/{name}", {"description": "d"}, is_own=True, name="ours")
    await walk.act("DELETE /v2/deployments/{name}", is_own=True, name="ours")
    await walk.act("POST /v1/signup", {"id": "gamma"})


async def act_on_rollouts(walk: Walk) -> None:
    """Act on the alias `prod` of the repository `triage`, which has the first version."""
    prod: dict[str, Any] = {"repo": "triage", "alias": "prod"}
    question = {"metric": "contains", "questions": '{"prompt": "x", "expected": "y"}'}
    await walk.act("PUT /v2/repos/{repo}/evaluation", question, is_own=True, repo="triage")
    await walk.act("POST /v2/repos/{repo}/aliases/{alias}/promotions", {"version": 1}, is_own=True, **prod)
    await walk.act("DELETE /v2/repos/{repo}/evaluation", is_own=True, repo="triage")
    promoted = "POST /admin/repos/{tenant}/{repo}/aliases/{alias}/promote"
    await walk.act(promoted, {"version": 2}, tenant="acme", **prod)
    await walk.act("POST /v2/repos/{repo}/aliases/{alias}/rollback", is_own=True, **prod)
    catalogue = {"tenants": {"beta": {"weight": 3}}}
    shown = (await walk.plane.call("PUT", "/admin/catalogue?dryRun=true", catalogue)).json()
    await walk.act("PUT /admin/catalogue", catalogue, query=f"?digest={shown['digest']}")


async def act_on_money(walk: Walk) -> None:
    control, budget = walk.plane.control, {"name": "team", "limit_nanousd": 5}
    made = await walk.act("POST /admin/tenants/{tenant}/budgets", budget, tenant="beta")
    await walk.act("DELETE /admin/budgets/{budget}", budget=made["id"])
    made = await walk.act("POST /v1/account/budgets", budget, is_own=True)
    await walk.act("DELETE /v1/account/budgets/{budget}", is_own=True, budget=made["id"])
    made = await walk.act("POST /v1/account/webhooks", {"url": "https://hooks.example/"}, is_own=True)
    async with control.database.write() as connection:
        await enqueue(connection, "acme", "budget.alert", "event", {}, control.now_ms())
        dead = update(webhook_messages).values(state=DEAD).returning(webhook_messages.c.id)
        message = (await connection.execute(dead)).scalar_one()
    await walk.act("POST /v1/account/webhooks/messages/{message}/retry", is_own=True, message=message)
    await walk.act("DELETE /v1/account/webhooks/{webhook}", is_own=True, webhook=made["id"])


async def act_on_logins(walk: Walk) -> None:
    login = {"tenant": "acme", "password": "a long enough password"}
    await walk.act("PUT /v1/account/login", {"password": login["password"]}, is_own=True)
    opened = await walk.act("POST /v1/account/sessions", login)
    await walk.act("DELETE /v1/account/sessions/{session}", is_own=True, session=opened["id"])
    made = await walk.act("POST /admin/tenants/{tenant}/login-code", tenant="acme")
    await walk.act("POST /v1/account/login/reset", {**login, "code": made["code"]})


async def act_on_invoices(walk: Walk) -> None:
    root = "/admin/billing/invoices"
    month: dict[str, Any] = {"tenant": "beta", "month": "2020-01"}
    made = await walk.act(f"POST {root}", month)
    await walk.act(f"DELETE {root}/{{invoice}}", invoice=made["id"])
    made = await walk.act(f"POST {root}", month)
    await walk.act(f"POST {root}/{{invoice}}/finalise", invoice=made["id"])
    await walk.act(f"POST {root}/{{invoice}}/void", {}, invoice=made["id"])
    clock = walk.plane.clock
    now = datetime.fromtimestamp(clock.wall_s(), UTC)
    clock.advance(32 * 86_400)
    made = await walk.act(f"POST {root}", {"tenant": "acme", "month": f"{now:%Y-%m}"})
    await walk.act(f"POST {root}/{{invoice}}/finalise", invoice=made["id"])
    await walk.act(f"POST {root}/{{invoice}}/credit-notes", {"nanousd": 1, "reason": "r"}, invoice=made["id"])
    await walk.act(f"POST {root}/{{invoice}}/pay", {}, invoice=made["id"])
    export = (await walk.plane.call("GET", "/admin/billing/exports/meter")).json()
    bounds = {name: export[name] for name in ("begin_ms", "end_ms", "pages")}
    await walk.act("POST /admin/billing/exports/{sink}", bounds, sink="meter")


async def act_on_repositories(walk: Walk) -> None:
    triage: dict[str, Any] = {"tenant": "acme", "repo": "triage"}
    await walk.act("POST /admin/repos/{tenant}/{repo}/archive", **triage)
    await walk.act("POST /admin/repos/{tenant}/{repo}/unarchive", **triage)
    await walk.act("POST /admin/repos/{tenant}/{repo}/version/{tag}/archive", **triage, tag="2")
    await walk.act("POST /admin/repos/{tenant}/{repo}/version/{tag}/unarchive", **triage, tag="2")
    await walk.act("DELETE /admin/repos/{tenant}/{repo}/version/{tag}", **triage, tag="2")
    await walk.act("DELETE /admin/repos/{tenant}/{repo}", **triage)
    await walk.act("POST /v2/repos", {"name": "again"}, is_own=True)
    await walk.act("DELETE /v2/repos/{repo}", is_own=True, repo="again")
    await walk.act("POST /v2/repos", {"name": "left"}, is_own=True)
    await walk.act("POST /admin/tenants/{tenant}/close", tenant="acme")
    await walk.act("DELETE /admin/repos/{tenant}", tenant="acme")


@pytest.mark.long
def test_every_route_that_changes_something_leaves_a_row(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        walk = Walk(plane, await plane.new_tenant("acme"))
        await act_as_operator(walk)
        await act_as_customer(walk)
        await act_on_money(walk)
        await act_on_invoices(walk)
        await act_on_logins(walk)
        await act_on_repositories(walk)
        plain = {
            f"{route.method} {route.path}".rstrip("/")
            for route in CONTROL_ROUTES
            if route.method != "GET" and not route.path.startswith("/v1/v2/")
        }
        assert walk.walked == plain - NO_ACTS, "a route that changes something leaves a row, and this walk asks for it"
        text = json.dumps(await rows_of(plane))
        assert "hf_secret" not in text
        assert not [secret for secret in (plane.admin_key, walk.key) if secret.split("_")[2] in text]

    run(scenario, **{"control.signup_open": True, "adapters.stores": ("http://127.0.0.1:9",)})


def test_a_row_is_written_with_its_act_or_not_at_all(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        before = len(await rows_of(plane))
        for method, path, body in (
            ("POST", "/admin/tenants", {"id": "acme"}),
            ("POST", "/admin/tenants/acme/keys", {"scopes": []}),
            ("DELETE", "/v1/account/keys/unknown0", None),
            ("PUT", "/v2/repos/none/aliases/prod", {"version": 1}),
        ):
            chosen = plane.admin_key if path.startswith("/admin") else key
            assert not (await plane.call(method, path, body, key=chosen)).is_success
        assert len(await rows_of(plane)) == before
        same = {"id": "g-1", "nanousd": 5, "reason": "paid"}
        for _ in range(2):
            assert (await plane.call("POST", "/admin/tenants/acme/credits", same)).status_code == 201
        assert len(await rows_of(plane)) == before + 1

    run(scenario)


def test_a_row_says_who_did_what_and_how_it_was_before(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        headers = {"authorization": f"Bearer {plane.admin_key}", "x-request-id": "ticket-7"}
        await plane.client.put("/admin/tenants/acme/limits", json={"max_rank": 16}, headers=headers)
        await plane.client.put("/admin/tenants/acme/limits", json={"max_rank": 8}, headers=headers)
        row = (await rows_of(plane))[0]
        told = (
            row["verb"],
            row["kind"],
            row["name"],
            row["tenant"],
            row["by_tenant"],
            row["by_key"],
            row["request_id"],
        )
        operator = plane.admin_key.split("_")[1]
        assert told == ("limit", "tenant", "acme", "acme", "operator", operator, "ticket-7")
        assert (row["before"], row["after"]) == ({"max_rank": 16}, {"max_rank": 8})
        own = (await plane.call("GET", "/v1/account/audit", key=key)).json()["audit"][0]
        hidden = {"by_key": None, "address": None, "request_id": None}
        assert own == row | hidden, "whose key of the operator's it was is no concern of a customer"
        for query in ({"by": operator}, {"by": "beta"}):
            assert (await plane.call("GET", "/v1/account/audit", key=key, params=query)).json()["audit"] == []

    run(scenario)


def test_a_tenant_sees_its_own_rows_page_by_page_and_no_others(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        key, other = await plane.new_tenant("acme"), await plane.new_tenant("beta")
        for name in ("a", "b", "c"):
            await plane.call("POST", "/v2/repos", {"name": name}, key=key)
        first = (await plane.call("GET", "/v1/account/audit?limit=2", key=key)).json()
        rest = (await plane.call("GET", f"/v1/account/audit?limit=9&before={first['before']}", key=key)).json()
        assert [row["name"] for row in first["audit"]] == ["c", "b"]
        assert [(row["verb"], row["kind"]) for row in rest["audit"]] == [
            ("create", "repository"),
            ("create", "key"),
            ("create", "tenant"),
        ]
        assert rest["before"] is None
        theirs = (await plane.call("GET", "/v1/account/audit", key=other)).json()["audit"]
        assert {row["tenant"] for row in theirs} == {"beta"}
        narrow = await plane.call("POST", "/v1/account/keys", {"scopes": ["infer"]}, key=key)
        assert (await plane.call("GET", "/v1/account/audit", key=narrow.json()["key"])).status_code == 403

    run(scenario)


def test_rows_are_found_by_tenant_moment_and_actor(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        plane.clock.advance(86_400)
        await plane.call("POST", "/v2/repos", {"name": "a"}, key=key)
        since = (await rows_of(plane))[0]["at"]
        assert [row["name"] for row in await rows_of(plane, since=since)] == ["a"]
        assert [row["name"] for row in await rows_of(plane, by=key.split("_")[1])] == ["a"]
        assert {row["by_tenant"] for row in await rows_of(plane, by="operator")} == {"operator"}
        assert {row["tenant"] for row in await rows_of(plane, tenant="operator")} == {"operator"}
        assert [row["verb"] for row in await rows_of(plane, tenant="acme", verb="create")] == ["create"] * 3
        wrong = await plane.call("GET", "/admin/audit?since=yesterday")
        assert (wrong.status_code, "`since`" in wrong.json()["error"]) == (422, True)
        assert (await plane.call("GET", "/admin/audit?tenant=nobody")).status_code == 404

    run(scenario)


def test_a_tenants_changes_are_bounded_and_its_keys_end_all_the_same(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manylora.control.tenants.audit.MAX_ACTS_A_DAY", 3)

    async def scenario(plane: Plane) -> None:
        key, other = await plane.new_tenant("acme"), await plane.new_tenant("beta")
        replies = [await plane.call("POST", "/v2/repos", {"name": f"r-{number}"}, key=key) for number in range(4)]
        assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
        assert int(replies[3].headers["retry-after"]) > 0
        assert len((await plane.call("GET", "/v2/repos", key=key)).json()["data"]["repos"]) == 3, "it is undone"
        rotated = await plane.call("POST", f"/v1/account/keys/{key.split('_')[1]}/rotate", {}, key=key)
        assert rotated.status_code == 201
        assert (await plane.call("POST", "/v2/repos", {"name": "a"}, key=other)).status_code == 200
        assert (await plane.call("PUT", "/admin/tenants/acme/limits", {})).status_code == 200
        plane.clock.advance(86_401)
        key = rotated.json()["key"]
        assert (await plane.call("POST", "/v2/repos", {"name": "r-3"}, key=key)).status_code == 200

    run(scenario)


def test_rows_older_than_audit_days_are_removed(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        caretaker = Janitor(plane.control)
        await plane.new_tenant("acme")
        plane.clock.advance(2 * DAY_MS / 1000)
        await plane.new_tenant("beta")
        await caretaker.round()
        assert len(await rows_of(plane)) == 5, "the operator's first key, and a tenant and a key each"
        plane.clock.advance(DAY_MS / 1000)
        await caretaker.round()
        assert [row["name"] for row in await rows_of(plane) if row["kind"] == "tenant"] == ["beta"]

    run(scenario, **{"control.audit_days": 2})


def test_what_is_kept_of_an_object_is_bounded_and_storable() -> None:
    long = bounded_json({f"name-{number}": "x" * 1_000 for number in range(1_000)})
    assert long is not None
    assert len(long) <= MAX_LETTERS
    assert json.loads(long)["cut"].startswith('{"name-0":"xx')
    assert json.loads(bounded_json(list(range(60))) or "")[-1] == "… 10 more"
    assert "\0" not in str(bounded_json({"a": "b\0c\ud800"}))


@pytest.mark.parametrize(
    ("scheme", "name", "public"),
    [
        ("hub", "org/tone@main", "hub://org/tone@main"),
        ("https", "ada:secret@files.example/a/b?X-Amz-Signature=s#f", "https://files.example/a/b"),
        ("https", "https://files.example/a?sig=s", "https://files.example/a"),
    ],
)
def test_an_address_is_kept_without_its_secrets(scheme: str, name: str, public: str) -> None:
    assert public_source(scheme, name) == public
