"""The entrance: sign-up, sign-in and sign-out, a new password by a one-time code, and the settings of the sign-in."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from manylora.console.api import Refused, in_path
from manylora.console.page import AnyPage, ConsolePage, OwnPage
from manylora.console.visitors import ROOT, inner_path

router = APIRouter(prefix=ROOT)
SESSIONS, LOGIN = "/v1/account/sessions", "/v1/account/login"
NOT_SAME = "the two passwords are not the same"
BAD_REQUEST = 400


@router.get("/sign-in")
async def sign_in_form(page: AnyPage) -> Response:
    if page.visitor.tenant:
        return page.go_to(inner_path(page.query("next")))
    return _entrance(page, "sign_in.html", {"next": inner_path(page.query("next"))})


@router.post("/sign-in")
async def sign_in(page: AnyPage) -> Response:
    """Open a session. Its token is new, and a token that the browser had before is not used on."""
    form = await page.form()
    body = {"tenant": form.text("tenant"), "password": form.raw("password")}
    try:
        session = await page.api.send("POST", SESSIONS, body)
    except Refused as refusal:
        shown = {"tenant": form.text("tenant"), "next": inner_path(form.text("next"))}
        return _entrance(page, "sign_in.html", shown, refusal)
    page.begin_session(session)
    return page.go_to(inner_path(form.text("next")))


@router.post("/sign-out")
async def sign_out(page: OwnPage) -> Response:
    """End this session for ever."""
    await page.form()
    own = await page.api.get("/v1/account/key")
    if own["id"] is not None:
        await page.api.send("DELETE", SESSIONS + in_path(own["id"]))
    page.forget_session()
    return page.go_to(f"{ROOT}/sign-in")


@router.get("/sign-up")
async def sign_up_form(page: AnyPage) -> Response:
    return page.go_to(ROOT) if page.visitor.tenant else _entrance(page, "sign_up.html", {})


@router.post("/sign-up")
async def sign_up(page: AnyPage) -> Response:
    """Make a tenant with its login, sign it in, and show its first key, once."""
    form = await page.form()
    fields = {"tenant": form.text("tenant"), "name": form.text("name"), "email": form.text("email")}
    if form.raw("password") != form.raw("again"):
        return _entrance(page, "sign_up.html", fields, message=NOT_SAME)
    body = {"id": fields["tenant"], "name": fields["name"], "email": fields["email"] or None}
    try:
        made = await page.api.send("POST", "/v1/signup", body | {"password": form.raw("password")})
    except Refused as refusal:
        return _entrance(page, "sign_up.html", fields, refusal)
    login = {"tenant": fields["tenant"], "password": form.raw("password")}
    try:
        page.begin_session(await page.api.send("POST", SESSIONS, login))
    except Refused as refusal:  # the tenant is made, and its key is shown at no other time
        return page.render("welcome.html", made=made["key"], account=None, refusal=refusal)
    return page.render("welcome.html", made=made["key"], account=await page.api.get("/v1/account"))


@router.get("/new-password")
async def reset_form(page: AnyPage) -> Response:
    return _entrance(page, "new_password.html", {})


@router.post("/new-password")
async def reset(page: AnyPage) -> Response:
    """Set a password by a one-time code of the operator, and sign in."""
    form = await page.form()
    if form.raw("password") != form.raw("again"):
        return _entrance(page, "new_password.html", {"tenant": form.text("tenant")}, message=NOT_SAME)
    body = {"tenant": form.text("tenant"), "code": form.text("code"), "password": form.raw("password")}
    try:
        session = await page.api.send("POST", f"{LOGIN}/reset", body)
    except Refused as refusal:
        return _entrance(page, "new_password.html", {"tenant": form.text("tenant")}, refusal)
    page.begin_session(session)
    return page.go_to(ROOT)


@router.get("/sign-in-settings")
async def login_page(page: OwnPage) -> Response:
    return await _login_page(page)


@router.post("/sign-in-settings/password")
async def change_password(page: OwnPage) -> Response:
    """Change the password, which ends every other session."""
    form = await page.form()
    if form.raw("password") != form.raw("again"):
        return await _login_page(page, NOT_SAME)
    body = {"password": form.raw("password"), "current": form.raw("current")}
    try:
        await page.api.send("PUT", LOGIN, body)
    except Refused as refusal:
        return await _login_page(page, refusal.reply.error)
    return page.go_to(f"{ROOT}/sign-in-settings", done="password")


@router.post("/sign-in-settings/end/{session}")
async def end_session(page: OwnPage, session: str) -> Response:
    """End another session, or `all` of them."""
    await page.form()
    await page.api.send("DELETE", SESSIONS + in_path(session))
    return page.go_to(f"{ROOT}/sign-in-settings", done="session")


async def _login_page(page: ConsolePage, error: str = "") -> Response:
    if page.visitor.is_open:
        return page.go_to(ROOT)
    return page.render(
        "sign_in_settings.html",
        status=BAD_REQUEST if error else 200,
        login=await page.api.get(LOGIN),
        sessions=(await page.api.get(SESSIONS))["sessions"],
        own=(await page.api.get("/v1/account/key"))["id"],
        error=error,
        done=page.query("done"),
    )


def _entrance(
    page: ConsolePage, template: str, fields: Mapping[str, Any], refusal: Refused | None = None, message: str = ""
) -> Response:
    """Return a form of the entrance, with a refusal's message where there was one."""
    page.keep_visit()
    error = message if refusal is None else refusal.reply.error
    status = 200 if not error else BAD_REQUEST if refusal is None else refusal.reply.status
    shown = {"tenant": "", "name": "", "email": "", "next": ROOT} | dict(fields)
    response = page.render(template, status=status, fields=shown, error=error)
    if refusal is not None and (wait := refusal.reply.headers.get("retry-after")):
        response.headers["retry-after"] = wait
    return response
