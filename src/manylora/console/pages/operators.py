"""The pages of the operator: tenants, prices, adapters by tier, deployments, the audit table, and health."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from manylora.console.api import NOT_FOUND, Refused, in_path
from manylora.console.figures import hours_in_s, nanousd_of, price_of_token, whole_number
from manylora.console.page import ConsolePage, OperatorPage
from manylora.console.rendering import PAGE_HEADERS
from manylora.console.residency import heat_map
from manylora.console.visitors import ROOT

router = APIRouter(prefix=f"{ROOT}/operator")
TENANTS = "/admin/tenants"
LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent_streams", "adapters", "max_rank")
PAGE_SIZE = 100
MOST_ADAPTERS, MOST_ROWS = 1_000, 200
"""Adapters that the heat map reads, and rows that it shows, the nearest to requests first."""


@router.get("/tenants")
async def tenants(page: OperatorPage) -> Response:
    return await _tenants(page)


@router.post("/tenants")
async def make_tenant(page: OperatorPage) -> Response:
    """Make a tenant, and show its first key in this reply alone."""
    form = await page.form()
    body: dict[str, object] = {name: form.text(name) for name in ("id", "name", "plan")}
    try:
        credit = {"credit_nanousd": nanousd_of(form.text("credit"))} if form.text("credit") else {}
        made = await page.api.send("POST", TENANTS, body | credit)
    except (Refused, ValueError) as error:
        return await _tenants(page, error=str(error), fields=form.values())
    return await _tenants(page, made=made)


async def _tenants(
    page: ConsolePage, *, made: object = None, error: str = "", fields: Mapping[str, str] | None = None
) -> Response:
    found = await page.api.get(TENANTS, limit=PAGE_SIZE, after=page.query("after") or None)
    usage = await page.api.get("/admin/usage", by="tenant", zone=page.zone)
    spent = {row["names"][0]: row for row in usage["usage"]}
    return page.render(
        "operator_tenants.html",
        tenants=found["tenants"],
        following=found["next"],
        spent=spent,
        status=400 if error else 200,
        made=made,
        error=error,
        fields={"id": "", "name": "", "plan": "standard", "credit": ""} | dict(fields or {}),
    )


@router.get("/tenants/{tenant}")
async def tenant(page: OperatorPage, tenant: str) -> Response:
    return await _tenant(page, tenant)


@router.post("/tenants/{tenant}/{act}")
async def change(page: OperatorPage, tenant: str, act: str) -> Response:
    """Suspend or resume a tenant, add credit, replace limits, or make a one-time code, which this reply alone shows."""
    form = await page.form()
    path, code = TENANTS + in_path(tenant), None
    try:
        match act:
            case "suspend" | "resume":
                await page.api.send("POST", f"{path}/{act}")
            case "credit":
                body = {
                    "id": form.text("id"),
                    "nanousd": nanousd_of(form.text("amount")),
                    "reason": form.text("reason"),
                }
                await page.api.send("POST", f"{path}/credits", body)
            case "limits":
                old = await page.api.get(f"{path}/limits")
                new = {name: whole_number(form.text(name), "a limit") if form.text(name) else None for name in LIMITS}
                await page.api.send("PUT", f"{path}/limits", {**old, **new})
            case "login-code":
                code = await page.api.send("POST", f"{path}/login-code")
            case _:
                raise ValueError(f"a tenant has no act {act[:40]!r}")
    except (Refused, ValueError) as error:
        return await _tenant(page, tenant, error=str(error))
    if code is not None:
        return await _tenant(page, tenant, code=code["code"])
    return page.go_to(f"{ROOT}/operator/tenants{in_path(tenant)}")


@router.get("/prices")
async def prices(page: OperatorPage) -> Response:
    return await _prices(page)


@router.post("/prices")
async def add_price(page: OperatorPage) -> Response:
    """Add a version of a base's price, given in dollars for 1,000 tokens, as on the command line."""
    form = await page.form()
    try:
        names = {"input": "input_nanousd", "output": "output_nanousd", "cached": "cached_input_nanousd"}
        given = {target: price_of_token(form.text(name)) for name, target in names.items() if form.text(name)}
        begin = {"effective_in_s": hours_in_s(form.text("hours"))}
        await page.api.send("POST", "/admin/prices", {"base": form.text("base"), **given, **begin})
    except (Refused, ValueError) as error:
        return await _prices(page, error=str(error), fields=form.values())
    return page.go_to(f"{ROOT}/operator/prices")


async def _prices(page: ConsolePage, *, error: str = "", fields: Mapping[str, str] | None = None) -> Response:
    return page.render(
        "operator_prices.html",
        status=400 if error else 200,
        prices=(await page.api.get("/admin/prices"))["prices"],
        hourly=(await page.api.get("/v1/prices")).get("deployment_hourly_nanousd"),
        error=error,
        fields=dict.fromkeys(("base", "input", "cached", "output", "hours"), "") | dict(fields or {}),
    )


@router.get("/audit")
async def audit(page: OperatorPage) -> Response:
    asked = {name: page.query(name) or None for name in ("tenant", "verb", "before")}
    found = await page.api.get("/admin/audit", limit=PAGE_SIZE, **asked)
    return page.render("operator_audit.html", rows=found["audit"], before=found["before"], asked=asked)


@router.get("/fleet")
async def fleet(page: OperatorPage) -> Response:
    """Show the tier of adapters at each replica, the deployments of all tenants, and the state of the server.

    A control plane alone has no engine: its page shows the deployments, and that the database answers.
    """
    adapters = await page.api.ask("GET", "/v1/adapters", query={"limit": MOST_ADAPTERS})
    has_engines = adapters.status != NOT_FOUND
    ready = await page.api.ask("GET", "/ready" if has_engines else "/health")
    listed = adapters.json["data"] if adapters.is_ok else []
    replicas, rows = heat_map(listed)
    return page.render(
        "operator_fleet.html",
        rows=rows[:MOST_ROWS],
        num_adapters=len(listed),
        replicas=replicas,
        has_engines=has_engines,
        error="" if adapters.is_ok or not has_engines else adapters.error,
        is_ready=ready.is_ok,
        reason="" if ready.is_ok else ready.error,
        deployments=(await page.api.get("/admin/deployments", limit=MOST_ROWS))["data"],
    )


@router.get("/fleet/figures")
async def figures(page: OperatorPage) -> Response:
    """Return the figures of this moment for the plots."""
    found = await page.api.get("/metrics", format="json")
    tokens = [each for each in _samples(found, "manylora_tokens") if 'kind="completion"' in each["key"]]
    body = {
        "in_flight": sum(each["value"] for each in _samples(found, "manylora_in_flight")),
        "waiting": sum(each["value"] for each in _samples(found, "lorax_queue_length")),
        "tokens": sum(each["value"] for each in tokens),
    }
    return page.finished(JSONResponse(body, headers=dict(PAGE_HEADERS)))


def _samples(metrics: dict[str, Any], family: str) -> list[dict[str, Any]]:
    """Return the samples of a metric; none of one that the server does not have."""
    found: list[dict[str, Any]] = metrics.get(family, {}).get("data", [])
    return found


async def _tenant(page: ConsolePage, tenant: str, *, error: str = "", code: str = "") -> Response:
    path = TENANTS + in_path(tenant)
    return page.render(
        "operator_tenant.html",
        status=400 if error else 200,
        tenant=await page.api.get(path),
        grants=(await page.api.get(f"{path}/credits", limit=20))["credits"],
        limits=LIMITS,
        error=error,
        code=code,
    )
