"""Keys: the list, a new key that is shown once, and the end of one."""

from fastapi import APIRouter
from starlette.responses import Response

from manylora.console.api import Refused, in_path
from manylora.console.figures import nanousd_of, whole_number
from manylora.console.forms import Form
from manylora.console.page import ConsolePage, OwnPage
from manylora.console.visitors import ROOT

router = APIRouter(prefix=f"{ROOT}/keys")
KEYS = "/v1/account/keys"
LIMIT_NAMES = ("requests_per_minute", "tokens_per_minute", "concurrent_streams")
SCOPES = ("infer", "read", "upload", "manage")
CHOSEN = ("infer", "read", "upload")
PAGE_SIZE = 100
DAY_S = 86_400


@router.get("")
async def keys(page: OwnPage) -> Response:
    return await _listed(page)


@router.post("")
async def make(page: OwnPage) -> Response:
    """Make a key and show its text in this reply, which no cache and no later page has."""
    form = await page.form()
    try:
        days = whole_number(form.text("days"), "a number of days") if form.text("days") else None
        body = {
            "name": form.text("name"),
            "scopes": form.all("scope"),
            "limits": _limits(form),
            "expires_in_s": None if days is None else float(days * DAY_S),
        }
        made = await page.api.send("POST", KEYS, body)
    except ValueError as error:
        return await _listed(page, error=str(error))
    except Refused as refusal:
        return await _listed(page, error=refusal.reply.error)
    return await _listed(page, made=made)


@router.post("/{key}/revoke")
async def revoke(page: OwnPage, key: str) -> Response:
    """End a key and every key made with it."""
    form = await page.form()
    try:
        ended = await page.api.send("DELETE", KEYS + in_path(key), force="true" if form.text("force") else None)
    except Refused as refusal:
        return await _listed(page, error=refusal.reply.error)
    return page.go_to(f"{ROOT}/keys", ended=",".join(ended["ended"]))


async def _listed(page: ConsolePage, *, made: dict[str, object] | None = None, error: str = "") -> Response:
    after = page.query("after")
    found = await page.api.get(KEYS, limit=PAGE_SIZE, after=after or None)
    return page.render(
        "keys.html",
        status=400 if error else 200,
        keys=found["keys"],
        following=found["next"],
        scopes=SCOPES,
        chosen=CHOSEN,
        made=made,
        error=error,
        ended=[each for each in page.query("ended").split(",") if each],
    )


def _limits(form: Form) -> dict[str, int]:
    """Return the limits that a form names. Raise `ValueError` with a message for the visitor."""
    limits = {name: whole_number(form.text(name), "a limit") for name in LIMIT_NAMES if form.text(name)}
    return limits | ({"monthly_budget_nanousd": nanousd_of(form.text("budget"))} if form.text("budget") else {})
