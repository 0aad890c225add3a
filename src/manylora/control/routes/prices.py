"""Routes of prices: the public offer, `/v1/prices`, and the operator's price versions, `/admin/prices`."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query

from manylora.control.billing.prices import in_force, price_versions, require_known_base, set_price
from manylora.control.http.billing_schemas import NewPrice, Offer, OfferedPrice, PriceBody, PriceList
from manylora.control.routes.dependencies import ActorDep, ControlDep, requires
from manylora.control.tenants.audit import record
from manylora.tenancy import Scope, price_at

Base = Annotated[str, Query(max_length=200)]

router = APIRouter()


@router.get("/v1/prices", tags=["account"])
async def offer(control: ControlDep, base: Base = "") -> Offer:
    """List the prices of each served base model, now and by every price that is announced. Needs no key."""
    served, now_ms = await asyncio.to_thread(control.served_bases), control.now_ms()
    free = frozenset(control.config.control.free_bases)
    async with control.database.read() as connection:
        versions = await price_versions(connection)
    found = []
    for name in sorted(served | free):
        if base in ("", name):
            priced = [] if name in free else [price for price in versions if price.base == name]
            found += OfferedPrice.all_of(name, priced, price_at(priced, name, now_ms))
    return Offer(prices=found, deployment_hourly_nanousd=control.config.placement.hourly_nanousd)


@router.get("/admin/prices", tags=["admin"], dependencies=requires(Scope.ADMIN))
async def list_all(control: ControlDep, base: Base = "") -> PriceList:
    """List every version of every base's price, or of one base's."""
    async with control.database.read() as connection:
        found = await price_versions(connection, base or None)
    return PriceList.of(found, in_force(found, control.now_ms()))


@router.post("/admin/prices", status_code=201, tags=["admin"], dependencies=requires(Scope.ADMIN))
async def add(control: ControlDep, actor: ActorDep, body: NewPrice) -> PriceBody:
    """Add a version of a base's price. Past usage is never repriced."""
    known = {*await asyncio.to_thread(control.served_bases), *control.config.control.free_bases}
    async with control.database.write() as connection:
        now_ms = control.now_ms()
        if not body.force:
            await require_known_base(connection, body.base, known)
        made = await set_price(
            connection,
            body.base,
            input_nanousd=body.input_nanousd,
            output_nanousd=body.output_nanousd,
            cached_input_nanousd=body.cached_input_nanousd,
            effective_ms=now_ms + int(1000 * body.effective_in_s),
            now_ms=now_ms,
        )
        versions = await price_versions(connection, body.base)
        old = next((price for price in versions if price.version == made.version - 1), None)
        await record(connection, actor, "set", "price", body.base, tenant=None, before=old, after=made)
    return PriceBody.of(made, price_at(versions, body.base, now_ms))
