"""The route by which a tenant sees the states of its own adapters: GET /v1/account/adapters."""

import asyncio
from collections import Counter
from dataclasses import replace

from fastapi import APIRouter

from manylora.adapter_ref import AdapterRef, SourceName, is_registry_id
from manylora.adapter_state import AdapterInfo, AdapterState
from manylora.clock import Clock
from manylora.errors import AdapterError, AdapterNotFound, InvalidParameter, Unavailable
from manylora.server.generation.models import ModelHandle
from manylora.server.generation.routing import ModelRouter
from manylora.server.http.context import HttpContext
from manylora.server.http.routing import Guards, Parameter, Routes
from manylora.server.schemas.adapters import OwnAdapter, OwnAdapters
from manylora.system.printable import quoted

MOST_NAMES = 100
LOOKS = 64
"""Questions to the engines at one time; an engine answers all that it has received between two steps."""


def own_adapter_router(models: ModelRouter, guards: Guards, clock: Clock) -> APIRouter:
    """Return the router of the tenants' route."""

    async def show(context: HttpContext) -> None:
        await context.reply({"object": "list", "data": await _own(models, context)})

    routes = Routes(APIRouter(dependencies=guards.keyed), clock)
    routes.add(
        "GET /v1/account/adapters",
        show,
        "The states of your adapters in the engines",
        replies={200: OwnAdapters},
        parameters=[Parameter("names", "query", f"Up to {MOST_NAMES} of your versions by commas, such as `triage/3`")],
    )
    return routes.router


async def state_of(models: ModelRouter, ref: AdapterRef) -> AdapterInfo | None:
    """Return the state of an adapter, without its report; None: it is deleted, or there is none.

    An adapter that fits no base has failed, with the reason; one whose engine is down is absent.
    """
    try:
        base = models.bases.known(ref) or await models.bases.declared(ref) or models.default
        return replace(await info_of(base, ref), report=None)
    except AdapterNotFound:
        return None
    except Unavailable:  # the engine of its base starts again
        return unasked(ref)
    except AdapterError as error:
        return replace(unasked(ref), state=AdapterState.FAILED, error=error.message)


async def info_of(base: ModelHandle, ref: AdapterRef) -> AdapterInfo:
    """Return the state of an adapter in the engine of a base. Raises as `EngineClient.info`."""
    return replace(await base.engine.info(ref), base=base.name)


def unasked(ref: AdapterRef) -> AdapterInfo:
    """Return the facts of an adapter before the engine has looked at it."""
    return AdapterInfo(id=ref.id, source=ref.source.value, state=AdapterState.ABSENT, tenant=ref.tenant)


async def _own(models: ModelRouter, context: HttpContext) -> list[OwnAdapter]:
    """Return the states of the named versions; without names, of the tenant's first `MOST_NAMES`."""
    tenant = context.arrival.tenant
    refs = _named(context.query.get("names"), tenant)
    if refs is None:
        listed = [ref for _, ref in await models.resolver.listed(tenant) if ref.tenant == tenant]
        refs = list(dict.fromkeys(listed))[:MOST_NAMES]
    found: list[OwnAdapter] = []
    for start in range(0, len(refs), LOOKS):
        states = await asyncio.gather(*(state_of(models, ref) for ref in refs[start : start + LOOKS]))
        found += [_shown(info) for info in states if info is not None]
    return found


def _named(text: str | None, tenant: str) -> list[AdapterRef] | None:
    """Return the versions that a query names; None: it names none. Raises `InvalidParameter`."""
    if text is None:
        return None
    names = [name for name in text.split(",") if name]
    if len(names) > MOST_NAMES:
        raise InvalidParameter(f"`names` has at most {MOST_NAMES} names. Given: {len(names)}", parameter="names")
    if strange := [name for name in names if not is_registry_id(name)]:
        raise InvalidParameter(
            f"`names` has names of versions, such as `triage/3`. Given: {quoted(strange[0][:80])}", parameter="names"
        )
    return [AdapterRef(SourceName.PBASE, name, tenant=tenant) for name in dict.fromkeys(names)]


def _shown(info: AdapterInfo) -> OwnAdapter:
    replicas = Counter(info.replicas.values() or [info.state])
    return OwnAdapter(
        name=info.id,
        base=info.base,
        state=info.state,
        replicas={state.value: number for state, number in sorted(replicas.items())},
        num_bytes=info.num_bytes,
        hits=info.hits,
        last_use_s=info.last_use_s,
        error=info.error,
    )
