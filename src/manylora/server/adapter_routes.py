"""The operators' routes: GET /v1/adapters, and GET, POST and DELETE of one adapter below it."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterAction, AdapterInfo, AdapterState, is_over
from manylora.errors import AdapterError, AdapterNotFound, AdapterReferenceInvalid, InvalidParameter
from manylora.server.access import Access
from manylora.server.adapter_fields import AdapterFields
from manylora.server.admin import require_operator
from manylora.server.catalogue import Catalogue
from manylora.server.exchange import Exchange
from manylora.server.fields import Fields
from manylora.server.gate import Gate
from manylora.server.known_fields import check_names
from manylora.server.link import EngineLink
from manylora.server.request_fields import ADAPTER_ACTION
from manylora.tenancy import AdapterAct

POSTED = tuple(action for action in AdapterAction if action is not AdapterAction.DELETE)
DEFAULT_PAGE, MAX_PAGE = 100, 1_000
FIRST_LOOK_S, LONGEST_LOOK_S = 0.01, 0.2
DONE, BEGUN = 200, 202
LOOKS = 64  # questions at a time: the engine answers all that have come between two steps
UNASKED = AdapterInfo(id="", source=SourceName.LOCAL.value, state=AdapterState.ABSENT)


class AdapterRoutes:
    """Each begins what is asked and tells how the adapter stands: 200 if it is done, 202 if it goes on."""

    def __init__(
        self, gate: Gate, link: EngineLink, catalogue: Catalogue, *, longest_wait_s: float, access: Access
    ) -> None:
        self._gate = gate
        self._link = link
        self._catalogue = catalogue
        self._longest_wait_s = longest_wait_s
        self._access = access

    async def list_page(self, exchange: Exchange) -> None:
        """One page, in the order of ids. An id that two callers' credentials tell apart stands there twice.

        Local adapters that nobody has asked for are among them; the engine looks at those of the page alone.
        """
        self._admit(exchange)
        query = exchange.query
        limit, state = _limit(query.get("limit")), _state(query.get("state"))
        prefix, source, after = query.get("prefix", ""), query.get("source"), _cursor(query.get("after"))
        found = [
            info
            for info in sorted(await self._known(), key=_place)
            if info.id.startswith(prefix)
            and (state is None or info.state is state)
            and (source is None or info.source == source)
            and (after is None or _place(info) > after)
        ]
        page = _page(found, limit)
        has_more = len(page) < len(found)
        last = f"{page[-1].source}:{page[-1].id}" if has_more else None
        data = [info for info in await self._looked_at(page) if state is None or info.state is state]
        await exchange.reply({"object": "list", "data": data, "has_more": has_more, "after": last})

    async def show(self, exchange: Exchange) -> None:
        self._admit(exchange)
        await exchange.reply(await self._link.info(self._ref(exchange)))

    async def act(self, exchange: Exchange) -> None:
        self._admit(exchange)
        body = exchange.json()
        check_names(body, ADAPTER_ACTION)
        name = body.string("action")
        if name not in POSTED:
            given = "nothing" if name is None else repr(name[:80])
            raise InvalidParameter(f"`action` must be one of {', '.join(POSTED)}. Given: {given}", parameter="action")
        await self._do(exchange, AdapterAction(name), self._ref(exchange, body))

    async def delete(self, exchange: Exchange) -> None:
        self._admit(exchange)
        ref = self._ref(exchange)
        self._catalogue.note_deleted(ref)
        await self._do(exchange, AdapterAction.DELETE, ref)

    async def _do(self, exchange: Exchange, action: AdapterAction, ref: AdapterRef) -> None:
        wait_s = min(_wait_s(exchange.query.get("wait")), self._longest_wait_s)
        exchange.arrival.noted |= {"action": action.value, "adapter": ref.id}
        info = await self._link.manage(action, ref)
        await self._note(exchange, action, ref)
        end_s, look_s = exchange.clock.monotonic_s() + wait_s, FIRST_LOOK_S
        while not is_over(action, info) and (left_s := end_s - exchange.clock.monotonic_s()) > 0:
            await asyncio.sleep(min(look_s, left_s))
            look_s = min(LONGEST_LOOK_S, 2 * look_s)
            try:
                info = await self._link.info(ref)
            except AdapterNotFound:
                if action is not AdapterAction.DELETE:
                    raise
                info = AdapterInfo(id=ref.id, source=ref.source.value, state=AdapterState.ABSENT, is_deleted=True)
        await exchange.reply(info, status=DONE if is_over(action, info) else BEGUN)

    async def _note(self, exchange: Exchange, action: AdapterAction, ref: AdapterRef) -> None:
        caller = exchange.arrival.caller
        act = AdapterAct(
            at_ms=int(1000 * exchange.clock.wall_s()),
            actor=caller.tenant,
            key=caller.key,
            address=exchange.client_host,
            request_id=exchange.arrival.request_id,
            verb=action.value,
            adapter=f"{ref.source}://{ref.id}",
            owner=ref.tenant or None,
        )
        await self._access.note_act(act)

    async def _known(self) -> list[AdapterInfo]:
        """What the engine tells of, and local adapters besides."""
        told = list(await self._link.infos())
        there = {info.id for info in told if info.source == SourceName.LOCAL}
        unasked = [name for name in await self._gate.local_names() if name not in there]
        return told + [replace(UNASKED, id=name) for name in unasked]

    async def _looked_at(self, page: Sequence[AdapterInfo]) -> list[AdapterInfo]:
        """The page with what the engine finds of those that it had not been asked for; deleted ones are left out."""
        looked: list[AdapterInfo | None] = []
        for start in range(0, len(page), LOOKS):
            some = page[start : start + LOOKS]
            looked += await asyncio.gather(*(self._look_at(info) for info in some))
        return [info for info in looked if info is not None]

    async def _look_at(self, info: AdapterInfo) -> AdapterInfo | None:
        if info != replace(UNASKED, id=info.id):
            return info
        try:
            return replace(await self._link.info(AdapterRef(SourceName.LOCAL, info.id)), report=None)
        except AdapterNotFound:
            return None
        except AdapterError as error:
            return replace(info, state=AdapterState.FAILED, error=error.message)

    def _admit(self, exchange: Exchange) -> None:
        require_operator(exchange, is_open=self._gate.settings.admin_open)

    def _ref(self, exchange: Exchange, body: Fields | None = None) -> AdapterRef:
        """The adapter that the path names; its source is the query's, else the one a request's would be."""
        adapter_id = exchange.path_parameters["adapter_id"]
        token = (body.string("api_token") if body is not None else None) or ""
        ref = self._gate.adapter(
            adapter_id, AdapterFields(source=exchange.query.get("source"), token=token), tenant=exchange.arrival.tenant
        )
        if ref is None:
            raise AdapterReferenceInvalid(f"`{adapter_id}` is the base model, not an adapter", parameter="adapter_id")
        return ref


def _place(info: AdapterInfo) -> tuple[str, str]:
    return info.id, info.source


def _cursor(text: str | None) -> tuple[str, str] | None:
    """The `after` of a page before, `source:id`; the adapter itself may be gone by now."""
    if text is None:
        return None
    source, mark, adapter_id = text.partition(":")
    if not mark:
        raise InvalidParameter("`after` must be the `after` of the page before, `source:id`", parameter="after")
    return adapter_id, source


def _page(found: Sequence[AdapterInfo], limit: int) -> Sequence[AdapterInfo]:
    """The first ones; what stands at one place is not torn apart, since the next page begins behind it."""
    end = min(limit, len(found))
    while 0 < end < len(found) and _place(found[end]) == _place(found[end - 1]):
        end += 1
    return found[:end]


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_PAGE
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MAX_PAGE):
        raise InvalidParameter(
            f"`limit` must be an integer from 1 to {MAX_PAGE}. Given: {text[:80]!r}", parameter="limit"
        )
    return int(text)


def _state(text: str | None) -> AdapterState | None:
    if text is None:
        return None
    try:
        return AdapterState(text)
    except ValueError:
        states = ", ".join(AdapterState)
        raise InvalidParameter(f"`state` must be one of {states}. Given: {text[:80]!r}", parameter="state") from None


def _wait_s(text: str | None) -> float:
    try:
        wait_s = float(text or 0)
    except ValueError:
        wait_s = math.nan
    if not (math.isfinite(wait_s) and wait_s >= 0):
        raise InvalidParameter(f"`wait` must be seconds, at least 0. Given: {str(text)[:80]!r}", parameter="wait")
    return wait_s
