"""Webhooks: the addresses that get alerts of budgets, and the messages to them."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from manylora.console.api import Refused, in_path
from manylora.console.page import ConsolePage, OwnPage
from manylora.console.visitors import ROOT

router = APIRouter(prefix=f"{ROOT}/webhooks")
WEBHOOKS = "/v1/account/webhooks"
PAGE_SIZE = 50
"""Messages of a page."""


@router.get("")
async def webhooks(page: OwnPage) -> Response:
    return await _listed(page)


@router.post("")
async def make(page: OwnPage) -> Response:
    """Make a webhook and show the secret of its signatures in this reply alone."""
    form = await page.form()
    try:
        made = await page.api.send("POST", WEBHOOKS, {"url": form.text("url")})
    except Refused as refusal:
        return await _listed(page, error=refusal.reply.error)
    return await _listed(page, made=made)


@router.post("/messages/{message}/retry")
async def retry(page: OwnPage, message: str) -> Response:
    """Send a dead message again."""
    await page.form()
    await page.api.call("POST", f"{WEBHOOKS}/messages{in_path(message)}/retry")
    return page.go_to(f"{ROOT}/webhooks")


@router.post("/{webhook}/end")
async def end(page: OwnPage, webhook: str) -> Response:
    await page.form()
    await page.api.call("DELETE", WEBHOOKS + in_path(webhook))
    return page.go_to(f"{ROOT}/webhooks")


async def _listed(page: ConsolePage, *, made: dict[str, Any] | None = None, error: str = "") -> Response:
    found = await page.api.get(f"{WEBHOOKS}/messages", limit=PAGE_SIZE, before=page.query("before") or None)
    return page.render(
        "webhooks.html",
        status=400 if error else 200,
        webhooks=(await page.api.get(WEBHOOKS))["webhooks"],
        messages=found["messages"],
        older=found["before"],
        made=made,
        error=error,
    )
