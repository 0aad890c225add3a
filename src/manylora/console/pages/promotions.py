"""Promotions of an adapter by questions: the evaluation of a repository, its runs, and their reports."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from manylora.console.api import NOT_FOUND, Refused, in_path
from manylora.console.figures import whole_number
from manylora.console.page import ConsolePage, OwnPage
from manylora.console.repositories import owned
from manylora.console.visitors import ROOT

router = APIRouter(prefix=f"{ROOT}/adapters/{{owner}}/{{repo}}/promotions")
METRICS = {
    "exact_match": "the reply is an expected text",
    "accuracy": "the same, in letters of any case",
    "contains": "an expected text is in the reply",
}
MOST_FORM_BYTES = 3 * (1 << 20) + 65_536
"""Bound of a form with questions: 1 MiB of them, of which a form writes some letters as three."""
RUNNING = "running"
PAGE_SIZE = 20
"""Promotions of a page."""


@router.get("")
async def promotions(page: OwnPage, owner: str, repo: str) -> Response:
    return await _shown(page, owner, repo)


@router.post("")
async def promote(page: OwnPage, owner: str, repo: str) -> Response:
    """Put the questions to a version and to the one that has the alias."""
    form = await page.form()
    alias, path = form.text("alias"), owned(page.visitor, owner, repo)
    try:
        version = whole_number(form.text("version"), "a version")
        await page.api.send("POST", f"{path}/aliases{in_path(alias)}/promotions", {"version": version})
    except (Refused, ValueError) as error:
        return await _shown(page, owner, repo, error=str(error))
    return _back(page, owner, repo, f"the questions are put to version {version}")


@router.post("/questions")
async def attach(page: OwnPage, owner: str, repo: str) -> Response:
    """Attach questions, or replace those that there are."""
    form = await page.form(MOST_FORM_BYTES)
    path = owned(page.visitor, owner, repo)
    try:
        tokens = form.text("max_tokens")
        most = {"maxTokens": whole_number(tokens, "a number of tokens")} if tokens else {}
        guards = form.text("guards").replace(",", " ").split()
        body = {"metric": form.text("metric"), "questions": form.text("questions"), "guards": guards}
        await page.api.send("PUT", f"{path}/evaluation", body | most)
    except (Refused, ValueError) as error:
        return await _shown(page, owner, repo, error=str(error), fields=form.values())
    return _back(page, owner, repo, "the questions are attached")


@router.post("/questions/remove")
async def remove(page: OwnPage, owner: str, repo: str) -> Response:
    """Remove the questions, and with them the guards of aliases."""
    await page.form()
    path = owned(page.visitor, owner, repo)
    try:
        await page.api.call("DELETE", f"{path}/evaluation")
    except Refused as refusal:
        return await _shown(page, owner, repo, error=refusal.reply.error)
    return _back(page, owner, repo, "the questions are removed")


async def _shown(
    page: ConsolePage, owner: str, repo: str, *, error: str = "", fields: Mapping[str, str] | None = None
) -> Response:
    path = owned(page.visitor, owner, repo)
    found = await page.api.get(path)
    evaluation = await page.api.ask("GET", f"{path}/evaluation")
    if not evaluation.is_ok and evaluation.status != NOT_FOUND:
        raise Refused(evaluation)
    attached: dict[str, Any] | None = evaluation.json if evaluation.is_ok else None
    before = page.query("before")
    listed = await page.api.get(f"{path}/promotions", limit=PAGE_SIZE, before=before or None)
    runs = [await _latest(page, path, run) for run in listed["data"]]
    return page.render(
        "promotions.html",
        status=400 if error else 200,
        repo=found,
        evaluation=attached,
        runs=runs,
        before=before,
        older=listed["before"],
        is_running=any(run["state"] == RUNNING for run in runs),
        metrics=METRICS,
        fields=_fields(attached) | dict(fields or {}),
        error=error,
        done=page.query("done"),
    )


def _fields(evaluation: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the fields of the form, with the questions that are attached."""
    if evaluation is None:
        return {"metric": "exact_match", "questions": "", "guards": "", "max_tokens": ""}
    shown = {"guards": " ".join(evaluation["guards"]), "max_tokens": str(evaluation["maxTokens"])}
    return {"metric": evaluation["metric"], "questions": evaluation["questions"], **shown}


async def _latest(page: ConsolePage, path: str, run: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a run as it is now: the API decides one whose replies are in when it is asked for it alone."""
    if run["state"] != RUNNING:
        return run
    found: Mapping[str, Any] = await page.api.get(f"{path}/promotions{in_path(run['id'])}")
    return found


def _back(page: ConsolePage, owner: str, repo: str, done: str) -> Response:
    return page.go_to(f"{ROOT}/adapters{in_path(owner, repo)}/promotions", done=done)
