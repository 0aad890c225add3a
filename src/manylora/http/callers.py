"""Callers of server and control plane: the tenant and key of a request, and the one rule that judges a key."""

import hmac
from dataclasses import dataclass

from manylora.errors import InsufficientPermissions, InvalidApiKey, TenantSuspended
from manylora.http.scopes import require_any
from manylora.ids import KeyId, TenantId
from manylora.tenancy import DEFAULT_TENANT, Limits, Scope, TenantState, hash_secret, split_key

BEARER = "bearer "
_NO_HASH = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The tenant that a request acts for, and the rights of its key. The control plane uses the first three fields.

    key           the id of the key; None where the server needs no key
    state         the state of the tenant
    weight        the tenant's share among backlogged tenants
    limits        (`tenant NAME` or `key ID`, its limits), without those that limit nothing
    origin        the key whose limits `key` shares
    has_budget    whether the key's spending in a month is limited
    source_token  the bearer, if it is a token for adapters of a hub
    is_batch      the request is a line of a batch: interactive requests go before it, and it has a price of its own
    is_shadow     the request repeats another with the shadow of an alias; it is a line of a batch in all but its price
    """

    tenant: TenantId
    key: KeyId | None = None
    scopes: tuple[Scope, ...] = ()
    state: TenantState = TenantState.ACTIVE
    weight: int = 1
    limits: tuple[tuple[str, Limits], ...] = ()
    origin: KeyId | None = None
    has_budget: bool = False
    source_token: str = ""
    is_batch: bool = False
    is_shadow: bool = False

    def require(self, scope: Scope) -> None:
        """Raise `InsufficientPermissions`, naming the scope, if the key lacks it."""
        require_any(self.scopes, (scope,))

    def require_owner(self) -> None:
        """Raise `InsufficientPermissions` for a caller that may not steer keys.

        On an open server every caller acts for the tenant `default`. Keys made there stay valid after authentication
        is switched on, and a web page in a local browser can call the server as well. So keys are steered with a key,
        or by a program on the server's own machine.
        """
        if self.key is None and Scope.ADMIN not in self.scopes:
            raise InsufficientPermissions(
                "keys of an open server are made, rotated and ended with a key, or from a program on its own machine"
            )


ANONYMOUS = Caller(tenant=DEFAULT_TENANT)
"""The caller of a route that needs no key, and of a request whose caller is not known yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """The facts of a key that decide whether it is valid. `secret_hash`: of `tenancy.hash_secret`."""

    tenant: TenantId
    secret_hash: str
    expires_ms: int | None
    is_revoked: bool = False


def bearer_of(authorization: str) -> str:
    """Return the text behind `Bearer ` of an `Authorization` header; empty if the header has another form."""
    is_bearer = authorization[: len(BEARER)].lower() == BEARER
    return authorization[len(BEARER) :].strip() if is_bearer else ""


def key_of(authorization: str) -> tuple[KeyId, str]:
    """Return the id and the secret of the key in a header. Raises `InvalidApiKey` if the header has none."""
    parts = split_key(bearer_of(authorization))
    if parts is None:
        raise InvalidApiKey("send a key: `Authorization: Bearer pb_…`")
    return parts


def judge(stored: StoredKey | None, secret: str, *, pepper: str, now_ms: float, is_key_needed: bool) -> StoredKey:
    """Return a stored key if it is valid and `secret` is its secret.

    Every refusal costs the same work and has the same text, so that it does not show which part of a key was wrong.
    Keys of the tenant `default` do not count where keys are needed: while the server was open, any caller could make
    them.

    Args:    stored  None: no key has that id
    Raises:  `InvalidApiKey`
    """
    given = hash_secret(pepper, secret)
    is_right = hmac.compare_digest(given, _NO_HASH if stored is None else stored.secret_hash)
    if stored is None or not is_right or stored.is_revoked or _is_past(stored.expires_ms, now_ms):
        raise InvalidApiKey("the key is not valid")
    if is_key_needed and stored.tenant == DEFAULT_TENANT:
        raise InvalidApiKey("the key is not valid")
    return stored


def require_active(tenant: str, state: TenantState) -> None:
    """Raise `TenantSuspended` unless a tenant's state is active."""
    if state is not TenantState.ACTIVE:
        raise TenantSuspended(f"tenant `{tenant}` is {state}")


def _is_past(moment_ms: int | None, now_ms: float) -> bool:
    return moment_ms is not None and moment_ms <= now_ms
