"""Who calls the control plane's routes, and what that caller may do."""

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import select
from starlette.requests import Request

from manylora.control.control import Control
from manylora.control.storage.tables import keys, tenants
from manylora.errors import InsufficientPermissions, InvalidApiKey, TenantSuspended
from manylora.http.loopback import EDGE_HEADER, why_not_local
from manylora.http.scopes import require_any
from manylora.ids import KeyId, TenantId, mint_request_id
from manylora.tenancy import (
    CUSTOMER_SCOPES,
    DEFAULT_TENANT,
    Scope,
    TenantState,
    hash_secret,
    scopes_of_words,
    split_key,
)

BEARER = "bearer "
_VISIBLE = re.compile(r"[!-~]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """key: None where nobody was asked for one."""

    tenant: TenantId
    key: KeyId | None
    scopes: tuple[Scope, ...]

    def require(self, scope: Scope) -> None:
        """Raises `InsufficientPermissions` naming the scope that the key lacks."""
        require_any(self.scopes, (scope,))

    def require_owner(self) -> None:
        """Keys are steered with a key, or from this machine: on an open server whoever comes is `default`.

        A key outlives that server's openness, and a web page in a browser here may come, too.
        Raises `InsufficientPermissions`.
        """
        if self.key is None and Scope.ADMIN not in self.scopes:
            raise InsufficientPermissions(
                "keys of an open server are made, rotated and ended with a key, or from a program on its own machine"
            )


async def caller_of(control: Control, request: Request) -> Caller:
    """The caller of a route, as the guard has found it, which has checked its scope, too.

    Raises as `authenticate` on a route that needs no key.
    """
    found: Caller | None = getattr(request.state, "caller", None)
    return await authenticate(control, request) if found is None else found


async def authenticate(control: Control, request: Request) -> Caller:
    """The caller of a request by its key; without one, where none is needed, tenant `default`.

    Every refusal of a key says the same, so that nobody learns which part of it was wrong.
    Raises `InvalidApiKey`, `TenantSuspended`.
    """
    header = request.headers.get("authorization", "")
    text = header[len(BEARER) :].strip() if header[: len(BEARER)].lower() == BEARER else ""
    parts = split_key(text)
    if parts is None:
        if control.is_key_needed:
            raise InvalidApiKey("send a key: `Authorization: Bearer pb_…`")
        return _open_caller(control, request)
    key_id, secret = parts
    asked = select(keys, tenants.c.state).join(tenants, keys.c.tenant == tenants.c.id).where(keys.c.id == key_id)
    async with control.database.read() as connection:
        row = (await connection.execute(asked)).one_or_none()
    given = hash_secret(control.pepper, secret)
    is_known = row is not None and hmac.compare_digest(row.secret_hash, given)
    if row is None or not is_known or row.revoked_ms is not None or _is_past(control, row.expires_ms):
        raise InvalidApiKey("the key is not valid")
    if row.tenant == DEFAULT_TENANT and control.is_key_needed:
        raise InvalidApiKey("the key is not valid")  # it was made while the server was open to everybody
    if row.state != TenantState.ACTIVE:
        raise TenantSuspended(f"tenant `{row.tenant}` is {row.state}")
    control.uses.note(key_id, control.now_ms())
    return Caller(tenant=TenantId(row.tenant), key=key_id, scopes=scopes_of_words(row.scopes.split()))


def address_of(control: Control, request: Request) -> str:
    """Where a request comes from: as the edge says that passes it on, or the other end of the connection."""
    if _is_of_edge(control, request):
        named = request.headers.getlist("x-forwarded-for")
        return named[-1].rpartition(",")[2].strip() if named else ""
    return request.client.host if request.client else ""


def was_passed_on(control: Control, request: Request) -> bool:
    """Return whether a server passes a request on: from elsewhere, or from this process, where it leaves a mark."""
    return "manylora" in request.scope or _is_of_edge(control, request)


def request_id_of(request: Request) -> str:
    """The request's own id, as the server or the caller names it, else one of ours; the same each time."""
    if not hasattr(request.state, "request_id"):
        given = request.headers.get("x-request-id", "")
        request.state.request_id = given if _VISIBLE.fullmatch(given) else mint_request_id()
    return str(request.state.request_id)


def _is_of_edge(control: Control, request: Request) -> bool:
    shown = request.headers.get(EDGE_HEADER, "").encode("latin-1")
    return hmac.compare_digest(shown, control.edge_token.encode())


def _open_caller(control: Control, request: Request) -> Caller:
    host = request.client.host if request.client else None
    is_operator = control.config.server.admin_open or why_not_local(host, request.headers.get) is None
    scopes = tuple(Scope) if is_operator else CUSTOMER_SCOPES
    return Caller(tenant=DEFAULT_TENANT, key=None, scopes=scopes)


def _is_past(control: Control, moment_ms: int | None) -> bool:
    return moment_ms is not None and moment_ms <= control.now_ms()


def has_edge_token(edge_token: str, headers: Mapping[str, str]) -> bool:
    """Return whether an edge passes a request on: then its `x-forwarded-…` headers are that edge's own, and true."""
    return hmac.compare_digest(headers.get(EDGE_HEADER, "").encode("latin-1"), edge_token.encode())
