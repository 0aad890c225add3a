"""The operators' routes: GET /v1/adapters, and GET, POST and DELETE of /v1/adapters/{adapter_id}."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace

from fastapi import APIRouter

from manylora.adapter_ref import AdapterRef, SourceName, is_registry_id
from manylora.adapter_state import LASTING_ACTIONS, AdapterAction, AdapterInfo, AdapterState, is_over
from manylora.clock import Clock
from manylora.config.groups.server import ServerConfig
from manylora.errors import (
    AdapterError,
    AdapterNotFound,
    AdapterReferenceInvalid,
    InvalidParameter,
    ManyloraError,
    Unavailable,
)
from manylora.server.access.access import Access
from manylora.server.generation.models import ModelHandle
from manylora.server.generation.routing import ModelRouter
from manylora.server.http.context import HttpContext
from manylora.server.http.operators import require_operator
from manylora.server.http.routing import Guards, Parameter, Routes
from manylora.server.names.adapter_fields import AdapterFields
from manylora.server.names.adapter_resolver import name_in_path
from manylora.server.routes.adapter_listing import Catalogue
from manylora.server.routes.own_adapters import LOOKS, info_of, state_of, unasked
from manylora.server.schemas.adapters import AdapterActionBody, AdapterPage
from manylora.server.schemas.body import Bounds, read_body
from manylora.system.printable import printable, quoted
from manylora.tenancy import AdapterAct

DEFAULT_PAGE, MAX_PAGE = 100, 1_000
FIRST_LOOK_S, LONGEST_LOOK_S = 0.01, 0.2
DONE, BEGUN = 200, 202


_NAME = Parameter("adapter_id", "path", "The adapter's name")
_PLACE = (
    Parameter("source", "query", "The source of the adapter"),
    Parameter("tenant", "query", "The tenant whose requests give the name its meaning; default: the key's"),
    Parameter("base", "query", "The base model of the adapter; default: the one that it belongs to"),
)
_WAIT = Parameter("wait", "query", "Seconds to wait for the end of the action; default 0")


def adapter_router(routes: "AdapterRoutes", guards: Guards, clock: Clock) -> tuple[APIRouter, ...]:
    """Return the routers of the operators' routes: the reading ones, and the changing ones."""
    looking = Routes(APIRouter(dependencies=guards.keyed), clock)
    looking.add(
        "GET /v1/adapters",
        routes.list_page,
        "The adapters the engine knows",
        replies={200: AdapterPage},
        parameters=[
            Parameter("prefix", "query", "The beginning of names"),
            Parameter("state", "query", "The state of adapters"),
            *_PLACE,
            Parameter("limit", "query", "Adapters of the page, at most"),
            Parameter("after", "query", "The `after` of the page before"),
        ],
    )
    one = "/v1/adapters/{adapter_id:path}"
    looking.add(
        f"GET {one}", routes.show, "The state of one adapter", replies={DONE: AdapterInfo}, parameters=[_NAME, *_PLACE]
    )
    changing = Routes(APIRouter(dependencies=guards.with_body), clock)
    replies: dict[int, object] = {DONE: AdapterInfo, BEGUN: AdapterInfo}
    parameters = [_NAME, *_PLACE, _WAIT]
    changing.add(
        f"POST {one}",
        routes.act,
        "Preload, pin, unpin, evict or verify",
        body=AdapterActionBody,
        replies=replies,
        parameters=parameters,
    )
    changing.add(f"DELETE {one}", routes.delete, "Delete an adapter", replies=replies, parameters=parameters)
    return looking.router, changing.router


class AdapterRoutes:
    """The handlers of the operators' routes.

    An action begins at once; the reply has the adapter's state and 200 for a finished action, 202 for one that goes on.
    """

    def __init__(
        self,
        models: ModelRouter,
        catalogue: Catalogue,
        settings: ServerConfig,
        *,
        longest_wait_s: float,
        access: Access,
    ) -> None:
        """`longest_wait_s` is the bound to which a longer `wait` of a query is cut."""
        self._models = models
        self._resolver = models.resolver
        self._settings = settings
        self._catalogue = catalogue
        self._longest_wait_s = longest_wait_s
        self._access = access

    async def list_page(self, context: HttpContext) -> None:
        """Reply with one page in the order of ids. An id with two credentials of callers occurs twice.

        The list includes local adapters without any request yet and, with `tenant`, all uploads of that tenant. The
        engine reads the state of the page's adapters alone.
        """
        self._admit(context)
        query = context.query
        limit = page_limit(query.get("limit"), default=DEFAULT_PAGE, most=MAX_PAGE)
        state = _state(query.get("state"))
        tenant = await self._named_tenant(context)
        prefix, source, after = query.get("prefix", ""), _source(query.get("source")), _cursor(query.get("after"))
        found = [
            info
            for info in sorted(await self._known(tenant), key=_place)
            if info.id.startswith(prefix)
            and (state is None or info.state is state)
            and (source is None or info.source == source)
            and (tenant is None or info.tenant == tenant)
            and (after is None or _place(info) > after)
        ]
        page = _page(found, limit)
        has_more = len(page) < len(found)
        last = _cursor_at(page[-1]) if has_more else None
        data = [info for info in await self._looked_at(page) if state is None or info.state is state]
        await context.reply({"object": "list", "data": data, "has_more": has_more, "after": last})

    async def show(self, context: HttpContext) -> None:
        self._admit(context)
        ref = await self._ref(context)
        await context.reply(await info_of(await self._shown_base(context, ref), ref))

    async def act(self, context: HttpContext) -> None:
        self._admit(context)
        body = read_body(context.arrival.body, AdapterActionBody, Bounds(settings=self._settings))
        await self._do(context, body.action, await self._ref(context, token=body.api_token or ""))

    async def delete(self, context: HttpContext) -> None:
        self._admit(context)
        await self._do(context, AdapterAction.DELETE, await self._ref(context))

    async def _do(self, context: HttpContext, action: AdapterAction, ref: AdapterRef) -> None:
        wait_s = min(_wait_s(context.query.get("wait")), self._longest_wait_s)
        context.arrival.noted |= {"action": action.value, "adapter": ref.full_id}
        is_delete = action is AdapterAction.DELETE
        bases = self._models.handles if is_delete else (await self._base(context, ref),)
        infos, failure = await _managed(action, ref, bases)
        if infos and is_delete:
            self._catalogue.note_deleted(ref)
            self._models.forget(ref)
        if infos:
            await self._note(context, action, ref)
        if failure is not None:
            raise failure
        bases = tuple(base for base in bases if base.name in infos)
        silent = sorted(name for info in infos.values() for name in info.silent)  # of this act, whatever comes after
        end_s, look_s = context.clock.monotonic_s() + wait_s, FIRST_LOOK_S
        while (going_on := [base for base in bases if not is_over(action, infos[base.name])]) and (
            left_s := end_s - context.clock.monotonic_s()
        ) > 0:
            await asyncio.sleep(min(look_s, left_s))
            look_s = min(LONGEST_LOOK_S, 2 * look_s)
            for base in going_on:
                infos[base.name] = await self._looked_after(base, ref, is_delete=is_delete)
        info = infos[going_on[0].name if going_on else bases[0].name]
        is_open = going_on or (silent and action in LASTING_ACTIONS)
        await context.reply(replace(info, silent=tuple(silent)), status=BEGUN if is_open else DONE)

    async def _looked_after(self, base: ModelHandle, ref: AdapterRef, *, is_delete: bool) -> AdapterInfo:
        """Return the state of an adapter after an act. A deleted one is unknown in the end."""
        try:
            return await info_of(base, ref)
        except AdapterNotFound:
            if not is_delete:
                raise
            return replace(unasked(ref), is_deleted=True, base=base.name)

    async def _base(self, context: HttpContext, ref: AdapterRef) -> ModelHandle:
        """Return the base of an adapter: that of the query or of the path, or the adapter's own."""
        named = context.query.get("base", context.arrival.deployment)
        return await self._models.base_of(ref, context.arrival.caller, named)

    async def _shown_base(self, context: HttpContext, ref: AdapterRef) -> ModelHandle:
        """Return the base of an adapter; for one that fits none, the first, whose engine has the reason."""
        try:
            return await self._base(context, ref)
        except AdapterError:
            return self._models.default

    async def _note(self, context: HttpContext, action: AdapterAction, ref: AdapterRef) -> None:
        caller = context.arrival.caller
        act = AdapterAct(
            at_ms=int(1000 * context.clock.wall_s()),
            actor=caller.tenant,
            key=caller.key,
            address=context.client_host,
            request_id=context.arrival.request_id,
            verb=action.value,
            adapter=f"{ref.source}://{ref.id}",
            owner=ref.tenant or None,
        )
        await self._access.note_act(act)

    async def _known(self, tenant: str | None) -> list[AdapterInfo]:
        """Return the engines' adapters, and in addition all local ones or all uploads of the tenant in the query.

        The list leaves out the states in an engine that is down. Raises `Unavailable` if every engine is.
        """
        known = await _infos(self._models.handles)
        there = {(info.source, info.tenant, info.id) for info in known}
        if tenant is None:
            refs = [AdapterRef(SourceName.LOCAL, name) for name in await self._resolver.local_names()]
        else:
            listed = await self._resolver.listed(tenant)
            refs = list(dict.fromkeys(ref for _, ref in listed if ref.tenant == tenant))
        return known + [unasked(ref) for ref in refs if (ref.source, ref.tenant, ref.id) not in there]

    async def _looked_at(self, page: Sequence[AdapterInfo]) -> list[AdapterInfo]:
        """Return the page with the engine's state of adapters that the engine did not know; leave out deleted ones."""
        looked: list[AdapterInfo | None] = []
        for start in range(0, len(page), LOOKS):
            some = page[start : start + LOOKS]
            looked += await asyncio.gather(*(self._look_at(info) for info in some))
        return [info for info in looked if info is not None]

    async def _look_at(self, info: AdapterInfo) -> AdapterInfo | None:
        ref = AdapterRef(SourceName(info.source), info.id, tenant=info.tenant)
        return info if info != unasked(ref) else await state_of(self._models, ref)

    def _admit(self, context: HttpContext) -> None:
        require_operator(context, is_open=self._settings.admin_open)

    async def _named_tenant(self, context: HttpContext) -> str | None:
        """Return the tenant in an operator's query. Raises `InvalidParameter` for an unknown tenant."""
        tenant = context.query.get("tenant")
        if tenant is not None and not await self._resolver.has_tenant(tenant):
            raise InvalidParameter(f"no tenant `{printable(tenant[:80])}`", parameter="tenant")
        return tenant

    async def _ref(self, context: HttpContext, *, token: str = "") -> AdapterRef:
        """Return the adapter of the name in the path, for the tenant in the query or else the key's.

        A version that requests do not find (an archived one, or a suspended tenant's) still belongs to its tenant.
        """
        adapter_id, tenant = name_in_path(context.path_parameters["adapter_id"]), await self._named_tenant(context)
        fields = AdapterFields(source=context.query.get("source"), token=token)
        try:
            ref = await self._resolver.adapter(adapter_id, fields, tenant=tenant or context.arrival.tenant)
        except AdapterNotFound:
            if tenant is None or fields.source not in (None, SourceName.PBASE):
                raise
            ref = AdapterRef(SourceName.PBASE, adapter_id.rstrip("/"), tenant=tenant)
            if not is_registry_id(ref.id):
                raise
        if ref is None:
            raise AdapterReferenceInvalid(f"`{adapter_id}` is the base model, not an adapter", parameter="adapter_id")
        return ref


async def _managed(
    action: AdapterAction, ref: AdapterRef, bases: Sequence[ModelHandle]
) -> tuple[dict[str, AdapterInfo], ManyloraError | None]:
    """Begin an action in the engine of each base; return the states by the base's name, and the failure to raise.

    A failure in one engine keeps the action from no other. An engine without the adapter fails the action only if no
    engine has it.
    """
    infos: dict[str, AdapterInfo] = {}
    missing: AdapterNotFound | None = None
    failure: ManyloraError | None = None
    for base in bases:
        try:
            infos[base.name] = replace(await base.engine.manage(action, ref), base=base.name)
        except AdapterNotFound as error:
            missing = missing or error
        except ManyloraError as error:
            failure = failure or error
    return infos, failure or (None if infos else missing)


async def _infos(bases: Sequence[ModelHandle]) -> list[AdapterInfo]:
    """Return the adapters of all engines that are up. Raises `Unavailable` if none is."""
    replies = await asyncio.gather(*(base.engine.infos() for base in bases), return_exceptions=True)
    failures = [reply for reply in replies if isinstance(reply, BaseException)]
    for failure in failures:
        if len(failures) == len(bases) or not isinstance(failure, Unavailable):
            raise failure
    return [
        replace(info, base=base.name)
        for base, infos in zip(bases, replies, strict=True)
        if not isinstance(infos, BaseException)
        for info in infos
    ]


def _place(info: AdapterInfo) -> tuple[str, str, str]:
    return info.id, info.source, info.tenant


def _cursor_at(info: AdapterInfo) -> str:
    return f"{info.source}:{info.id}" + (f":{info.tenant}" if info.tenant else "")


def _cursor(text: str | None) -> tuple[str, str, str] | None:
    """Parse the `after` of the page before: `source:id` or `source:id:tenant`. The adapter may be gone by now."""
    if text is None:
        return None
    source, mark, rest = text.partition(":")
    if not mark:
        raise InvalidParameter("`after` must be the `after` of the page before, `source:id`", parameter="after")
    adapter_id, _, tenant = rest.partition(":")
    return adapter_id, source, tenant


def _page(found: Sequence[AdapterInfo], limit: int) -> Sequence[AdapterInfo]:
    """Return the first adapters. A page does not split adapters of one cursor, since the next one begins behind it."""
    end = min(limit, len(found))
    while 0 < end < len(found) and _place(found[end]) == _place(found[end - 1]):
        end += 1
    return found[:end]


def page_limit(text: str | None, *, default: int, most: int) -> int:
    """Return the number of entries of a page from a query's text. Raises `InvalidParameter`."""
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise InvalidParameter(f"`limit` must be an integer from 1 to {most}. Given: {quoted(text)}", parameter="limit")
    return int(text)


def _state(text: str | None) -> AdapterState | None:
    if text is None:
        return None
    try:
        return AdapterState(text)
    except ValueError:
        states = ", ".join(AdapterState)
        raise InvalidParameter(f"`state` must be one of {states}. Given: {quoted(text)}", parameter="state") from None


def _source(text: str | None) -> str | None:
    if text is None or text in tuple(SourceName):
        return text
    sources = ", ".join(SourceName)
    raise InvalidParameter(f"`source` must be one of {sources}. Given: {quoted(text)}", parameter="source")


def _wait_s(text: str | None) -> float:
    try:
        wait_s = float(text or 0)
    except ValueError:
        wait_s = math.nan
    if not (math.isfinite(wait_s) and wait_s >= 0):
        raise InvalidParameter(f"`wait` must be seconds, at least 0. Given: {quoted(str(text))}", parameter="wait")
    return wait_s
