"""Acts on the console's pages reach the objects of the owner in the address, or none: every route that changes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute

from manylora.console.application import ROUTERS
from tests.console.house import PASSWORD, Browser, ConsoleHouse, in_console, text_of, token_of
from tests.console.test_pages import upload
from tests.control.rollouts.test_rules import ready_versions
from tests.control.uploading import base_settings

REPO = "/adapters/{owner}/{repo}"
OWN_ACTS = {
    "POST /sign-in", "POST /sign-out", "POST /sign-up", "POST /new-password", "POST /sign-in-settings/password",
    "POST /keys", "POST /billing/budgets", "POST /webhooks", "POST /adapters/upload", "POST /adapters/upload/end",
    "POST /playground/ask",
}  # fmt: skip
"""Acts that name no object: they make or change something of the visitor's own tenant."""
STRANGERS_ACTS: dict[str, dict[str, str]] = {
    "POST /keys/{key}/revoke": {"force": "1"},
    "POST /billing/budgets/{budget}/end": {},
    "POST /webhooks/{webhook}/end": {},
    "POST /webhooks/messages/{message}/retry": {},
    "POST /sign-in-settings/end/{session}": {},
    f"POST {REPO}/{{tag}}/delete": {},
    f"POST {REPO}/aliases": {"alias": "prod", "version": "2"},
    f"POST {REPO}/aliases/{{alias}}/rollback": {},
    f"POST {REPO}/promotions": {"alias": "prod", "version": "2"},
    f"POST {REPO}/promotions/questions": {"metric": "contains", "questions": '{"prompt": "a", "expected": "b"}'},
    f"POST {REPO}/promotions/questions/remove": {},
    "PUT /adapters/upload/{tenant}/{upload}/{file}": {},
}
"""Acts on an object of the address, with the fields of their forms."""
PAGES_OF_OBJECTS = {
    f"GET {REPO}", f"GET {REPO}/{{tag}}", f"GET {REPO}/aliases/{{alias}}", f"GET {REPO}/promotions",
    "GET /adapters/upload/{tenant}/{upload}/{file}",
}  # fmt: skip
"""Pages of an object of the address, which its owner sees."""
OWN_OBJECTS = {"GET /billing/invoices/{month}", "GET /billing/documents/{invoice}"}
"""Pages of months, and of invoices, whose numbers `test_money.py` gives to another tenant."""
READS = ("/v2/repos?limit=100", "/v1/account/keys", "/v1/account/budgets", "/v1/account/webhooks",
         "/v1/account/sessions", "/v2/repos/triage/aliases/prod")  # fmt: skip
PASSING = {"last_used", "lastUsed"}
"""Fields that reads change by themselves."""


def routes() -> set[str]:
    """Every route of the console, without the prefix of the console."""
    found = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    return {f"{method} {route.path.removeprefix('/console')}" for route in found for method in route.methods or ()}


def acts() -> set[str]:
    """Every route that changes something."""
    return {route for route in routes() if route.partition(" ")[0] not in ("GET", "HEAD")}


def test_each_act_is_the_visitor_s_own_or_names_an_object_that_is_tested() -> None:
    operators = {act for act in acts() if act.partition(" ")[2].startswith("/operator/")}
    assert acts() - operators == OWN_ACTS | set(STRANGERS_ACTS)


def test_each_page_of_an_object_is_tested() -> None:
    found = {route for route in routes() - acts() if "{" in route and " /operator/" not in route}
    assert found == PAGES_OF_OBJECTS | OWN_OBJECTS


@dataclass
class Tenant:
    """A tenant with one object of each kind; each tenant has the same names."""

    name: str
    browser: Browser
    ids: dict[str, str] = field(default_factory=dict)

    @property
    def token(self) -> str:
        return key_of(self.browser)


def key_of(browser: Browser) -> str:
    """The key of a browser's session."""
    return str(browser.client.cookies["manylora_session"])


async def furnished(house: ConsoleHouse, browser: Browser, name: str) -> Tenant:
    tenant, call = Tenant(name, browser), house.plane.call
    for alias in ("prod", ""):
        await upload(browser, "triage", alias)
    page = f"/console/adapters/{name}/triage"
    for version in ("2", "1"):  # so that there is an earlier rule
        await browser.post(f"{page}/aliases", {"alias": "prod", "version": version}, page=page)
    key = (await call("POST", "/v1/account/keys", {"name": "ci", "scopes": ["infer"]}, key=tenant.token)).json()
    limit = {"name": "month", "limit_nanousd": 10**9, "period": "month", "hard": False}
    budget = (await call("POST", "/v1/account/budgets", limit, key=tenant.token)).json()
    hook = (await call("POST", "/v1/account/webhooks", {"url": "https://a.example/"}, key=tenant.token)).json()
    made = {"key": key["id"], "budget": budget["id"], "webhook": hook["id"], "session": tenant.token[3:11]}
    places = {"owner": name, "repo": "triage", "tag": "2", "alias": "prod", "tenant": name}
    tenant.ids = made | places | {"message": "m", "upload": "u", "file": "adapter_config.json"}
    return tenant


async def state(house: ConsoleHouse, tenant: Tenant) -> list[Any]:
    """What the tenant's API tells of all its objects."""
    return [_kept((await house.plane.call("GET", path, key=tenant.token)).json()) for path in READS]


def _kept(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _kept(each) for name, each in value.items() if name not in PASSING}
    return [_kept(each) for each in value] if isinstance(value, list) else value


async def refusals(acting: Tenant, owner: Tenant, wanted: Iterable[str]) -> dict[str, int]:
    """Send each act with the owner's objects in its address; returns the statuses that are no refusal."""
    token, found = token_of((await acting.browser.get("/console/keys")).text), {}
    for act in wanted:
        method, _, path = act.partition(" ")
        address = "/console" + path.format(**owner.ids)
        fields = {**STRANGERS_ACTS[act], "form_token": token}
        reply = await acting.browser.client.request(method, address, data=fields, headers={"x-form-token": token})
        is_refused = reply.status_code in (403, 404) or "there is no key" in text_of(reply.text)
        if not is_refused:
            found[act] = reply.status_code
    return found


def test_no_page_shows_an_object_of_another_tenant_to_a_namesake_s_owner(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browsers = {tenant: house.new_browser() for tenant in ("acme", "rival")}
        for tenant, browser in browsers.items():
            key = await ready_versions(house.plane, 2, tenant)
            await house.plane.call("PUT", "/v2/repos/triage/aliases/prod", {"version": 2}, key=key)
            await house.plane.call("PUT", "/v1/account/login", {"password": PASSWORD}, key=key)
            await browser.sign_in(tenant)
        owner, stranger = browsers.values()
        token = {"x-form-token": token_of((await owner.get("/console/adapters")).text)}
        begun = await owner.client.post("/console/adapters/upload", json={"repo": "triage"}, headers=token)
        _, upload, file = next(iter(begun.json()["files"].values())).rsplit("/", 2)
        places = {"owner": "acme", "repo": "triage", "tag": "2", "alias": "prod"}
        places |= {"tenant": "acme", "upload": upload, "file": file}
        for page in sorted(PAGES_OF_OBJECTS):
            path = "/console" + page.partition(" ")[2].format(**places)
            assert (await owner.get(path)).status_code == 200, path
            assert (await stranger.get(path)).status_code == 404, path
        await house.plane.call("PUT", "/v2/repos/triage", {"public": True}, key=key_of(owner))
        shown = {f"GET {REPO}", f"GET {REPO}/{{tag}}"}
        for page in sorted(PAGES_OF_OBJECTS):
            status = (await stranger.get("/console" + page.partition(" ")[2].format(**places))).status_code
            assert status == (200 if page in shown else 404), page

    in_console(tmp_path, scenario)


@pytest.mark.long
@pytest.mark.usefixtures("checks_in_process")
def test_no_act_of_a_tenant_or_the_operator_takes_a_namesake(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        await house.plane.call("PUT", "/v1/account/login", {"password": PASSWORD})
        acme, rival, operator = (house.new_browser() for _ in range(3))
        await acme.sign_up("acme")
        await rival.sign_up("rival")
        await operator.sign_in("operator")
        tenants = [await furnished(house, each, name) for each, name in
                   ((acme, "acme"), (rival, "rival"), (operator, "operator"))]  # fmt: skip
        owner, stranger, admin = tenants
        before = [await state(house, each) for each in tenants]
        assert await refusals(stranger, owner, STRANGERS_ACTS) == {}
        await house.plane.call("PUT", "/v2/repos/triage", {"public": True}, key=owner.token)
        assert await refusals(stranger, owner, [act for act in STRANGERS_ACTS if REPO in act]) == {}
        await house.plane.call("PUT", "/v2/repos/triage", {"public": False}, key=owner.token)
        deletion = f"POST {REPO}/{{tag}}/delete"
        assert await refusals(admin, owner, STRANGERS_ACTS.keys() - {deletion}) == {}
        assert [await state(house, each) for each in tenants] == before
        page = "/console/adapters/acme/triage"
        assert "Set an alias" not in (await operator.get(page)).text
        receipt = await operator.post(f"{page}/2/delete", {}, page=page)
        assert "acme/triage/2" in text_of(receipt.text)
        assert "Request" in text_of(receipt.text), "the row of the audit table is that of this act"
        assert [await state(house, each) for each in (stranger, admin)] == before[1:]
        left = (await house.plane.call("GET", "/v2/repos/triage", key=owner.token)).json()
        assert [each["tag"] for each in left["versions"]] == [1]

    in_console(tmp_path, scenario, settings=base_settings(tmp_path))
