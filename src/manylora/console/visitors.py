"""The visitor of a page: its session, its rights, and the tokens that prove that a form is the console's own."""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from http.cookies import SimpleCookie

from starlette.requests import Request

SESSION_COOKIE = "manylora_session"
VISIT_COOKIE = "manylora_visit"
ZONE_COOKIE = "manylora_zone"
ROOT = "/console"
TOKEN_FIELD = "form_token"
"""Field of every form, and header of every call of a script, with the visitor's token."""
TOKEN_HEADER = "x-form-token"
YEAR_S = 31_536_000
_VISIT = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"pb_[0-9A-Za-z]{8}_[0-9A-Za-z]{43}")
_INNER_PATH = re.compile(rf"{ROOT}(/[A-Za-z0-9_][A-Za-z0-9._~@:+-]*)*(\?[A-Za-z0-9._~%@:+&=,-]*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """A person at a browser.

    token    the session's key; empty: none
    visit    random text of a cookie, to which forms without a session are bound
    tenant   the tenant of the session; on an open server `default`; empty: not signed in
    scopes   scopes of the session
    is_open  whether the server needs no keys, so that there is nothing to sign in to
    ends     the end of the session, as ISO 8601; empty: none
    """

    token: str = ""
    visit: str = ""
    tenant: str = ""
    scopes: frozenset[str] = frozenset()
    is_open: bool = False
    ends: str = ""

    @property
    def is_operator(self) -> bool:
        return "admin" in self.scopes

    @property
    def form_token(self) -> str:
        """The text that the visitor's forms carry: only this server's pages can know it."""
        bound = self.token or self.visit
        return hmac.new(bound.encode(), b"form of the console", hashlib.sha256).hexdigest() if bound else ""

    def owns(self, form_token: str) -> bool:
        """Return whether a form came from a page that was made for this visitor."""
        return bool(self.form_token) and hmac.compare_digest(self.form_token.encode(), form_token.encode())


def session_of(request: Request) -> str:
    """Return the key of the session in a request's cookie; empty: none, or a text of another form."""
    text = request.cookies.get(SESSION_COOKIE, "")
    return text if _KEY.fullmatch(text) else ""


def visit_of(request: Request) -> str:
    """Return the random text of the visitor's cookie, or a new one."""
    text = request.cookies.get(VISIT_COOKIE, "")
    return text if _VISIT.fullmatch(text) else secrets.token_hex(32)


def inner_path(text: str) -> str:
    """Return a path of the console to go on to; the overview for any other text, such as another site's address."""
    return text if _INNER_PATH.fullmatch(text) else ROOT


def cookie(name: str, value: str, *, max_age_s: int, is_secure: bool) -> tuple[bytes, bytes]:
    """Return the header of a cookie that scripts cannot read and other sites' requests do not carry."""
    made = SimpleCookie({name: value})
    made[name].update({"path": ROOT, "max-age": str(max_age_s), "samesite": "Strict"})
    made[name]["httponly"] = True
    if is_secure:
        made[name]["secure"] = True
    return (b"set-cookie", made[name].OutputString().encode("latin-1"))
