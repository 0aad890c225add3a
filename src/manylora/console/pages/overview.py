"""The overview: use and spending of today, cold starts, errors, and the balance."""

from fastapi import APIRouter
from starlette.responses import Response

from manylora.console.page import OwnPage
from manylora.console.visitors import ROOT

router = APIRouter()


@router.get(ROOT)
async def overview(page: OwnPage) -> Response:
    """Show today's figures of the visitor's tenant, from the sums that its invoice has as well."""
    account = await page.api.get("/v1/account")
    today = await page.api.get("/v1/account/activity", zone=page.zone)
    keys = (await page.api.get("/v1/account/keys", limit=1))["keys"]
    command = "" if today["requests"] else await page.first_request(bool(keys))
    return page.render("overview.html", account=account, today=today, command=command)
