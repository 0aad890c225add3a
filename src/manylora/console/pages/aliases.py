"""Aliases of an adapter: one version or shares of several, the way back, and the sums of each version."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from manylora.console.api import Refused, in_path
from manylora.console.figures import whole_number
from manylora.console.forms import Form
from manylora.console.page import ConsolePage, OwnPage
from manylora.console.pages.adapters import shown_repository
from manylora.console.repositories import owned
from manylora.console.visitors import ROOT

router = APIRouter(prefix=f"{ROOT}/adapters/{{owner}}/{{repo}}/aliases")
SHARE = "share_"


@router.post("")
async def put(page: OwnPage, owner: str, repo: str) -> Response:
    """Let an alias mean a version, or several with a percent of the requests each."""
    form = await page.form()
    alias, path = form.text("alias"), owned(page.visitor, owner, repo)
    try:
        await page.api.send("PUT", f"{path}/aliases{in_path(alias)}", _rule(form))
    except (Refused, ValueError) as error:
        return await shown_repository(page, owner, repo, error=str(error))
    return _back(page, owner, repo, f"{alias} is set")


@router.post("/{alias}/rollback")
async def roll_back(page: OwnPage, owner: str, repo: str, alias: str) -> Response:
    """Restore the shares before the last change."""
    await page.form()
    path = owned(page.visitor, owner, repo)
    try:
        await page.api.send("POST", f"{path}/aliases{in_path(alias)}/rollback")
    except Refused as refusal:
        return await shown_repository(page, owner, repo, error=refusal.reply.error)
    return _back(page, owner, repo, f"{alias} has its earlier shares")


@router.get("/{alias}")
async def results(page: OwnPage, owner: str, repo: str, alias: str) -> Response:
    """Show this month's requests to an alias by version, answers and shadows apart."""
    path = f"{owned(page.visitor, owner, repo)}/aliases{in_path(alias)}"
    return page.render(
        "alias.html",
        found=await page.api.get(path),
        results=(await page.api.get(f"{path}/results"))["results"],
        owner=owner,
        repo=repo,
    )


def _rule(form: Form) -> dict[str, Any]:
    """Return the rule that a form names. Raise `ValueError` with a message for the visitor."""
    shares = {
        name.removeprefix(SHARE): whole_number(text, "a share")
        for name, text in form.values().items()
        if name.startswith(SHARE) and text.strip()
    }
    if not shares:
        return {"version": whole_number(form.text("version"), "a version")}
    shadow = {"shadow": whole_number(form.text("shadow"), "a version")} if form.text("shadow") else {}
    return {"weights": shares, "sticky": form.text("sticky") or None, **shadow}


def _back(page: ConsolePage, owner: str, repo: str, done: str) -> Response:
    return page.go_to(f"{ROOT}/adapters{in_path(owner, repo)}", done=done)
