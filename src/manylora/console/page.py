"""One request to the console: its visitor, the API as the visitor may use it, and its reply."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends
from jinja2 import Environment
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from manylora.console.api import NOT_FOUND, Api, App
from manylora.console.forms import MOST_BYTES, Form, read_form
from manylora.console.rendering import PAGE_HEADERS
from manylora.console.visitors import (
    ROOT,
    SESSION_COOKIE,
    TOKEN_FIELD,
    TOKEN_HEADER,
    VISIT_COOKIE,
    YEAR_S,
    ZONE_COOKIE,
    Visitor,
    cookie,
    session_of,
    visit_of,
)
from manylora.console.zones import known_zone

SEE_OTHER, FORBIDDEN = 303, 403


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleServices:
    """Objects that all pages share.

    api             the whole server, as an ASGI application
    is_signup_open  whether a stranger may become a tenant
    session_s       seconds of a session, for its cookie
    """

    api: App
    templates: Environment
    is_signup_open: bool
    session_s: float


class GoTo(Exception):
    """The end of a page by a redirect, such as to the sign-in."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class StrangeForm(Exception):
    """A form that does not come from a page made for this visitor."""


@dataclass(slots=True, kw_only=True)
class ConsolePage:
    """A request, its visitor, and the parts of the reply."""

    services: ConsoleServices
    request: Request
    visitor: Visitor
    api: Api
    zone: str = "UTC"
    cookies: list[tuple[bytes, bytes]] = field(default_factory=list)

    def render(self, template: str, *, status: int = 200, **values: Any) -> Response:  # values of several types
        """Return a page. It gets `page`, `visitor` and `zone` beside its own values."""
        text = self.services.templates.get_template(template).render(
            page=self,
            visitor=self.visitor,
            zone=self.zone,
            path=self.request.url.path,
            is_signup_open=self.services.is_signup_open,
            **values,
        )
        return self.finished(HTMLResponse(text, status_code=status, headers=dict(PAGE_HEADERS)))

    def go_to(self, path: str, **query: str) -> Response:
        """Return a redirect to a page of the console."""
        target = path + (f"?{urlencode(query)}" if query else "")
        return self.finished(RedirectResponse(target, status_code=SEE_OTHER, headers=dict(PAGE_HEADERS)))

    def finished(self, response: Response) -> Response:
        """Add the page's cookies to a reply."""
        response.raw_headers.extend(self.cookies)
        return response

    def set_cookie(self, name: str, value: str, *, max_age_s: int) -> None:
        is_secure = self.request.url.scheme == "https"
        self.cookies.append(cookie(name, value, max_age_s=max_age_s, is_secure=is_secure))

    def keep_visit(self) -> None:
        """Bind the forms of this page to the visitor's browser, before there is a session."""
        self.set_cookie(VISIT_COOKIE, self.visitor.visit, max_age_s=YEAR_S)

    def begin_session(self, session: Mapping[str, Any]) -> None:
        """Make the rest of this page, and the pages after it, those of a session that has just been opened."""
        token = session["token"]
        self.set_cookie(SESSION_COOKIE, token, max_age_s=int(self.services.session_s))
        self.visitor = Visitor(
            token=token, visit=self.visitor.visit, tenant=session["tenant"], scopes=frozenset(session["scopes"])
        )
        self.api = Api(self.services.api, self.request.scope, token)

    def forget_session(self) -> None:
        self.set_cookie(SESSION_COOKIE, "", max_age_s=0)

    def keep_zone(self, zone: str) -> None:
        self.zone = zone
        self.set_cookie(ZONE_COOKIE, zone, max_age_s=YEAR_S)

    async def form(self, most_bytes: int = MOST_BYTES) -> Form:
        """Return the fields of the request's form, of at most `most_bytes` bytes. Raise `BadForm`, `StrangeForm`."""
        form = await read_form(self.request, most_bytes)
        self.require_own(form.raw(TOKEN_FIELD))
        return form

    def require_own(self, token: str = "") -> None:
        """Require the visitor's token, from a form or from the header of a script. Raise `StrangeForm`."""
        if not self.visitor.owns(token or self.request.headers.get(TOKEN_HEADER, "")):
            raise StrangeForm

    @property
    def address(self) -> str:
        """The server's address as the visitor's browser has it, for commands to copy."""
        return f"{self.request.url.scheme}://{self.request.url.netloc}"

    async def first_request(self, has_keys: bool) -> str:
        """Return a command that sends a first request to the server's first model."""
        reply = await self.api.ask("GET", "/v1/models")
        server = "https://SERVER" if reply.status == NOT_FOUND else self.address  # a control plane alone has no models
        listed = reply.json.get("data") or [{}]
        model = json.dumps(str(listed[0].get("id", "MODEL"))).replace("'", "")
        key = "" if self.visitor.is_open else ' \\\n  -H "Authorization: Bearer $MANYLORA_KEY"'
        made = "" if has_keys or self.visitor.is_open else "manylora keys create --name first --scope infer\n"
        return (
            f'{made}curl -s {server}/v1/chat/completions -H "Content-Type: application/json"{key} \\\n'
            f'  -d \'{{"model": {model}, "messages": [{{"role": "user", "content": "Hello"}}]}}\''
        )

    def query(self, name: str) -> str:
        return self.request.query_params.get(name, "").strip()


async def _anyone(request: Request) -> ConsolePage:
    """Return the page of a visitor with or without a session."""
    services: ConsoleServices = request.app.state.services
    token = session_of(request)
    api = Api(services.api, request.scope, token)
    visitor = Visitor(token=token, visit=visit_of(request))
    reply = await api.ask("GET", "/v1/account/key")
    if reply.is_ok:
        visitor = _known(visitor, reply.json)
    elif token:  # the session has ended
        visitor = Visitor(visit=visitor.visit)
        api = Api(services.api, request.scope, "")
    page = ConsolePage(
        services=services, request=request, visitor=visitor, api=api, zone=known_zone(request.cookies.get(ZONE_COOKIE))
    )
    if not visitor.token:
        page.keep_visit()
    return page


def _known(visitor: Visitor, key: Mapping[str, Any]) -> Visitor:
    return Visitor(
        token=visitor.token if key["id"] is not None else "",
        visit=visitor.visit,
        tenant=key["tenant"],
        scopes=frozenset(key["scopes"]),
        is_open=key["id"] is None,
        ends=key["expires"] or "",
    )


AnyPage = Annotated[ConsolePage, Depends(_anyone)]


async def _signed_in(page: AnyPage) -> ConsolePage:
    """Return the page of a visitor with a session, or on an open server. Raise `GoTo` the sign-in."""
    if not page.visitor.tenant:
        url = page.request.url
        here = url.path + (f"?{url.query}" if url.query else "") if page.request.method == "GET" else ROOT
        raise GoTo(f"{ROOT}/sign-in?{urlencode({'next': here})}")
    return page


OwnPage = Annotated[ConsolePage, Depends(_signed_in)]
"""The page of a tenant: its visitor is signed in, or the server needs no keys."""


async def _operators(page: OwnPage) -> ConsolePage:
    if not page.visitor.is_operator:
        raise GoTo(ROOT)
    return page


OperatorPage = Annotated[ConsolePage, Depends(_operators)]
"""The page of the operator, for sessions with the scope `admin`. The API refuses others by itself as well."""
