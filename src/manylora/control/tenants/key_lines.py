"""Who made which key, what a revocation ends with it, and what a key may do to others.

A line is a key with all that it was rotated from and into: one holder's. Keys made with any of a line are below it.
"""

from collections.abc import Collection, Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.tenants.keys import Key, end_keys, get_key, list_keys, live_key, set_limits, within
from manylora.control.tenants.tenants import OPERATOR
from manylora.errors import InsufficientPermissions, InvalidParameter
from manylora.ids import KeyId
from manylora.tenancy import Limits, Scope


def line_and_below(known: Sequence[Key], origin: str) -> set[KeyId]:
    """The ids of a line and of all that is below it.

    So is a key that one of those rotated, for its secret was shown there; what it was rotated into afterwards by
    another is not.
    """
    found = {key.facts.id for key in known if key.facts.origin == origin}
    while more := {key.facts.id for key in known if {key.maker, key.issuer} & found} - found:
        found |= more
    return found


def lines_above(known: Sequence[Key], key: Key) -> set[KeyId]:
    """The origins of the lines with whose keys a key, or its makers, were made."""
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
    """End a key's line and all below it; returns the ids of those that lived.

    Args:    only   end this key alone, which has been rotated; what took its place goes on
             force  although it leaves the tenant without a key that manages, or the operator without one that steers
    Raises:  `ResourceNotFound`, `InvalidParameter`
    """
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
    """End all that was made with a key's line, but not the line; returns the ids of those that lived."""
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
    """A key steers those of its tenant that may do no more than itself, and none above it. Returns both.

    Limits and ends do not count: a key of the same scopes may end one that has none.
    Raises `InvalidApiKey` if the caller's has ended meanwhile, `ResourceNotFound`, `InsufficientPermissions`.
    """
    own = await live_key(connection, caller, now_ms)
    other = await get_key(connection, key_id, own.facts.tenant)
    if missing := sorted(set(other.facts.held) - set(own.facts.held)):
        raise InsufficientPermissions(f"this needs a key with the scope `{missing[0]}`")
    if other.facts.origin in lines_above(await list_keys(connection, own.facts.tenant), own):
        raise InsufficientPermissions(f"the key you call with was made with key `{key_id}`, or below it")
    return own, other


def require_no_gain(own: Key, other: Key) -> None:
    """Rotating hands a secret out, so what it makes goes no further than the caller's own key, as a new key would not.

    Raises `InsufficientPermissions`.
    """
    if own.facts.id == other.facts.id:
        return
    if own.facts.limits != Limits() and own.facts.origin != other.facts.origin:
        raise InsufficientPermissions("a key with limits of its own takes over no other's: it would have both")
    mine, theirs = own.facts, other.facts
    if within(mine, theirs.limits, theirs.expires_ms) != (theirs.limits, theirs.expires_ms):
        raise InsufficientPermissions(f"key `{theirs.id}` has wider limits or a later end than the key you call with")


async def limit(connection: AsyncConnection, own: Key, other: Key, limits: Limits, *, now_ms: int, force: bool) -> Key:
    """Replace a key's limits with another of its tenant, or its own: those that it set itself it may lift again.

    Raises `InsufficientPermissions` for a key that another has limited, `InvalidParameter` where no key would be left
    that manages without limits of another's.
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
    """Raises `InvalidParameter` if there is a key that keeps the tenant's others now, and would be none any more."""
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
