"""Lines of keys: which key made which, which keys a revocation ends, and which keys a key may change.

A line is a key with its predecessors and successors by rotation: keys of one holder. Keys made by a line are below it.
"""

from collections.abc import Collection, Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.storage.revisions import next_revision
from manylora.control.tenants.keys import Key, end_keys, get_key, list_keys, live_key, set_limits, within
from manylora.control.tenants.tenants import OPERATOR
from manylora.errors import InsufficientPermissions, InvalidParameter
from manylora.ids import KeyId
from manylora.tenancy import Limits, Scope


def line_and_below(known: Sequence[Key], origin: str) -> set[KeyId]:
    """Return the ids of a line and of all keys below it.

    A key that one of them rotated is below as well, since they received its secret; its later successors by another
    key are not.
    """
    found = {key.facts.id for key in known if key.facts.origin == origin}
    while more := {key.facts.id for key in known if {key.maker, key.issuer} & found} - found:
        found |= more
    return found


def lines_above(known: Sequence[Key], key: Key) -> set[KeyId]:
    """Return the origins of the lines above a key: those of its maker, of the maker's maker, and so on."""
    by_id = {each.facts.id: each for each in known}
    found: set[KeyId] = set()
    above = by_id.get(key.maker) if key.maker is not None else None
    while above is not None and above.facts.origin not in found:
        found.add(above.facts.origin)
        above = by_id.get(above.maker) if above.maker is not None else None
    return found


async def revoke(
    connection: AsyncConnection, key_id: str, *, now_ms: int, tenant: str | None = None, only: bool, force: bool
) -> list[KeyId]:
    """Revoke a key's line and all keys below it; return the ids of those that were valid.

    Args:    only   revoke this key alone, which was rotated; its successor stays valid
             force  also if the tenant keeps no key with `manage`, or the operator none with `admin`
    Raises:  `ResourceNotFound`, `InvalidParameter`
    """
    await next_revision(connection)  # from here on no other transaction makes or ends a key
    key = await get_key(connection, key_id, tenant)
    known = await list_keys(connection, key.facts.tenant)
    if only and key.successor is None:
        raise InvalidParameter(f"key `{key_id}` has not been rotated: revoking it ends what was made with it, too")
    gone = {key.facts.id} if only else line_and_below(known, key.facts.origin)
    ended = [each.facts.id for each in known if each.facts.id in gone and each.is_live(now_ms)]
    if not force:
        _require_keeper(known, ended, key.facts.tenant, now_ms)
    await end_keys(connection, ended, now_ms=now_ms)
    return ended


async def end_made(connection: AsyncConnection, key: Key, *, now_ms: int) -> list[KeyId]:
    """Revoke the keys below a key's line, but not the line; return the ids of those that were valid."""
    known = await list_keys(connection, key.facts.tenant)
    gone = line_and_below(known, key.facts.origin)
    ended = [
        each.facts.id
        for each in known
        if each.facts.id in gone and each.facts.origin != key.facts.origin and each.is_live(now_ms)
    ]
    await end_keys(connection, ended, now_ms=now_ms)
    return ended


async def require_power(connection: AsyncConnection, caller: KeyId, key_id: str, *, now_ms: int) -> tuple[Key, Key]:
    """Require that a key may change another of its tenant: one with no further scopes, not above it. Return both.

    Limits and expiry do not count: a limited key may end an unlimited one of the same scopes.
    Raises `InvalidApiKey` if the caller's key has ended meanwhile, `ResourceNotFound`, `InsufficientPermissions`.
    """
    own = await live_key(connection, caller, now_ms)
    other = await get_key(connection, key_id, own.facts.tenant)
    if missing := sorted(set(other.facts.held) - set(own.facts.held)):
        raise InsufficientPermissions(f"this needs a key with the scope `{missing[0]}`")
    if other.facts.origin in lines_above(await list_keys(connection, own.facts.tenant), own):
        raise InsufficientPermissions(f"the key you call with was made with key `{key_id}`, or below it")
    return own, other


def require_no_gain(own: Key, other: Key) -> None:
    """Require that a rotation gives the caller no more than its own key: the caller receives the new secret.

    A session stands for a person with all rights of the tenant, and its end bounds no key.
    Raises `InsufficientPermissions`.
    """
    if own.facts.id == other.facts.id or own.is_session:
        return
    if own.facts.limits != Limits() and own.facts.origin != other.facts.origin:
        raise InsufficientPermissions("a key with limits of its own takes over no other's: it would have both")
    mine, theirs = own.facts, other.facts
    if within(mine, theirs.limits, theirs.expires_ms) != (theirs.limits, theirs.expires_ms):
        raise InsufficientPermissions(f"key `{theirs.id}` has wider limits or a later end than the key you call with")


async def limit(connection: AsyncConnection, own: Key, other: Key, limits: Limits, *, now_ms: int, force: bool) -> Key:
    """Replace a key's limits by order of another key of its tenant, or of itself.

    A key may lift limits that it set itself.
    Raises `InsufficientPermissions` for a caller that another key has limited, `InvalidParameter` where the tenant
    would keep no managing key without limits of another key.
    """
    is_own = own.facts.origin == other.facts.origin
    if own.facts.limits != Limits() and not (is_own and own.is_free()):
        raise InsufficientPermissions("a key with limits of its own changes none, unless it set them itself")
    if not is_own and not force and limits != Limits():
        known = await list_keys(connection, own.facts.tenant)
        limited = [each.facts.id for each in known if each.facts.origin == other.facts.origin]
        _require_keeper(known, limited, own.facts.tenant, now_ms)
    return await set_limits(connection, other.facts.id, limits, by=own.facts.origin)


def _require_keeper(known: Sequence[Key], gone: Collection[str], tenant: str, now_ms: int) -> None:
    """Raise `InvalidParameter` if the tenant has a key that manages the others, and would have none afterwards."""
    scope = Scope.ADMIN if tenant == OPERATOR else Scope.MANAGE
    keepers = [
        each.facts.id
        for each in known
        if scope in each.facts.held and each.is_live(now_ms) and each.facts.expires_ms is None and each.is_free()
    ]
    if keepers and set(keepers) <= set(gone):
        undo = "`manylora control admin-key` on its machine" if tenant == OPERATOR else "the operator"
        raise InvalidParameter(
            f"tenant `{tenant}` would have no key left with the scope `{scope}` that has no end and no limits of "
            f"another's; only {undo} makes one then. Make another one first, or say `force=true`",
            parameter="force",
        )
