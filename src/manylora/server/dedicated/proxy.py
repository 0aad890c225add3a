"""The proxy for dedicated deployments: it checks the caller, waits for a replica, and passes the request on to it."""

from collections.abc import AsyncIterator
from urllib.parse import quote

import httpx2
import msgspec

from manylora.clock import Clock
from manylora.errors import BodyTooLarge, ManyloraError, Unavailable
from manylora.http.dialects import stream_body_of
from manylora.http.loopback import EDGE_HEADER, FORWARDED, VERSION_HEADER
from manylora.http.paths import PATHS, SERVER_ROUTES, DeploymentPath, Trait
from manylora.models.fetch.catalog import short_name
from manylora.server.access.access import Access
from manylora.server.dedicated.waits import DeploymentWaits
from manylora.server.http.context import (
    STREAM_HEADERS,
    WAIT_FIELD,
    Receive,
    RequestState,
    Scope,
    Send,
    event_bytes,
    header_of,
)
from manylora.server.http.passing import HOP_BY_HOP, answer, body_of, client_headers, headers_without, target_of
from manylora.tenancy import DeploymentFacts
from manylora.tenancy import Scope as KeyScope

CONNECT_WAIT_S = 5.0
ATTEMPTS = 4
"""Replicas that one request tries: one that ends before the head of its reply has begun no answer."""
OF_PAGES = frozenset({"origin", "sec-fetch-dest", "sec-fetch-mode", "sec-fetch-site", "sec-fetch-user"})
"""Headers of a browser, which this edge has checked: a replica's address is no page's own."""
NOT_PASSED_ON = HOP_BY_HOP | OF_PAGES | {EDGE_HEADER, "x-request-id", *FORWARDED, "x-forwarded-prefix"}
OWN_HEADERS = frozenset({"x-request-id", VERSION_HEADER, "x-b3-traceid", "date", "server", "vary"})
"""Headers of a replica's reply that this edge writes itself; so are those of CORS."""
WAIT_HEADER = b"x-deployment-wait-time"
"""Header of a reply whose request waited for a replica: the wait in milliseconds."""
LEAVING = Unavailable.row.code
"""Code of the refusal of a replica that begins or drains: it has begun nothing, and another one may answer."""


class DedicatedProxy:
    """Passes requests of a tenant to its dedicated deployments on to their replicas."""

    def __init__(self, access: Access, waits: DeploymentWaits, clock: Clock, *, max_body_bytes: int) -> None:
        self.waits = waits
        self._access = access
        self._clock = clock
        self._max_body_bytes = max_body_bytes
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
        timeout = httpx2.Timeout(None, connect=CONNECT_WAIT_S)  # a reply may take long, and its caller may leave
        self._client = httpx2.AsyncClient(timeout=timeout, limits=limits, follow_redirects=False, trust_env=False)

    async def close(self) -> None:
        await self.waits.stop()
        await self._client.aclose()

    async def pass_on(
        self, scope: Scope, receive: Receive, send: Send, found: DeploymentPath, facts: DeploymentFacts
    ) -> None:
        """Check the caller, wait for a replica and pass the request on. `scope` has the path within the deployment.

        Raises as the guard of a route, `BodyTooLarge`, `DeploymentNotFound`, `Overloaded`, `Unavailable`.
        """
        self._check(scope, found.tenant)
        method, path = scope["method"], scope["path"]
        route = SERVER_ROUTES.at(path).get(method)
        wakes = route is not None and method == "POST" and KeyScope.INFER in route.scopes
        self.waits.require_room(facts.tenant, facts.name)  # before the body takes memory
        is_bytes = PATHS.has_trait(method, path, Trait.BYTES)
        body = body_of(receive) if is_bytes else await self._whole(receive)
        with self.waits.counted(facts, wakes=wakes):
            await self._send(scope, send, facts, body, wakes=wakes)

    def _check(self, scope: Scope, tenant: str) -> None:
        """Check the caller before anything is woken. Raises as `Guard`."""
        state: RequestState = scope["manylora"]
        method, path, key = scope["method"], scope["path"], header_of(scope, "authorization") or ""
        state.caller = self._access.identify(method, path, key, tenant)
        self._access.require_active(state.caller)
        self._access.authorise(state.caller, method, path, tenant)

    async def _whole(self, receive: Receive) -> bytes:
        """Return a body, which a second attempt sends again. Raises `BodyTooLarge`."""
        parts, size = [], 0
        async for part in body_of(receive):
            size += len(part)
            if size > self._max_body_bytes:
                raise BodyTooLarge(f"the body may have at most {self._max_body_bytes} bytes")
            parts.append(part)
        return b"".join(parts)

    async def _send(
        self, scope: Scope, send: Send, facts: DeploymentFacts, body: bytes | AsyncIterator[bytes], *, wakes: bool
    ) -> None:
        begun_s, end_s = self._clock.monotonic_s(), self.waits.end_of_wait(wakes=wakes)
        failed: set[str] = set()
        for attempt in range(ATTEMPTS):
            try:
                url = await self.waits.ready_url(facts.tenant, facts.name, end_s=end_s, wakes=wakes, without=failed)
            finally:
                wait_ms = round(1000 * (self._clock.monotonic_s() - begun_s))
                if wait_ms:
                    scope["manylora"].noted[WAIT_FIELD] = wait_ms
            with self.waits.sent_to(url):
                if await self._attempt(scope, send, facts, body, url, wait_ms):
                    return
            failed.add(url)
            if not isinstance(body, bytes) or attempt == ATTEMPTS - 1:
                break
        raise Unavailable("the replicas of the deployment ended before they replied; repeat the request")

    async def _attempt(
        self,
        scope: Scope,
        send: Send,
        facts: DeploymentFacts,
        body: bytes | AsyncIterator[bytes],
        url: str,
        wait_ms: int,
    ) -> bool:
        """Pass the request on to one replica. Return False if it has begun no reply, so that another may reply."""
        request = self._client.build_request(
            scope["method"], _target(scope, facts, url), headers=_headers(scope), content=body or None
        )
        try:
            reply = await self._client.send(request, stream=True)
        except httpx2.TransportError:
            return False
        try:
            try:
                read = await _refusal_of(reply)
            except httpx2.TransportError:
                return False
            if read is not None and _code_of(read) == LEAVING:
                return False
            more = [(WAIT_HEADER, str(wait_ms).encode("ascii"))] if wait_ms else []
            cors = {name for name in reply.headers if name.startswith("access-control-")}
            try:
                await answer(reply, send, more=more, without=OWN_HEADERS | cors, read=read)
            except httpx2.TransportError:
                await _break_off(scope, send, reply)
        finally:
            await reply.aclose()
        return True


def _target(scope: Scope, facts: DeploymentFacts, url: str) -> str:
    """Return the address at a replica: the path of a deployment there has the name of the replica's base."""
    rest = "" if scope["path"] == "/" else scope["path"]
    return url + target_of(scope, f"/{facts.tenant}/deployments/v2/llms/{quote(short_name(facts.base))}{rest}")


def _headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    state: RequestState = scope["manylora"]
    kept = headers_without(scope["headers"], NOT_PASSED_ON)
    return [*kept, *client_headers(scope), (b"x-request-id", state.request_id.encode("ascii"))]


async def _refusal_of(reply: httpx2.Response) -> bytes | None:
    """Return the whole body of a 503, as it comes; None for any other reply, of which it reads nothing."""
    if reply.status_code != Unavailable.row.native_status:
        return None
    return b"".join([part async for part in reply.aiter_raw()])


def _code_of(body: bytes) -> object:
    """Return the code of an error of either dialect; None: the body is no error."""
    try:
        told = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return None
    error = told.get("error") if isinstance(told, dict) else None
    return error.get("code") if isinstance(error, dict) else told.get("code") if error is not None else None


async def _break_off(scope: Scope, send: Send, reply: httpx2.Response) -> None:
    """End a reply whose replica has ended: a stream with an error, any other by the end of the connection."""
    if not reply.headers.get("content-type", "").startswith(STREAM_HEADERS["content-type"]):
        raise ConnectionResetError
    error: ManyloraError = Unavailable("the replica of the deployment has ended; repeat the request")
    body = event_bytes(stream_body_of(error, PATHS.dialect_of(scope["path"]), None))
    await send({"type": "http.response.body", "body": body, "more_body": False})
