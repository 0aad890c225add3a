"""The layer that passes requests for the control plane's routes on to the control plane."""

from collections.abc import Awaitable, Callable, Iterable

from manylora.errors import RouteNotBuilt, RouteNotFound
from manylora.http.callers import Caller
from manylora.http.loopback import CALLER_HEADER
from manylora.http.paths import PATHS, Component
from manylora.http.segments import has_dot_segment
from manylora.ids import KeyId, TenantId
from manylora.server.http.context import App, Receive, RequestState, Scope, Send
from manylora.system.printable import printable

Learn = Callable[[], Awaitable[None]]


class ControlMiddleware:
    """Passes on requests of the control plane's routes, which read the body and the key themselves.

    `learn` runs before the reply to a change, so that this server at once accepts a key from that reply.

    Raises `RouteNotBuilt` for a route without a control plane, and `RouteNotFound` for a path that the control plane
    could read as another path.
    """

    def __init__(self, app: App, *, control: App | None, learn: Learn) -> None:
        """`control` is the control plane's application or a proxy of it; None: there is none."""
        self._app = app
        self._control = control
        self._learn = learn

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        component = PATHS.area_of(scope["path"]).component
        if component is Component.CONTROL and self._control is not None:
            await self._pass_on(self._control, scope, receive, send)
        elif component in (Component.CONTROL, Component.ABSENT):
            raise RouteNotBuilt(f"{printable(scope['path'])} is not part of this server")
        else:
            await self._app(scope, receive, send)

    async def _pass_on(self, control: App, scope: Scope, receive: Receive, send: Send) -> None:
        if has_dot_segment(scope["path"]):
            raise RouteNotFound(f"no route {scope['method']} {printable(scope['path'])}")
        state: RequestState = scope["manylora"]
        kept = [(name, value) for name, value in scope["headers"] if name.lower() != b"x-request-id"]
        named = {**scope, "headers": [*kept, (b"x-request-id", state.request_id.encode("ascii"))]}

        async def confirmed(message: Scope) -> None:
            if message["type"] == "http.response.start":
                if scope["method"] not in ("GET", "HEAD"):
                    await self._learn()
                message = {**message, "headers": _without_caller(state, message.get("headers", ()))}
            await send(message)

        await control(named, receive, confirmed)


def _without_caller(state: RequestState, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return a reply's headers without the one that names the caller, which the state keeps."""
    kept = []
    for name, value in headers:
        if name.lower() != CALLER_HEADER.encode("ascii"):
            kept.append((name, value))
            continue
        tenant, _, key = value.decode("latin-1").partition("/")
        if tenant != "-":
            state.caller = Caller(tenant=TenantId(tenant), key=None if key == "-" else KeyId(key))
    return kept
