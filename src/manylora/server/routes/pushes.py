"""POST and DELETE /v1/adapters/{name}/tensors: a trainer pushes an adapter as one safetensors file."""

from fastapi import APIRouter

from manylora.adapter_state import AdapterInfo
from manylora.clock import Clock
from manylora.config.groups.server import ServerConfig
from manylora.errors import InsufficientPermissions, InvalidParameter, UnsupportedMediaType
from manylora.server.access.access import Access
from manylora.server.http.context import HttpContext
from manylora.server.http.operators import is_by_key, require_operator
from manylora.server.http.routing import Guards, Parameter, Routes
from manylora.server.names.adapter_resolver import AdapterResolver
from manylora.server.pushing.pusher import Pusher
from manylora.system.printable import printable
from manylora.tenancy import AdapterAct

MEDIA_TYPE = "application/octet-stream"
_PARAMETERS = (
    Parameter("name", "path", "The adapter's name in later requests"),
    Parameter("tenant", "query", "The tenant that gets the adapter; default: the key's. Operators alone may name one"),
    Parameter("base", "query", "The base model that it is for; default: the one that its config declares"),
)


def push_routers(routes: "PushRoutes", guards: Guards, clock: Clock) -> tuple[APIRouter, ...]:
    """Return the routers of pushes. Their paths come before those of operators, whose names may have slashes."""
    pushes = Routes(APIRouter(dependencies=guards.keyed), clock)
    deletions = Routes(APIRouter(dependencies=guards.with_body), clock)
    path = "/v1/adapters/{name}/tensors"
    pushes.add(
        f"POST {path}",
        routes.push,
        "Push an adapter's tensors",
        body=MEDIA_TYPE,
        replies={200: AdapterInfo},
        parameters=_PARAMETERS,
    )
    deletions.add(
        f"DELETE {path}",
        routes.remove,
        "Delete a pushed adapter",
        replies={200: dict[str, str]},
        parameters=_PARAMETERS,
    )
    return pushes.router, deletions.router


class PushRoutes:
    """The handlers of pushes. Without keys, only programs on the server's own machine may push."""

    def __init__(self, pusher: Pusher, resolver: AdapterResolver, settings: ServerConfig, access: Access) -> None:
        self._pusher = pusher
        self._resolver = resolver
        self._settings = settings
        self._access = access

    async def push(self, context: HttpContext) -> None:
        """Reply with the adapter's state once it is checked and loaded, and its name means it."""
        tenant = await self._tenant(context)
        kind = (context.header("content-type") or "").partition(";")[0].strip().lower()
        if kind != MEDIA_TYPE:
            raise UnsupportedMediaType(f"send the header `Content-Type: {MEDIA_TYPE}` and one safetensors file")
        name = context.path_parameters["name"]
        base = context.query.get("base", context.arrival.deployment)
        size = _size(context.header("content-length"))
        info = await self._pusher.push(tenant, name, size, context.body_parts(), base)
        await self._note(context, "push", tenant, name)
        await context.reply(info)

    async def remove(self, context: HttpContext) -> None:
        tenant, name = await self._tenant(context), context.path_parameters["name"]
        await self._pusher.remove(tenant, name)
        await self._note(context, "delete", tenant, name)
        await context.reply({"id": name, "tenant": tenant, "state": "absent"})

    async def _tenant(self, context: HttpContext) -> str:
        """Return the tenant of the push. Raises `InsufficientPermissions`, `InvalidParameter`."""
        if context.arrival.caller.key is None:
            require_operator(context, is_open=self._settings.admin_open)
        own, named = context.arrival.tenant, context.query.get("tenant")
        if named is None or named == own:
            return own
        if self._access.is_key_needed and not is_by_key(context):
            raise InsufficientPermissions("only an operator's key may push for another tenant")
        if not await self._resolver.has_tenant(named):
            raise InvalidParameter(f"no tenant `{printable(named[:80])}`", parameter="tenant")
        return named

    async def _note(self, context: HttpContext, verb: str, tenant: str, name: str) -> None:
        caller = context.arrival.caller
        act = AdapterAct(
            at_ms=int(1000 * context.clock.wall_s()),
            actor=caller.tenant,
            key=caller.key,
            address=context.client_host,
            request_id=context.arrival.request_id,
            verb=verb,
            adapter=f"pushed://{name}",
            owner=tenant,
        )
        await self._access.note_act(act)


def _size(header: str | None) -> int | None:
    """Return the announced size of a body; uvicorn has checked that the header is a number."""
    return int(header) if header is not None and header.isascii() and header.isdigit() else None
