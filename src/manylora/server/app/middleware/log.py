"""The log line and the span of each request, and the count of inference replies in the metrics."""

import logging

from manylora.clock import Clock
from manylora.http.callers import ANONYMOUS
from manylora.http.paths import PATHS, Trait
from manylora.server.http.context import (
    CLIENT_CLOSED_REQUEST,
    WAIT_FIELD,
    App,
    Receive,
    RequestState,
    Scope,
    Send,
    header_of,
    is_visible_ascii,
)
from manylora.server.observability.metrics import Meters
from manylora.server.observability.tracing import PARENT_HEADERS, EndedRequest, RequestTracer
from manylora.system.log_lines import fields, log_context

log = logging.getLogger(__name__)
_TOLD = {"trace": "x-b3-traceid", "traceparent": "traceparent", "predibase_tenant": "x-predibase-tenant"}


class LogMiddleware:
    """Writes one line at the end of a request, without prompts, completions and keys.

    The lines of quiet routes have the level debug, and such requests have no span. Without `tracer` no request has one.
    """

    def __init__(self, app: App, *, meters: Meters, clock: Clock, tracer: RequestTracer | None = None) -> None:
        self._app = app
        self._tracer = tracer
        self._meters = meters
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state: RequestState = scope["manylora"]
        with log_context(request_id=state.request_id):
            try:
                await self._app(scope, receive, send)
            finally:
                self._note(scope, state)

    def _note(self, scope: Scope, state: RequestState) -> None:
        method, path, duration_s = scope["method"], scope["path"], self._clock.monotonic_s() - state.arrived_s
        status = state.status if state.is_complete else CLIENT_CLOSED_REQUEST
        if PATHS.has_trait(method, path, Trait.GENERATES):
            code = state.noted.get("error")
            self._meters.note_reply(status, code if isinstance(code, str) else None, duration_s)
        if isinstance(wait_ms := state.noted.get(WAIT_FIELD), int):
            self._meters.note_wait(wait_ms / 1000)
        said = fields(
            request_id=state.request_id,
            method=method,
            path=path,
            status=status,
            tenant=None if state.caller is ANONYMOUS else state.tenant,
            key=state.caller.key,
            **_told_by_caller(scope),
            total_ms=round(1e3 * duration_s, 1),
            **{name: value for name, value in state.noted.items() if name != "total_ms"},
        )
        is_quiet = PATHS.has_trait(method, path, Trait.QUIET)
        log.log(logging.DEBUG if is_quiet else logging.INFO, "request.finished", extra=said)
        if self._tracer is not None and not is_quiet:
            self._tracer.note(_ended(scope, state, status, duration_s))


def _ended(scope: Scope, state: RequestState, status: int, duration_s: float) -> EndedRequest:
    parents = {name: header_of(scope, name) for name in PARENT_HEADERS}
    method, path = scope["method"], scope["path"]
    is_fixed = state.deployment is None and PATHS.has_trait(method, path, Trait.GENERATES)
    return EndedRequest(
        name=f"{method} {path}" if is_fixed else method,
        method=method,
        path=path,
        status=status,
        request_id=state.request_id,
        tenant=None if state.caller is ANONYMOUS else state.tenant,
        key=state.caller.key,
        duration_s=duration_s,
        parents={name: value for name, value in parents.items() if value is not None},
        noted=state.noted,
    )


def _told_by_caller(scope: Scope) -> dict[str, str | None]:
    """Return the ids of a trace, and the tenant that a client of Predibase names. No decision depends on them."""
    told = {name: header_of(scope, header) for name, header in _TOLD.items()}
    return {name: value if is_visible_ascii(value) else None for name, value in told.items()}
