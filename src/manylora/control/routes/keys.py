"""The operator's routes of all tenants' keys, `/admin/tenants/{tenant}/keys` and `/admin/keys…`."""

from fastapi import APIRouter

from manylora.control.http.schemas import KeyBody, KeyList, LimitsBody, NewKey, RevokedBody, Rotation
from manylora.control.routes.dependencies import ActorDep, ControlDep, requires
from manylora.control.routes.key_operations import (
    MAX_PAGE,
    Force,
    KeysAfter,
    KeysPageSize,
    Only,
    make_key,
    record_limits,
    revoke_and_record,
    rotate_and_record,
)
from manylora.control.storage.revisions import next_revision
from manylora.control.tenants.keys import get_key, keys_page, set_limits
from manylora.control.tenants.limits import require_known_bases
from manylora.control.tenants.tenants import OPERATOR, get_tenant
from manylora.tenancy import Scope

router = APIRouter(prefix="/admin", tags=["admin"], dependencies=requires(Scope.ADMIN))


@router.get("/tenants/{tenant}/keys")
async def list_all(control: ControlDep, tenant: str, after: KeysAfter = "", limit: KeysPageSize = MAX_PAGE) -> KeyList:
    """List a tenant's keys, the oldest first, without their secrets."""
    async with control.database.read() as connection:
        await get_tenant(connection, tenant)
        return KeyList.of(await keys_page(connection, tenant, limit=limit, after=after))


@router.post("/tenants/{tenant}/keys", status_code=201)
async def issue(control: ControlDep, actor: ActorDep, tenant: str, body: NewKey) -> KeyBody:
    """Make a key; no other reply ever shows its text again."""
    return await make_key(control, actor, tenant, body)


@router.post("/keys/{key}/rotate", status_code=201)
async def rotate(control: ControlDep, actor: ActorDep, key: str, body: Rotation) -> KeyBody:
    """Make a key like this one; this one ends at once, or after `grace_s` seconds."""
    async with control.database.write() as connection:
        return await rotate_and_record(control, connection, actor, key, body)


@router.put("/keys/{key}/limits")
async def put_limits(control: ControlDep, actor: ActorDep, key: str, body: LimitsBody) -> KeyBody:
    """Replace a key's limits, and those of the keys it is rotated into."""
    async with control.database.write() as connection:
        await next_revision(connection)  # no other transaction changes the key until this one ends
        old = await get_key(connection, key)
        await require_known_bases(control, connection, body.limits(), old.facts.limits)
        new = await set_limits(connection, key, body.limits())
        await record_limits(connection, actor, old, new)
    return KeyBody.of(new)


@router.delete("/keys/{key}")
async def revoke(
    control: ControlDep, actor: ActorDep, key: str, only: Only = False, force: Force = False
) -> RevokedBody:
    """End a key for ever, with all keys made with it."""
    async with control.database.write() as connection:
        is_customers = (await get_key(connection, key)).facts.tenant != OPERATOR  # the operator can issue another
        return await revoke_and_record(connection, actor, key, only=only, force=force or is_customers)
