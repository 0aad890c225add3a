"""Authentication of requests to the control plane, and facts about their origin."""

import hmac
import re
from collections.abc import Mapping

from sqlalchemy import Row, select
from starlette.requests import Request

from manylora.control.control import Control
from manylora.control.storage.tables import keys, tenants
from manylora.errors import InvalidApiKey
from manylora.http.callers import Caller, StoredKey, judge, key_of, require_active
from manylora.http.loopback import EDGE_HEADER, why_not_local
from manylora.ids import TenantId, mint_request_id
from manylora.tenancy import CUSTOMER_SCOPES, DEFAULT_TENANT, Scope, TenantState, scopes_of_words

_VISIBLE = re.compile(r"[!-~]{1,128}")


async def caller_of(control: Control, request: Request) -> Caller:
    """Return the caller that `KeyMiddleware` has authenticated; on a route that needs no key, authenticate it.

    Raises as `authenticate`.
    """
    found: Caller | None = getattr(request.state, "caller", None)
    return await authenticate(control, request) if found is None else found


async def authenticate(control: Control, request: Request) -> Caller:
    """Return the caller of a request by its key; without a key, where none is needed, the tenant `default`.

    Raises `InvalidApiKey`, `TenantSuspended`.
    """
    try:
        key_id, secret = key_of(request.headers.get("authorization", ""))
    except InvalidApiKey:
        if control.is_key_needed:
            raise
        return _open_caller(control, request)
    asked = select(keys, tenants.c.state).join(tenants, keys.c.tenant == tenants.c.id).where(keys.c.id == key_id)
    async with control.database.read() as connection:
        row = (await connection.execute(asked)).one_or_none()
    judge(
        None if row is None else _stored(row),
        secret,
        pepper=control.pepper,
        now_ms=control.now_ms(),
        is_key_needed=control.is_key_needed,
    )
    assert row is not None, "an unknown key is not valid"
    require_active(row.tenant, TenantState(row.state))
    control.uses.note(key_id, control.now_ms())
    return Caller(tenant=TenantId(row.tenant), key=key_id, scopes=scopes_of_words(row.scopes.split()))


def _stored(row: Row[tuple[object, ...]]) -> StoredKey:
    return StoredKey(
        tenant=TenantId(row.tenant),
        secret_hash=row.secret_hash,
        expires_ms=row.expires_ms,
        is_revoked=row.revoked_ms is not None,
    )


def address_of(control: Control, request: Request) -> str:
    """Return the client's address: as an edge names it that passes the request on, else that of the connection."""
    if _is_of_edge(control, request):
        named = request.headers.getlist("x-forwarded-for")
        return named[-1].rpartition(",")[2].strip() if named else ""
    return request.client.host if request.client else ""


def was_passed_on(control: Control, request: Request) -> bool:
    """Return whether a server passes a request on, in another process (by its token) or in this one (by a mark)."""
    return "manylora" in request.scope or _is_of_edge(control, request)


def request_id_of(request: Request) -> str:
    """Return the id of a request: that of its header, else a new one that later calls return as well."""
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


def has_edge_token(edge_token: str, headers: Mapping[str, str]) -> bool:
    """Return whether an edge passes a request on. Then its `x-forwarded-…` headers come from the edge and are true."""
    return hmac.compare_digest(headers.get(EDGE_HEADER, "").encode("latin-1"), edge_token.encode())
