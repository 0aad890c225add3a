"""Operations on keys that the operator's routes and a tenant's own routes share, each with its audit row."""

from typing import Annotated

from fastapi import Query
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.control import Control
from manylora.control.http.schemas import KeyBody, NewKey, RevokedBody, Rotation, scopes_of
from manylora.control.tenants.audit import Actor, record
from manylora.control.tenants.key_lines import end_made, revoke
from manylora.control.tenants.keys import Key, get_key, issue_key, key_facts, live_key, rotate_key, within
from manylora.control.tenants.limits import require_known_bases
from manylora.errors import InsufficientPermissions, InvalidParameter
from manylora.ids import KeyId
from manylora.tenancy import DEFAULT_TENANT, Limits

MAX_PAGE = 1000
KeysAfter = Annotated[str, Query(max_length=64, description="The `next` of the page before.")]
KeysPageSize = Annotated[int, Query(ge=1, le=MAX_PAGE)]
Only = Annotated[bool, Query(description="End this key alone, which was rotated; its successor stays valid.")]
Force = Annotated[bool, Query(description="Even if no key is left that manages the others, or steers the server.")]


async def make_key(control: Control, actor: Actor, tenant: str, body: NewKey, maker: KeyId | None = None) -> KeyBody:
    """Issue the key that a body describes. A key `maker` passes on at most its own limits and lifetime.

    maker  None: the operator, or a caller without a key
    Raises `InvalidParameter`, `ResourceNotFound`, `InsufficientPermissions`.
    """
    if tenant == DEFAULT_TENANT and control.is_key_needed:
        raise InvalidParameter(f"`{tenant}` is the tenant of open servers; where keys are needed it has no key")
    now_ms = control.now_ms()
    limits = body.limits.limits()
    expires_ms = None if body.expires_in_s is None else now_ms + max(1, int(1000 * body.expires_in_s))
    async with control.database.write() as connection:
        await require_known_bases(control, connection, limits)
        facts = None
        if maker is not None:
            own = await live_key(connection, maker, now_ms)
            facts = own.facts
            if facts.limits != Limits():
                raise InsufficientPermissions("a key with limits of its own makes no others: each would have them anew")
            if not own.is_session:
                limits, expires_ms = within(facts, limits, expires_ms)
        made = await issue_key(
            connection,
            control.pepper,
            tenant,
            now_ms=now_ms,
            scopes=scopes_of(body.scopes),
            name=body.name,
            limits=limits,
            expires_ms=expires_ms,
            maker=facts,
        )
        key = made[0]
        await record(connection, actor, "create", "key", key.facts.id, tenant=key.facts.tenant, after=key_facts(key))
    return KeyBody.of(*made)


async def rotate_and_record(
    control: Control,
    connection: AsyncConnection,
    actor: Actor,
    key_id: str,
    body: Rotation,
    issuer: KeyId | None = None,
) -> KeyBody:
    """Rotate a key. issuer: the key that does it; None: the operator."""
    made, text = await rotate_key(
        connection, control.pepper, key_id, now_ms=actor.at_ms, grace_s=body.grace_s, issuer=issuer
    )
    ended = await end_made(connection, made, now_ms=actor.at_ms) if body.end_made else []
    after = {"successor": made.facts.id, "grace_s": body.grace_s, "ended": ended}
    await record(connection, actor, "rotate", "key", key_id, tenant=made.facts.tenant, after=after)
    return KeyBody.of(made, text)


async def revoke_and_record(
    connection: AsyncConnection, actor: Actor, key_id: str, *, only: bool, force: bool
) -> RevokedBody:
    """Revoke a key and the keys made with it. Raise as `key_lines.revoke`."""
    ended = await revoke(connection, key_id, now_ms=actor.at_ms, only=only, force=force)
    key = await get_key(connection, key_id)
    if ended:  # else it had ended before
        before, after = key_facts(key), {"ended": ended}
        await record(connection, actor, "revoke", "key", key_id, tenant=key.facts.tenant, before=before, after=after)
    return RevokedBody(**KeyBody.of(key).model_dump(), ended=list(ended))


async def record_limits(connection: AsyncConnection, actor: Actor, old: Key, new: Key) -> None:
    """Record that a key's limits were replaced."""
    facts, limits = old.facts, new.facts.limits
    await record(connection, actor, "limit", "key", facts.id, tenant=facts.tenant, before=facts.limits, after=limits)
