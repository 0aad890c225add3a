"""The playground: one prompt to two models side by side, streamed, with the facts and the price of each request."""

from fastapi import APIRouter
from starlette.responses import Response

from manylora.console.api import NOT_FOUND
from manylora.console.page import OwnPage
from manylora.console.pages.adapters import PassedOn
from manylora.console.visitors import ROOT

router = APIRouter(prefix=f"{ROOT}/playground")


@router.get("")
async def playground(page: OwnPage) -> Response:
    """Show the form. The models are those that the visitor's session may use."""
    listed = await page.api.ask("GET", "/v1/models", query={"limit": 500})
    models = listed.json.get("data", []) if listed.is_ok else []
    prices = {each["base"]: each for each in (await page.api.get("/v1/prices"))["prices"] if each["is_in_force"]}
    has_engines = listed.status != NOT_FOUND
    error = "" if models or not has_engines else listed.error
    command = await page.first_request(has_keys=True)
    return page.render(
        "playground.html", models=models, prices=prices, command=command, has_engines=has_engines, error=error
    )


@router.post("/ask")
async def ask(page: OwnPage) -> Response:
    """Pass a chat request on, with the visitor's session as its key; the reply streams as the API sends it."""
    page.require_own()
    return PassedOn(page.api, "POST", "/v1/chat/completions")
