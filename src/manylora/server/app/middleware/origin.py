"""The checks of the Host and Origin headers, and the headers and preflight replies of CORS."""

from manylora.clock import Clock
from manylora.errors import ManyloraError
from manylora.http.origins import OriginPolicy, cors_headers, preflight_headers
from manylora.http.paths import normalized
from manylora.server.generation.reply_headers import EXPOSED
from manylora.server.http.context import App, HttpContext, Receive, Scope, Send


class OriginMiddleware:
    """Refuses hosts and origins that the policy does not allow, and adds the headers of CORS to replies.

    Layers inside see the client address that trusted proxies name. Raises `HostNotAllowed`, `OriginNotAllowed`.
    """

    def __init__(self, app: App, *, policy: OriginPolicy, clock: Clock) -> None:
        self._app = app
        self._policy = policy
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope |= {**self._policy.seen(scope), "path": normalized(scope["path"])}
        state = scope["manylora"]
        try:
            origin = self._policy.check(scope)
        except ManyloraError:
            state.headers += cors_headers(None, EXPOSED)
            raise
        state.headers += cors_headers(origin, EXPOSED)
        if scope["method"] == "OPTIONS":
            await HttpContext(scope, self._clock).reply({}, headers=preflight_headers(origin))
            return
        await self._app(scope, receive, send)
