"""The outermost layer: who may ask at all, one path form, an id on every reply, bounded bodies, a caller who leaves."""

import asyncio
import re
from collections.abc import Iterable
from urllib.parse import unquote

import structlog

from manylora import __version__
from manylora.clock import Clock
from manylora.config.groups.server import ServerConfig
from manylora.errors import (
    BodyTooLarge,
    DeploymentNotFound,
    ManyloraError,
    RouteNotBuilt,
    RouteNotFound,
    Unavailable,
    UnsupportedMediaType,
)
from manylora.http.callers import NOBODY, Caller
from manylora.http.loopback import CALLER_HEADER, VERSION_HEADER
from manylora.http.origins import OriginPolicy, cors_headers, preflight_headers
from manylora.http.paths import PATHS, Component, Trait, deployment_path, normalized
from manylora.ids import KeyId, TenantId, mint_request_id
from manylora.server.access.access import Access
from manylora.server.engine_client.transport import SHUTTING_DOWN
from manylora.server.generation.models import ModelRouter
from manylora.server.generation.reply_headers import EXPOSED
from manylora.server.http.context import (
    CLIENT_CLOSED_REQUEST,
    HttpContext,
    Receive,
    RequestState,
    Scope,
    Send,
    header_of,
    is_visible_ascii,
)
from manylora.server.observability.metrics import Meters

DRAIN_FACTOR = 8

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_JSON_TYPE = re.compile(r"application/(json|[\w.-]+\+json)\s*(;.*)?", re.IGNORECASE)


class EdgeMiddleware:
    """Wraps the routes. It reads the whole body first, so that a disconnect can be seen while the route works."""

    def __init__(
        self,
        app: object,
        *,
        settings: ServerConfig,
        models: ModelRouter,
        meters: Meters,
        clock: Clock,
        access: Access,
        control: object | None = None,
    ) -> None:
        """`control`: the control plane's ASGI application, or what stands for it; None: there is none."""
        self._app = app
        self._access = access
        self._control = control
        self._settings = settings
        self._models = models
        self._meters = meters
        self._clock = clock
        self._policy = OriginPolicy.of(
            is_key_needed=access.is_key_needed,
            host=settings.host,
            allowed_hosts=settings.allowed_hosts,
            origins=settings.cors_allow_origins,
            proxies=settings.trusted_proxies,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._route(scope, receive, send)
            return
        arrival = RequestState(request_id=_request_id(scope), arrived_s=self._clock.monotonic_s())
        arrival.trace_id = header_of(scope, "x-b3-traceid")
        own = {**self._policy.seen(scope), "path": normalized(scope["path"]), "manylora": arrival}
        try:
            origin = self._policy.check(own)
        except ManyloraError as error:
            await HttpContext(own, self._outward(own, arrival, send, None), self._clock).fail(error)
        else:
            await self._guarded(own, receive, self._outward(own, arrival, send, origin), origin)
        finally:
            self._note(own, arrival)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send, origin: str | None) -> None:
        if scope["method"] == "OPTIONS":
            await HttpContext(scope, send, self._clock).reply({}, headers=preflight_headers(origin))
            return
        arrival: RequestState = scope["manylora"]
        try:
            tenant = self._enter_deployment(scope)
            component = PATHS.area_of(scope["path"]).component
            if component is Component.CONTROL and self._control is not None:
                await self._pass_on(scope, receive, send)
                return
            if component in (Component.CONTROL, Component.ABSENT):
                raise RouteNotBuilt(f"{scope['path']} is not part of this server")
            authorization = header_of(scope, "authorization") or ""
            asked = (scope["method"], scope["path"])
            arrival.caller = self._access.identify(*asked, authorization, tenant)
            self._access.authorise(arrival.caller, *asked, tenant)
            if scope["method"] in ("POST", "PUT", "PATCH", "DELETE"):
                arrival.body = await self._read_body(scope, receive)
                await self._until_disconnect(scope, receive, send)
            else:
                await self._route(scope, receive, send)
        except ManyloraError as error:
            await HttpContext(scope, send, self._clock).fail(error)
        except ConnectionResetError:
            return  # the caller left while sending its body
        except asyncio.CancelledError:  # the server ends, and the time for connections to close is over
            if arrival.status == CLIENT_CLOSED_REQUEST:  # no head has been sent
                await HttpContext(scope, send, self._clock).fail(Unavailable(SHUTTING_DOWN))

    def _enter_deployment(self, scope: Scope) -> str | None:
        """`/{tenant}/deployments/v2/llms/{name}/…` is the same route for that tenant, which is returned."""
        found = deployment_path(scope["path"])
        if found is None:
            return None
        if not _TENANT.fullmatch(found.tenant) or not self._models.serves(unquote(found.name)):
            raise DeploymentNotFound(f"deployment '{found.name}' was not found")
        scope["path"] = found.rest
        return found.tenant

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A route of the control plane: it reads the body itself, as it comes, and knows keys itself.

        A path with `.` or `..` in it could come out as another one elsewhere, so there is none.

        Before a change is confirmed this server has learned of it: whoever was given a key may use it here at once.
        """

        if not {".", ".."}.isdisjoint(scope["path"].split("/")):
            raise RouteNotFound(f"no route {scope['method']} {scope['path']}")

        arrival: RequestState = scope["manylora"]
        kept = [(name, value) for name, value in scope["headers"] if name.lower() != b"x-request-id"]
        named = {**scope, "headers": [*kept, (b"x-request-id", arrival.request_id.encode("ascii"))]}

        async def confirmed(message: Scope) -> None:
            if message["type"] == "http.response.start":
                if scope["method"] not in ("GET", "HEAD"):
                    await self._access.learn()
                message = {**message, "headers": _learned(arrival, message.get("headers", ()))}
            await send(message)

        await self._control(named, receive, confirmed)  # type: ignore[misc,operator]  # any callable

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        """A body that is too large is read on for a while, so that its sender sees the answer and not a broken pipe."""
        limit = self._settings.max_body_bytes
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError
            size += len(message.get("body", b""))
            if size <= limit:
                parts.append(message.get("body", b""))
            if not message.get("more_body") or size > DRAIN_FACTOR * limit:
                break
        if size > limit:
            raise BodyTooLarge(f"the body may have at most {limit} bytes")
        if size and not _JSON_TYPE.fullmatch(header_of(scope, "content-type") or ""):
            raise UnsupportedMediaType("send the header `Content-Type: application/json`")
        return b"".join(parts)

    async def _until_disconnect(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the route; if its caller leaves first, cancel it, which aborts its sequences."""
        arrival: RequestState = scope["manylora"]

        async def watch(work: asyncio.Task[None]) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            if not arrival.is_complete:
                arrival.status, arrival.has_left = 499, True
                work.cancel()

        async with asyncio.TaskGroup() as group:
            work = group.create_task(self._route(scope, _nothing_more, send))
            watcher = group.create_task(watch(work))
            work.add_done_callback(lambda _: watcher.cancel())

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)  # type: ignore[operator]  # an ASGI application is any callable

    def _outward(self, scope: Scope, arrival: RequestState, send: Send, origin: str | None) -> Send:
        """Add to the head of every reply, whoever wrote it, and see when its last byte is handed over."""
        common = [
            (b"x-request-id", arrival.request_id.encode("ascii")),
            (VERSION_HEADER.encode("ascii"), __version__.encode("ascii")),
            *cors_headers(origin, EXPOSED),
        ]
        if is_visible_ascii(arrival.trace_id) and arrival.trace_id is not None:
            common.append((b"x-b3-traceid", arrival.trace_id.encode("ascii")))

        async def outward(message: Scope) -> None:
            if message["type"] == "http.response.start":
                arrival.status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *common]}
            elif message["type"] == "http.response.body" and not message.get("more_body"):
                arrival.is_complete = True
            await send(message)

        return outward

    def _note(self, scope: Scope, arrival: RequestState) -> None:
        """One line a request, at its end. No prompt, no completion, no key."""
        path, duration_s = scope["path"], self._clock.monotonic_s() - arrival.arrived_s
        status = arrival.status if arrival.is_complete else 499
        if PATHS.has_trait(scope["method"], path, Trait.GENERATES):
            code = arrival.noted.get("error")
            self._meters.note_reply(status, code if isinstance(code, str) else None, duration_s)
        log = structlog.get_logger()
        tell = log.debug if PATHS.has_trait(scope["method"], path, Trait.QUIET) else log.info
        tell(
            "request.finished",
            request_id=arrival.request_id,
            method=scope["method"],
            path=path,
            status=status,
            tenant=None if arrival.caller is NOBODY else arrival.tenant,
            key=arrival.caller.key,
            total_ms=round(1e3 * duration_s, 1),
            **{name: value for name, value in arrival.noted.items() if name != "total_ms"},
        )


def _learned(arrival: RequestState, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of a control plane's reply without the one that says whose request it answers, which is noted."""
    kept = []
    for name, value in headers:
        if name.lower() != CALLER_HEADER.encode("ascii"):
            kept.append((name, value))
            continue
        tenant, _, key = value.decode("latin-1").partition("/")
        if tenant != "-":
            arrival.caller = Caller(tenant=TenantId(tenant), key=None if key == "-" else KeyId(key))
    return kept


async def _nothing_more() -> Scope:
    """What a route receives after its body: nothing, for ever. The edge watches for the disconnect itself."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError("a future that nobody sets does not end")


def _request_id(scope: Scope) -> str:
    own = header_of(scope, "x-request-id")
    return own if own is not None and is_visible_ascii(own) else mint_request_id()
