"""Scopes that a route needs of a key: the usual sets, the check, and the sentence in the documents.

`paths.py` names the scopes of each route.
"""

from manylora.errors import InsufficientPermissions
from manylora.tenancy import Scope

INFER, READ, UPLOAD, MANAGE, ADMIN = Scope.INFER, Scope.READ, Scope.UPLOAD, Scope.MANAGE, Scope.ADMIN
Scopes = tuple[Scope, ...]
KEYLESS: Scopes = ()
ANY: Scopes = (INFER, READ, UPLOAD, MANAGE, ADMIN)
LOOKING: Scopes = (INFER, READ)
LISTING: Scopes = (READ, UPLOAD)


def told_of(scopes: Scopes) -> str:
    """Return a sentence about the scopes that a route needs of a key."""
    if not scopes:
        return "Needs no key."
    if set(scopes) == set(ANY):
        return "Needs a key of any scope."
    return f"Needs a key with the scope {' or '.join(f'`{scope}`' for scope in scopes)}."


def require_any(held: Scopes, wanted: Scopes) -> None:
    """Raise `InsufficientPermissions`, naming `wanted`, if a key holds none of the wanted scopes."""
    if wanted and not set(held) & set(wanted):
        named = " or ".join(f"`{scope}`" for scope in wanted)
        raise InsufficientPermissions(f"this needs a key with the scope {named}")
