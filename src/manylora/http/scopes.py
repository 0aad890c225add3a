"""Scopes that each route asks of a key: one table for the server's routes and the control plane's.

Both enforce it before a route reads anything of a body; `docs/keys-and-limits.md` lists it. A route that is not in it
answers nobody.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from manylora.errors import InsufficientPermissions
from manylora.tenancy import Scope

INFER, READ, UPLOAD, MANAGE, ADMIN = Scope.INFER, Scope.READ, Scope.UPLOAD, Scope.MANAGE, Scope.ADMIN
Scopes = tuple[Scope, ...]
KEYLESS: Scopes = ()
ANY: Scopes = (INFER, READ, UPLOAD, MANAGE, ADMIN)
LOOKING: Scopes = (INFER, READ)
LISTING: Scopes = (READ, UPLOAD)

_SERVER: dict[str, Scopes] = {
    "GET /": KEYLESS,
    "POST /": (INFER,),
    "POST /invocations": (INFER,),
    "POST /generate": (INFER,),
    "POST /generate_stream": (INFER,),
    "POST /v1/completions": (INFER,),
    "POST /v1/chat/completions": (INFER,),
    "POST /v1/embeddings": (INFER,),
    "POST /embed": (INFER,),
    "POST /classify": (INFER,),
    "POST /classify_batch": (INFER,),
    "POST /tokenize": (INFER,),
    "GET /v1/models": LOOKING,
    "GET /v1/models/{model_id:path}": LOOKING,
    "GET /v1/adapters": (ADMIN,),
    "GET /v1/adapters/{adapter_id:path}": (ADMIN,),
    "POST /v1/adapters/{adapter_id:path}": (ADMIN,),
    "DELETE /v1/adapters/{adapter_id:path}": (ADMIN,),
    "GET /metrics": (ADMIN,),
    "GET /info": KEYLESS,
    "GET /health": KEYLESS,
    "GET /ping": KEYLESS,
    "GET /startup": KEYLESS,
    "GET /ready": KEYLESS,
    "GET /docs": KEYLESS,
    "GET /api-doc/openapi.json": KEYLESS,
    "GET /openapi.json": KEYLESS,
}
_OPERATOR: dict[str, Scopes] = {
    "GET /admin/docs": (ADMIN,),
    "GET /admin/openapi.json": (ADMIN,),
    "GET /admin/tenants": (ADMIN,),
    "POST /admin/tenants": (ADMIN,),
    "GET /admin/tenants/{tenant}": (ADMIN,),
    "PATCH /admin/tenants/{tenant}": (ADMIN,),
    "POST /admin/tenants/{tenant}/suspend": (ADMIN,),
    "POST /admin/tenants/{tenant}/resume": (ADMIN,),
    "POST /admin/tenants/{tenant}/close": (ADMIN,),
    "GET /admin/tenants/{tenant}/limits": (ADMIN,),
    "PUT /admin/tenants/{tenant}/limits": (ADMIN,),
    "GET /admin/tenants/{tenant}/credits": (ADMIN,),
    "POST /admin/tenants/{tenant}/credits": (ADMIN,),
    "GET /admin/tenants/{tenant}/keys": (ADMIN,),
    "POST /admin/tenants/{tenant}/keys": (ADMIN,),
    "POST /admin/keys/{key}/rotate": (ADMIN,),
    "PUT /admin/keys/{key}/limits": (ADMIN,),
    "DELETE /admin/keys/{key}": (ADMIN,),
    "GET /admin/prices": (ADMIN,),
    "POST /admin/prices": (ADMIN,),
    "GET /admin/usage": (ADMIN,),
    "GET /admin/ledger": (ADMIN,),
    "GET /admin/invoices/{tenant}/{month}": (ADMIN,),
    "POST /admin/corrections": (ADMIN,),
    "GET /admin/audit": (ADMIN,),
    "GET /admin/repos": (ADMIN,),
    "DELETE /admin/repos/{tenant}": (ADMIN,),
    "GET /admin/repos/{tenant}/{repo}": (ADMIN,),
    "DELETE /admin/repos/{tenant}/{repo}": (ADMIN,),
    "POST /admin/repos/{tenant}/{repo}/archive": (ADMIN,),
    "POST /admin/repos/{tenant}/{repo}/unarchive": (ADMIN,),
    "GET /admin/repos/{tenant}/{repo}/version/{tag}": (ADMIN,),
    "DELETE /admin/repos/{tenant}/{repo}/version/{tag}": (ADMIN,),
    "POST /admin/repos/{tenant}/{repo}/version/{tag}/archive": (ADMIN,),
    "POST /admin/repos/{tenant}/{repo}/version/{tag}/unarchive": (ADMIN,),
}
_CUSTOMER: dict[str, Scopes] = {
    "GET /health": KEYLESS,
    "GET /openapi.json": KEYLESS,
    "POST /v1/signup": KEYLESS,
    "GET /v1/prices": KEYLESS,
    "GET /v1/account": (READ,),
    "GET /v1/account/key": ANY,
    "GET /v1/account/usage": (READ,),
    "GET /v1/account/ledger": (READ,),
    "GET /v1/account/credits": (READ,),
    "GET /v1/account/invoices/{month}": (READ,),
    "GET /v1/account/audit": (READ,),
    "GET /v1/account/keys": (READ, MANAGE),
    "POST /v1/account/keys": (MANAGE,),
    "POST /v1/account/keys/{key}/rotate": (MANAGE,),
    "PUT /v1/account/keys/{key}/limits": (MANAGE,),
    "DELETE /v1/account/keys/{key}": (MANAGE,),
    "GET (/v1)/users/current": ANY,
    "GET /v1/models/version/name/{name}": LOOKING,
    "GET (/v1)/v2/deployments": LOOKING,
    "POST (/v1)/v2/deployments": (UPLOAD,),
    "GET (/v1)/v2/deployments/recommended-config": LOOKING,
    "GET (/v1)/v2/deployments/{name}": LOOKING,
    "PUT (/v1)/v2/deployments/{name}": (UPLOAD,),
    "DELETE (/v1)/v2/deployments/{name}": (UPLOAD,),
    "GET (/v1)/v2/deployments/{name}/request-logs": (READ,),
    "GET (/v1)/llms": LOOKING,
    "GET (/v1)/llms/validate_adapter_compatibility": LOOKING,
    "GET (/v1)/supported_llms": LOOKING,
    "GET (/v1)/llms/{name}": LOOKING,
    "GET (/v1)/llms/{name}/events": LOOKING,
    "GET (/v1)/llms/{name}/scaled": LOOKING,
    "GET (/v1)/v2/repos": LISTING,
    "POST (/v1)/v2/repos": (UPLOAD,),
    "GET (/v1)/v2/repos/{repo}": LISTING,
    "PUT (/v1)/v2/repos/{repo}": (UPLOAD, MANAGE),
    "DELETE (/v1)/v2/repos/{repo}": (UPLOAD,),
    "PUT (/v1)/v2/repos/{repo}/aliases/{alias}": (MANAGE,),
    "DELETE (/v1)/v2/repos/{repo}/aliases/{alias}": (MANAGE,),
    "POST (/v1)/v2/repos/{repo}/shares": (MANAGE,),
    "DELETE (/v1)/v2/repos/{repo}/shares/{tenant}": (MANAGE,),
    "POST (/v1)/v2/repos/{repo}/versions": (UPLOAD,),
    "GET (/v1)/v2/repos/{repo}/version/{tag}": LISTING,
    "PUT (/v1)/v2/repos/{repo}/version/{tag}": (UPLOAD,),
    "DELETE (/v1)/v2/repos/{repo}/version/{tag}": (UPLOAD,),
    "GET (/v1)/v2/repos/{repo}/version/{tag}/download": (UPLOAD,),
    "POST (/v1)/v2/adapters/upload": (UPLOAD,),
    "PUT (/v1)/v2/adapters/upload": (UPLOAD,),
    "POST (/v1)/v2/adapters/upload/": (UPLOAD,),
    "PUT (/v1)/v2/adapters/upload/": (UPLOAD,),
    "PUT (/v1)/v2/adapters/upload/{tenant}/{upload}/{file}": KEYLESS,  # the address is signed
    "GET (/v1)/v2/adapters/upload/{tenant}/{upload}/{file}": KEYLESS,
}
_PREFIX = "(/v1)"
"""A path that there is twice, with and without it."""
_SPECIAL = re.compile(r"\\\{\w+(:path)?\\\}")


@dataclass(frozen=True, slots=True)
class RouteScopes:
    """One route. scopes: a key with any of them may call it; empty: it needs no key."""

    method: str
    path: str
    scopes: Scopes
    pattern: re.Pattern[str]


def _expanded(table: dict[str, Scopes]) -> Iterator[RouteScopes]:
    for route, scopes in table.items():
        method, _, path = route.partition(" ")
        plain = path.removeprefix(_PREFIX)
        for each in (plain, f"/v1{plain}") if path.startswith(_PREFIX) else (path,):
            text = _SPECIAL.sub(lambda match: ".*" if match[1] else "[^/]+", re.escape(each))
            yield RouteScopes(method, each, scopes, re.compile(text, re.DOTALL))


SERVER_ROUTES: tuple[RouteScopes, ...] = tuple(_expanded(_SERVER))
CONTROL_ROUTES: tuple[RouteScopes, ...] = tuple(_expanded(_OPERATOR | _CUSTOMER))


def routes_at(routes: Iterable[RouteScopes], path: str) -> dict[str, RouteScopes]:
    """The routes of a path, by method; HEAD is as GET. Of two that fit a path, the one that comes first."""
    found: dict[str, RouteScopes] = {}
    for route in routes:
        if route.pattern.fullmatch(path):
            found.setdefault(route.method, route)
    return found | ({"HEAD": found["GET"]} if "GET" in found else {})


def routes_of(routes: Iterable[RouteScopes], *, is_operator: bool) -> dict[tuple[str, str], RouteScopes]:
    """Routes by path and method as an OpenAPI document writes them; those for `admin` alone only for an operator."""
    shown = (route for route in routes if is_operator or route.scopes != (ADMIN,))
    return {(route.path.replace(":path}", "}"), route.method.lower()): route for route in shown}


def told_of(scopes: Scopes) -> str:
    """Return a sentence about the scopes that a route asks of a key."""
    if not scopes:
        return "Needs no key."
    if set(scopes) == set(ANY):
        return "Needs a key of any scope."
    return f"Needs a key with the scope {' or '.join(f'`{scope}`' for scope in scopes)}."


def require_any(held: Scopes, wanted: Scopes) -> None:
    """Raises `InsufficientPermissions` naming the scopes of which a key lacks all."""
    if wanted and not set(held) & set(wanted):
        named = " or ".join(f"`{scope}`" for scope in wanted)
        raise InsufficientPermissions(f"this needs a key with the scope {named}")
