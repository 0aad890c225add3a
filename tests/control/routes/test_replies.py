"""Every route of the control plane's OpenAPI document, asked well and badly: each reply is what the document says."""

from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import URL, update

from manylora.control.billing.ledger import insert_records
from manylora.control.storage.budget_tables import webhook_messages
from manylora.control.webhooks.outbox import DEAD, enqueue
from manylora.http.paths import CONTROL_ROUTES
from tests.control.plane import Plane, in_plane, record
from tests.control.uploading import PLAIN, base_settings
from tests.integration.documents.conformance import Conformance

BASE = "Mistral-7b-instruct"
DEDICATED = {"config": {"baseModel": "mistralai/Mistral-7B-Instruct-v0.1", "minReplicas": 0, "maxReplicas": 1}}
WRONG: tuple[dict[str, Any], ...] = ({"json": {"none": 1}}, {"json": []}, {"content": b"{"})
COPIES = {("post", f"{v1}/v2/repos/{{repo}}/versions") for v1 in ("", "/v1")}
"""Copies from a hub, which `test_copies.py` has; without a hub each is refused."""
WRITES = ("post", "put", "patch")


class Asking:
    """Requests to a control plane whose replies are as documented."""

    def __init__(self, plane: Plane, seen: Conformance, key: str) -> None:
        self.plane, self.seen, self.key = plane, seen, key

    async def ask(self, method: str, path: str, *, key: str | None = None, **more: Any) -> httpx2.Response:
        """Send a request with a key, the tenant's by default."""
        headers = {"authorization": f"Bearer {key or self.key}", "content-type": "application/json"}
        return self.seen.note(await self.plane.client.request(method, path, headers=headers, **more))

    async def good(self, method: str, path: str, body: Any = None, *, key: str | None = None, **more: Any) -> Any:
        """The JSON of a good reply; None if it is no JSON."""
        reply = await self.ask(method, path, key=key, json=body, **more)
        assert reply.is_success, f"{method} {path} {reply.status_code} {reply.text}"
        return reply.json() if reply.content and "json" in reply.headers.get("content-type", "") else None

    async def both(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """As `good`, of the path with and without its prefix."""
        await self.good(method, f"/v1{path}", body, **more)
        return await self.good(method, path, body, **more)

    async def operators(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        return await self.good(method, f"/admin{path}", body, key=self.plane.admin_key, **more)


async def ask_about_tenants(asking: Asking) -> None:
    await asking.good("GET", "/health")
    await asking.good("GET", "/openapi.json")
    await asking.good("POST", "/v1/signup", {"id": "fresh", "name": "Fresh"})
    await asking.operators("POST", "/tenants", {"id": "gone", "credit_nanousd": 5})
    await asking.operators("GET", "/tenants?limit=2")
    await asking.operators("GET", "/tenants/gone")
    await asking.operators("PATCH", "/tenants/gone", {"weight": 3})
    for verb in ("suspend", "resume"):
        await asking.operators("POST", f"/tenants/gone/{verb}")
    await asking.operators("PUT", "/tenants/gone/limits", {"requests_per_minute": 9})
    await asking.operators("GET", "/tenants/gone/limits")
    await asking.operators("POST", "/tenants/gone/credits", {"id": "g1", "nanousd": 7, "reason": "more"})
    await asking.operators("GET", "/tenants/gone/credits")
    made = await asking.operators("POST", "/tenants/gone/keys", {"name": "second"})
    await asking.operators("GET", "/tenants/gone/keys")
    await asking.operators("PUT", f"/keys/{made['id']}/limits", {"tokens_per_minute": 5})
    rotated = await asking.operators("POST", f"/keys/{made['id']}/rotate", {"grace_s": 1.0})
    await asking.operators("DELETE", f"/keys/{rotated['id']}")
    await asking.operators("POST", "/tenants/gone/close")
    await asking.operators("GET", "/audit?limit=3")


async def ask_about_money(asking: Asking) -> None:
    price = {"base": BASE, "input_nanousd": 3, "output_nanousd": 7, "force": True}
    await asking.operators("POST", "/prices", price)
    await asking.operators("GET", "/prices")
    await asking.good("GET", "/v1/prices")
    now_ms = asking.plane.control.now_ms()
    await insert_records(asking.plane.control, [record(number, opened_ms=now_ms) for number in range(3)])
    month = "2023-11"
    for query in ("", "?tenant=acme", "?group_by=day"):
        await asking.operators("GET", f"/usage{query}")
    rows = (await asking.operators("GET", "/ledger?tenant=acme"))["rows"]
    correction = {"id": "c1", "corrects": rows[0]["id"], "reason": "twice", "prompt_tokens": -5}
    await asking.operators("POST", "/corrections", correction)
    for form in ("json", "csv", "html", "text"):
        await asking.operators("GET", f"/invoices/acme/{month}?format={form}")
        await asking.good("GET", f"/v1/account/invoices/{month}?format={form}")
    for path in ("", "/key", "/usage", "/activity", "/ledger", "/credits", "/audit"):
        await asking.good("GET", f"/v1/account{path}")


async def ask_about_wallets(asking: Asking) -> None:
    for path in ("", "/entries?limit=2"):
        await asking.good("GET", f"/v1/account/wallet{path}")
        await asking.operators("GET", f"/tenants/acme/wallet{path}")
    budget = {"name": "team", "limit_nanousd": 5, "adapter": "triage", "period": "day", "zone": "Europe/Berlin"}
    made = await asking.operators("POST", "/tenants/acme/budgets", budget)
    await asking.operators("GET", "/tenants/acme/budgets")
    await asking.operators("DELETE", f"/budgets/{made['id']}")
    made = await asking.good("POST", "/v1/account/budgets", budget)
    await asking.good("GET", "/v1/account/budgets")
    hook = await asking.good("POST", "/v1/account/webhooks", {"url": "https://hooks.example/"})
    await asking.good("GET", "/v1/account/webhooks")
    control = asking.plane.control
    async with control.database.write() as connection:
        await enqueue(connection, "acme", "budget.alert", "event", {}, control.now_ms())
        dead = update(webhook_messages).values(state=DEAD).returning(webhook_messages.c.id)
        message = (await connection.execute(dead)).scalar_one()
    await asking.good("GET", "/v1/account/webhooks/messages?state=dead")
    await asking.good("POST", f"/v1/account/webhooks/messages/{message}/retry")
    await asking.good("DELETE", f"/v1/account/webhooks/{hook['id']}")
    await asking.good("DELETE", f"/v1/account/budgets/{made['id']}")


async def ask_about_invoices(asking: Asking) -> None:
    root = "/billing/invoices"
    month = {"tenant": "acme", "month": "2023-11", "tax_basis_points": 1900}
    made = await asking.operators("POST", root, month)
    await asking.operators("DELETE", f"{root}/{made['id']}")
    asking.plane.clock.advance(32 * 86_400)
    for verb in ("void", "pay"):
        made = await asking.operators("POST", root, month)
        await asking.operators("GET", f"{root}/{made['id']}")
        await asking.operators("POST", f"{root}/{made['id']}/finalise")
        if verb == "pay":
            await asking.operators("POST", f"{root}/{made['id']}/credit-notes", {"nanousd": 1, "reason": "r"})
        await asking.operators("POST", f"{root}/{made['id']}/{verb}", {"note": "n"})
    await asking.operators("GET", f"{root}?tenant=acme")
    await asking.good("GET", f"/v1/account{root}")
    await asking.good("GET", f"/v1/account{root}/{made['id']}")
    for form in ("text", "html"):
        await asking.good("GET", f"/v1/account{root}/{made['id']}/document?format={form}")
        await asking.operators("GET", f"{root}/{made['id']}/document?format={form}")
    for form in ("cloudevents", "stripe", "csv"):
        export = await asking.operators("GET", f"/billing/exports/meter?form={form}")
    bounds = {name: export[name] for name in ("begin_ms", "end_ms")}
    await asking.operators("POST", "/billing/exports/meter", bounds)


async def ask_about_own_keys(asking: Asking) -> None:
    made = await asking.good("POST", "/v1/account/keys", {"name": "second"})
    await asking.good("GET", "/v1/account/keys?limit=2")
    await asking.good("PUT", f"/v1/account/keys/{made['id']}/limits", {"requests_per_minute": 4})
    rotated = await asking.good("POST", f"/v1/account/keys/{made['id']}/rotate", {"grace_s": 5.0})
    await asking.good("DELETE", f"/v1/account/keys/{rotated['id']}")
    await asking.both("GET", "/users/current")


async def ask_about_logins(asking: Asking) -> None:
    login = {"tenant": "acme", "password": "a long enough password"}
    await asking.good("PUT", "/v1/account/login", {"password": login["password"]})
    await asking.good("GET", "/v1/account/login")
    opened = await asking.good("POST", "/v1/account/sessions", login)
    await asking.good("GET", "/v1/account/sessions")
    await asking.good("DELETE", f"/v1/account/sessions/{opened['id']}")
    made = await asking.operators("POST", "/tenants/acme/login-code")
    await asking.good("POST", "/v1/account/login/reset", {**login, "code": made["code"]})


async def ask_about_deployments(asking: Asking) -> None:
    await asking.both("GET", "/supported_llms")
    bases = "deploymentBaseModelName=Mistral-7b-instruct&adapterBaseModelName=zephyr-7b-beta"
    await asking.both("GET", f"/llms/validate_adapter_compatibility?{bases}")
    await asking.both("GET", "/v2/deployments/recommended-config?baseModel=zephyr-7b-beta")
    for v1, name in (("", "one"), ("/v1", "two")):
        await asking.good("POST", f"{v1}/v2/deployments", {"name": name, **DEDICATED})
        await asking.good("PUT", f"{v1}/v2/deployments/{name}", {"description": "more"})
    for path in (
        "/v2/deployments",
        "/llms",
        "/v2/deployments/one",
        "/llms/one",
        "/llms/one/events",
        "/llms/one/scaled",
    ):
        await asking.both("GET", path)
    await asking.both("GET", "/llms/tiny-base/events?detailed=true")
    await asking.both("GET", "/v2/deployments/tiny-base/request-logs")
    for v1, name in (("", "one"), ("/v1", "two")):
        await asking.good("DELETE", f"{v1}/v2/deployments/{name}")


async def ask_about_an_alias(asking: Asking, one: str) -> None:
    prod = f"{one}/aliases/prod"
    await asking.good("PUT", prod, {"weights": {"1": 100}, "sticky": "x-user"})
    for path in ("", "/results"):
        await asking.good("GET", f"{prod}{path}")
    await asking.good("POST", f"{prod}/rollback")
    question = {"metric": "contains", "questions": '{"prompt": "x", "expected": "y"}'}
    await asking.good("PUT", f"{one}/evaluation", question)
    await asking.good("GET", f"{one}/evaluation")
    made = await asking.good("POST", f"{prod}/promotions", {"version": 1})
    await asking.good("GET", f"{one}/promotions")
    await asking.good("GET", f"{one}/promotions/{made['id']}")
    await asking.good("DELETE", f"{one}/evaluation")


async def ask_about_repositories(asking: Asking) -> None:
    parts = {"adapter_config.json": PLAIN.config, "adapter_model.safetensors": PLAIN.weights}
    for v1, slash in (("", ""), ("/v1", ""), ("", "/"), ("/v1", "/")):
        repo = f"r{len(v1)}{len(slash)}"
        await asking.good("POST", f"{v1}/v2/repos", {"name": repo})
        upload = f"{v1}/v2/adapters/upload{slash}"
        begun = await asking.good("POST", upload, {"repo": repo})
        for name, data in parts.items():
            address = begun["presignedUrls"][name].partition("127.0.0.1")[2].lstrip(":0123456789")
            address = address if address.startswith("/v1") else f"{v1}{address}"
            await asking.ask("PUT", address, content=data)
            await asking.ask("GET", address)
        done = await asking.good("PUT", upload, {"uploadToken": begun["uploadToken"]})
        assert done["tag"] == 1
        if slash:
            continue
        one = f"{v1}/v2/repos/{repo}"
        await asking.good("GET", f"{v1}/v2/repos?limit=2")
        await asking.good("PUT", one, {"description": "more"})
        await asking.good("GET", one)
        await asking.good("PUT", f"{one}/version/1", {"archived": True})
        await asking.good("PUT", f"{one}/version/1", {"archived": False})
        await asking.good("GET", f"{one}/version/1")
        await asking.good("GET", f"{one}/version/1/download")
        await asking.good("PUT", f"{one}/aliases/prod", {"version": 1})
        await ask_about_an_alias(asking, one)
        await asking.good("DELETE", f"{one}/aliases/prod")
        await asking.good("POST", f"{one}/shares", {"tenants": ["fresh"]})
        await asking.good("DELETE", f"{one}/shares/fresh")
        await asking.good("GET", f"/v1/models/version/name/{repo}")
    of_operators = "/repos/acme/r0"
    await asking.operators("GET", "/repos?limit=2")
    for path in ("", "0", "0/version/1"):
        if path:
            await asking.operators("GET", f"{of_operators}{path}")
    for verb in ("archive", "unarchive"):
        await asking.operators("POST", f"{of_operators}0/version/1/{verb}")
        await asking.operators("POST", f"{of_operators}0/{verb}")
    await asking.operators("POST", f"{of_operators}0/aliases/prod/promote", {"version": 1})
    await asking.operators("PUT", "/catalogue?dryRun=true", await asking.operators("GET", "/catalogue"))
    await asking.operators("DELETE", "/repos/acme/r01/version/1")
    for v1 in ("", "/v1"):
        repo = f"r{len(v1)}0"
        await asking.good("DELETE", f"{v1}/v2/repos/{repo}/version/1")
        await asking.good("DELETE", f"{v1}/v2/repos/{repo}")
    await asking.operators("DELETE", "/repos/acme/r01")
    await asking.operators("POST", "/tenants/acme/close")
    await asking.operators("DELETE", "/repos/acme")


@pytest.mark.long
@pytest.mark.usefixtures("checks_in_process")
def test_every_reply_is_as_documented(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        seen = Conformance((await plane.call("GET", "/admin/openapi.json")).json())
        asking = Asking(plane, seen, await plane.new_tenant("acme", credit_nanousd=10**9))
        for method, path in sorted(seen.routes):
            anywhere = path.replace("{", "").replace("}", "")
            for key in ("pb_wrong", asking.key, plane.admin_key):
                for body in WRONG if method in WRITES else ({},):
                    await asking.ask(method.upper(), anywhere, key=key, **body)
        for ask in (
            ask_about_tenants,
            ask_about_money,
            ask_about_wallets,
            ask_about_invoices,
            ask_about_own_keys,
            ask_about_logins,
            ask_about_deployments,
            ask_about_repositories,
        ):
            await ask(asking)
        assert seen.routes - seen.good == COPIES, "routes without a good reply"
        table = {(method, path): route for (path, method), route in CONTROL_ROUTES.documented(is_operator=True).items()}
        assert {route for route in seen.routes - seen.bad if table[route].scopes} == set(), "routes without a bad reply"

    settings = base_settings(tmp_path, **{"control.signup_open": True})
    in_plane(url, tmp_path, scenario, settings=settings)
