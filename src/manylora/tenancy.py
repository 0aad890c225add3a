"""Tenants, keys, limits, prices and uploads as the control plane sends them to every edge.

`server` and `control` meet here and in `usage.py`. Money is whole nano-dollars (10**-9 US dollars).
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from manylora.ids import KeyId, TenantId
from manylora.money import cost_nanousd
from manylora.rollouts.rollout import Rollout
from manylora.usage import UsageRecord

DEFAULT_TENANT = TenantId("default")
"""The tenant of all requests while the server asks for no key."""

KEY_ID_LENGTH = 8
SECRET_BYTES = 32
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_LENGTH = 43
_KEY = re.compile(rf"pb_([0-9A-Za-z]{{{KEY_ID_LENGTH}}})_([0-9A-Za-z]{{{_SECRET_LENGTH}}})")


class Scope(StrEnum):
    """Kinds of routes that a key opens; `http/paths.py` has each route's.

    INFER   inference, and the reads that a client makes before it
    READ    usage, invoices, lists
    UPLOAD  the registry, the download of weights included
    MANAGE  keys, aliases, shares, budgets, webhooks, dedicated deployments
    ADMIN   the whole server: for its operator alone
    """

    INFER = "infer"
    READ = "read"
    UPLOAD = "upload"
    MANAGE = "manage"
    ADMIN = "admin"


OLDER_SCOPE = "query"
"""The name of INFER and READ together in the first release. Requests may still use it."""
CUSTOMER_SCOPES = (Scope.INFER, Scope.READ, Scope.UPLOAD, Scope.MANAGE)
"""Every scope that a tenant's own keys may have."""


class TenantState(StrEnum):
    """The state of a tenant.

    SUSPENDED  every request is refused, and nothing is deleted
    CLOSED     for ever; its ledger rows stay
    """

    ACTIVE = "active"
    SUSPENDED = "suspended"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseLimits:
    """The limits of a tenant's or a key's requests to one base model. None: no limit of its own."""

    base: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_streams: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a tenant or a key. None: no limit of its own.

    monthly_budget_nanousd  spending in one UTC month
    adapter_bytes           bytes of all stored versions together
    bases                   further limits, of single bases: ascending by name, none without any limit
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_streams: int | None = None
    adapters: int | None = None
    adapter_bytes: int | None = None
    max_rank: int | None = None
    monthly_budget_nanousd: int | None = None
    bases: tuple[BaseLimits, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetFacts:
    """A budget of a key or an adapter that stops requests. id: no key's, so that a lease may name either.

    key      the origin of a key; None: every key
    adapter  a name as its tenant calls it, with or without a version; None: every adapter, and the base model
    """

    id: str
    key: KeyId | None = None
    adapter: str | None = None

    def covers(self, origin: str | None, adapter: str | None) -> bool:
        """Return whether the cost of a request of a key's line and an adapter's name counts against the budget."""
        if self.key is not None and self.key != origin:
            return False
        if self.adapter is None:
            return True
        return any(_is_below(each, self.adapter) for each in (adapter or "").split(",") if each)


def _is_below(name: str, wanted: str) -> bool:
    return name == wanted or name.startswith(f"{wanted}/")


def called_adapter(tenant: str, adapter: str | None, owner: str | None) -> str | None:
    """Return an adapter's name as a tenant calls it: after its owner's name if the owner is another tenant."""
    if adapter is None or owner in (None, "", tenant):
        return adapter
    return ",".join(f"{owner}/{each}" for each in adapter.split(","))


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantFacts:
    """One tenant. `weight`: its share among backlogged tenants is proportional to it; at least 1."""

    id: TenantId
    state: TenantState = TenantState.ACTIVE
    weight: int = 1
    limits: Limits = field(default_factory=Limits)
    budgets: tuple[BudgetFacts, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFacts:
    """One platform key, without its secret.

    origin       the first key of this key's rotations: the keys share its limits, so that a rotation resets none
    secret_hash  HMAC-SHA-256(pepper, secret), 64 hex digits
    scopes       in the words of the first release, which its servers read: query, upload, admin
    granted      in the present words and those of later releases; empty from a control plane of the first release
    """

    id: KeyId
    origin: KeyId
    tenant: TenantId
    secret_hash: str
    scopes: tuple[str, ...]
    granted: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    is_revoked: bool = False
    expires_ms: int | None = None

    @property
    def held(self) -> tuple[Scope, ...]:
        """The scopes that this release knows. A later release's word opens nothing here."""
        return scopes_of_words(self.granted) if self.granted else _of_first_release(self.scopes)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceFacts:
    """One version of a base model's price, from `effective_ms` until the next version's. A fine-tune costs its base.

    cached_input_nanousd  of a prompt token that came from the prefix cache; None: a control plane of an older version
                          sends none, and the token costs as much as any prompt token
    """

    base: str
    version: int
    effective_ms: int
    input_nanousd: int
    output_nanousd: int
    cached_input_nanousd: int | None = None

    @property
    def cached_nanousd(self) -> int:
        """Nano-dollars of a cached prompt token."""
        return self.input_nanousd if self.cached_input_nanousd is None else self.cached_input_nanousd

    def cost_nanousd(self, *, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> int:
        """Return the nano-dollars of charged tokens. `cached_tokens` are a part of `prompt_tokens`."""
        return cost_nanousd(
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            completion_tokens=completion_tokens,
            input_nanousd=self.input_nanousd,
            cached_input_nanousd=self.cached_nanousd,
            output_nanousd=self.output_nanousd,
        )

    def at_percent(self, percent: int) -> "PriceFacts":
        """Return a part of the price. Each token's is a whole number of nano-dollars, rounded up."""
        return replace(
            self,
            input_nanousd=-(-self.input_nanousd * percent // 100),
            cached_input_nanousd=-(-self.cached_nanousd * percent // 100),
            output_nanousd=-(-self.output_nanousd * percent // 100),
        )


def price_at(versions: Iterable[PriceFacts], base: str, moment_ms: int) -> PriceFacts | None:
    """Return the price of a base model in force at a moment; None: it has no price then."""
    in_force = (price for price in versions if price.base == base and price.effective_ms <= moment_ms)
    return max(in_force, key=lambda price: price.version, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryFacts:
    """One repository of uploads.

    versions     the numbers that requests may name: ready and not archived, ascending
    aliases      name → version, such as `prod`; only of the versions above. Of several, the one with the largest share
    rollouts     name → rule of the aliases that stand for several versions or have a shadow
    shared_with  tenants that may use it besides its owner
    """

    owner: TenantId
    name: str
    versions: tuple[int, ...] = ()
    aliases: tuple[tuple[str, int], ...] = ()
    rollouts: tuple[tuple[str, Rollout], ...] = ()
    is_public: bool = False
    shared_with: tuple[TenantId, ...] = ()


DELETED = "deleted"
"""The state of a deleted deployment in `DeploymentFacts`: edges forget it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentFacts:
    """One dedicated deployment of a tenant.

    state   in the words of Predibase's API: pending, initializing, ready, standby, updating, errored, stopped; or
            `DELETED`
    detail  why it is in that state, for its tenant
    urls    addresses of the ready replicas
    starting, draining  numbers of such replicas
    """

    tenant: TenantId
    name: str
    base: str
    state: str
    detail: str = ""
    urls: tuple[str, ...] = ()
    starting: int = 0
    draining: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentUse:
    """The requests of one edge to a dedicated deployment: those under way or waiting, and the moment of the last."""

    tenant: TenantId
    name: str
    load: int
    last_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentUses:
    """Uses of deployments at one edge since its last report."""

    edge: str
    uses: tuple[DeploymentUse, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The changes since a revision; all state, if the edge has none yet (`is_whole`).

    epoch   of the control plane's process; revisions of another process, perhaps with another database, do not compare
    pepper  in hex
    batch_price_percent  part of the price that a token of a batch costs; 100 from a control plane of an older version
    deployment_starts    starts of replicas of all deployments that ever were, and those of them whose process ended
                         unasked; None: as before

    A repository without versions may have been deleted. It grants nothing in either case.
    """

    revision: int
    taken_ms: int
    is_whole: bool
    pepper: str
    epoch: str = ""
    tenants: tuple[TenantFacts, ...] = ()
    keys: tuple[KeyFacts, ...] = ()
    prices: tuple[PriceFacts, ...] = ()
    repositories: tuple[RepositoryFacts, ...] = ()
    deployments: tuple[DeploymentFacts, ...] = ()
    batch_price_percent: int = 100
    deployment_starts: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Credit set aside for one edge. 0 granted: the tenant has none left, and `reason` names the limit.

    granted_nanousd  the total that this edge may spend for the tenant until `expires_ms`, counted from `since_ms`
    now_ms           the moment of the answer by the control plane's clock, from which the edge's may differ; 0: one of
                     an older version does not tell it
    told             a sentence for the caller about the budget that bounds the lease; empty: there is none
    """

    tenant: TenantId
    granted_nanousd: int
    expires_ms: int
    reason: str = ""
    now_ms: int = 0
    told: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseWish:
    """An edge's request for `nanousd` more of a tenant's credit, of one key's monthly budget, or of a budget.

    key  empty: of the tenant's credit; else the origin of a key, or the id of a budget
    """

    edge: str
    tenant: TenantId
    nanousd: int
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUsage:
    """Last uses of keys at one edge: (id, moment in milliseconds)."""

    last: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterAct:
    """An operator's act on an adapter at one edge, such as `delete` or `pin`. `key` None: no key was needed."""

    at_ms: int
    actor: str | None
    key: str | None
    address: str | None
    request_id: str
    verb: str
    adapter: str
    owner: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterActs:
    """Acts on their way to the audit table."""

    acts: tuple[AdapterAct, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipment:
    """Records on their way to the ledger."""

    records: tuple[UsageRecord, ...]


def scopes_of_words(words: Iterable[str]) -> tuple[Scope, ...]:
    """Return scopes by their names, sorted. `query` is two of them, and an unknown name is none."""
    known = {scope.value for scope in Scope}
    found = {Scope(word) for word in words if word in known}
    if OLDER_SCOPE in words:
        found |= {Scope.INFER, Scope.READ}
    return tuple(sorted(found))


def words_of_first_release(scopes: Iterable[Scope]) -> tuple[str, ...]:
    """Return scopes in the words of the first release, whose servers admit to inference with `query` alone."""
    held = set(scopes)
    older = ((OLDER_SCOPE, Scope.INFER), (Scope.UPLOAD.value, Scope.UPLOAD), (Scope.ADMIN.value, Scope.ADMIN))
    return tuple(word for word, scope in older if scope in held)


def _of_first_release(words: Iterable[str]) -> tuple[Scope, ...]:
    """Return the scopes of the first release's words: its `upload` also read the registry, its `admin` managed all."""
    more = {Scope.UPLOAD: (Scope.READ,), Scope.ADMIN: (Scope.MANAGE,)}
    found = scopes_of_words(words)
    return tuple(sorted({*found, *(each for scope in found for each in more.get(scope, ()))}))


def mint_key() -> tuple[KeyId, str]:
    """Return a fresh key's id and its whole text, `pb_<id>_<secret>`; the secret has 256 random bits."""
    key_id = "".join(secrets.choice(_BASE62) for _ in range(KEY_ID_LENGTH))
    number, digits = int.from_bytes(secrets.token_bytes(SECRET_BYTES)), []
    for _ in range(_SECRET_LENGTH):
        number, digit = divmod(number, len(_BASE62))
        digits.append(_BASE62[digit])
    return KeyId(key_id), f"pb_{key_id}_{''.join(digits)}"


def split_key(text: str) -> tuple[KeyId, str] | None:
    """Return the id and the secret of a key's text; None if the text has another form."""
    match = _KEY.fullmatch(text)
    return None if match is None else (KeyId(match[1]), match[2])


def hash_secret(pepper: str, secret: str) -> str:
    """Return the HMAC-SHA-256 of a secret under the control plane's pepper (hex), as 64 hex digits."""
    return hmac.new(bytes.fromhex(pepper), secret.encode("ascii"), hashlib.sha256).hexdigest()
