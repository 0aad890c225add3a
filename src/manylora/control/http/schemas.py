"""JSON of tenants and keys, as pydantic models, from which FastAPI makes the OpenAPI document."""

import difflib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from manylora.control.tenants.credit import MOST_NANOUSD, Balance
from manylora.control.tenants.keys import DEFAULT_SCOPES, Key, KeyPage
from manylora.control.tenants.tenants import Tenant
from manylora.control.wallet.wallet import DEFAULT_PRIORITY, MOST_PRIORITY
from manylora.errors import InvalidParameter
from manylora.tenancy import OLDER_SCOPE, BaseLimits, Limits, Scope, scopes_of_words

BIGGEST = 2**62
UNKNOWN_FIELD = "unknown_field"
"""Type of pydantic's error for an unknown field; its context has the `name`."""
Amount = Annotated[int, Field(ge=-MOST_NANOUSD, le=MOST_NANOUSD)]
Count = Annotated[int, Field(ge=0, le=BIGGEST)]
BaseName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
MOST_LIMITED_BASES = 64
Name = Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")]
ShortText = Annotated[str, Field(max_length=320, pattern=r"^[^\x00]*$")]


class RequestBody(BaseModel):
    """Body of a request. A field that is null counts as absent; an unknown field is refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _with_known_names(cls, values: Any) -> Any:  # JSON of the caller
        if not isinstance(values, dict):
            return values
        present = {name: value for name, value in values.items() if value is not None}
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for name in present.keys() - known - cls.model_fields.keys():
            raise _unknown(str(name), known)
        return present


def _unknown(name: str, known: set[str]) -> PydanticCustomError:
    shown = name[:80] if name[:80].isprintable() else name[:80].encode("unicode_escape").decode("ascii")
    nearest = difflib.get_close_matches(name[:64], sorted(known), n=1)
    remedy = f"the nearest known one is `{nearest[0]}`" if nearest else f"known are {', '.join(sorted(known))}"
    return PydanticCustomError(
        UNKNOWN_FIELD, "`{name}` is not a known field: {remedy}", {"name": shown, "remedy": remedy}
    )


class BaseLimitsBody(RequestBody):
    """Limits of the requests to one base; null: no limit."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrent_streams: Count | None = None


class LimitsBody(RequestBody):
    """Limits of a tenant or a key; null: no limit. `bases`: further limits, of single bases, by their names."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrent_streams: Count | None = None
    adapters: Count | None = None
    adapter_bytes: Count | None = None
    max_rank: Count | None = None
    monthly_budget_nanousd: Count | None = None
    bases: Annotated[dict[BaseName, BaseLimitsBody], Field(max_length=MOST_LIMITED_BASES)] = {}

    def limits(self) -> Limits:
        """Return the limits. A base without any limit is left out."""
        numbers = self.model_dump(exclude={"bases"})
        own = [BaseLimits(base=name, **self.bases[name].model_dump()) for name in sorted(self.bases)]
        return Limits(**numbers, bases=tuple(each for each in own if each != BaseLimits(base=each.base)))

    @staticmethod
    def of(limits: Limits) -> "LimitsBody":
        numbers = {name: getattr(limits, name) for name in LimitsBody.model_fields if name != "bases"}
        names = BaseLimitsBody.model_fields
        bases = {each.base: BaseLimitsBody(**{name: getattr(each, name) for name in names}) for each in limits.bases}
        return LimitsBody(**numbers, bases=bases)


class BalanceBody(BaseModel):
    granted_nanousd: int
    charged_nanousd: int
    left_nanousd: int
    leased_nanousd: int
    spent_this_month_nanousd: int
    expired_nanousd: int

    @staticmethod
    def of(balance: Balance) -> "BalanceBody":
        return BalanceBody(**{name: getattr(balance, name) for name in BalanceBody.model_fields})


class TenantBody(BaseModel):
    id: str
    number: int
    uuid: str
    name: str
    email: str | None
    plan: str
    state: str
    weight: int
    limits: LimitsBody
    created: str
    balance: BalanceBody | None = None

    @staticmethod
    def of(tenant: Tenant, balance: Balance | None = None) -> "TenantBody":
        return TenantBody(
            id=tenant.id,
            number=tenant.number,
            uuid=tenant.uuid,
            name=tenant.name,
            email=tenant.email,
            plan=tenant.plan,
            state=tenant.facts.state.value,
            weight=tenant.facts.weight,
            limits=LimitsBody.of(tenant.facts.limits),
            created=iso(tenant.created_ms),
            balance=None if balance is None else BalanceBody.of(balance),
        )


class TenantPage(BaseModel):
    """A page of tenants. `next`: the `after` of the next page; null on the last page."""

    tenants: list[TenantBody]
    next: str | None


class KeyBody(BaseModel):
    """A key. `key` is its whole text, which only the reply to its creation has.

    `origin`: the key that made it; null: the operator or a sign-up. `successor`: the key it was rotated into.
    """

    id: str
    tenant: str
    name: str
    scopes: list[str]
    limits: LimitsBody
    created: str
    expires: str | None
    revoked: str | None
    origin: str | None = None
    successor: str | None = None
    last_used: str | None = None
    key: str | None = None

    @staticmethod
    def of(key: Key, text: str | None = None) -> "KeyBody":
        return KeyBody(
            id=key.facts.id,
            tenant=key.facts.tenant,
            name=key.name,
            scopes=[scope.value for scope in key.facts.held],
            limits=LimitsBody.of(key.facts.limits),
            created=iso(key.created_ms),
            expires=None if key.facts.expires_ms is None else iso(key.facts.expires_ms),
            revoked=None if key.revoked_ms is None else iso(key.revoked_ms),
            origin=key.maker,
            successor=key.successor,
            last_used=None if key.last_used_ms is None else iso(key.last_used_ms),
            key=text,
        )


class CallerBody(BaseModel):
    """The key of the request. Without a key, where none is needed, `id` is null; `scopes` are those of the caller."""

    tenant: str
    id: str | None
    name: str
    scopes: list[str]
    limits: LimitsBody
    expires: str | None

    @staticmethod
    def of(tenant: str, scopes: Sequence[Scope], key: Key | None) -> "CallerBody":
        expires_ms = None if key is None else key.facts.expires_ms
        return CallerBody(
            tenant=tenant,
            id=None if key is None else key.facts.id,
            name="" if key is None else key.name,
            scopes=[scope.value for scope in scopes],
            limits=LimitsBody() if key is None else LimitsBody.of(key.facts.limits),
            expires=None if expires_ms is None else iso(expires_ms),
        )


class RevokedBody(KeyBody):
    """A revoked key. `ended`: the ids of all keys that the revocation ended, this one and those made with it."""

    ended: list[str] = Field(default_factory=list)


class KeyList(BaseModel):
    """Keys, the oldest first. `next`: the `after` of the next page; null on the last page."""

    keys: list[KeyBody]
    has_more: bool
    next: str | None

    @staticmethod
    def of(page: KeyPage) -> "KeyList":
        keys = [KeyBody.of(key) for key in page.keys]
        return KeyList(keys=keys, has_more=page.following is not None, next=page.following)


class NewTenant(RequestBody):
    id: ShortText
    name: Name = ""
    email: ShortText | None = None
    plan: Annotated[str, Field(max_length=64, pattern=r"^[^\x00]*$")] = "standard"
    weight: int | None = Field(None, description="null: the plan's.")
    limits: LimitsBody = LimitsBody()
    credit_nanousd: Amount | None = Field(None, description="Its first credit; null: that of a sign-up.")


class Terms(RequestBody):
    """Changed terms. Absent fields stay as they are, but a plan sets its weight; `limits` are replaced whole."""

    limits: LimitsBody | None = None
    weight: int | None = None
    plan: Annotated[str, Field(max_length=64, pattern=r"^[^\x00]*$")] | None = None


class NewCredit(RequestBody):
    """A grant of credit. A repeated `id` changes nothing; a negative amount is taken away."""

    kind: Literal["free", "paid"] = "paid"
    priority: Annotated[
        int, Field(ge=1, le=MOST_PRIORITY, description="The lowest is drawn first; then the earliest end.")
    ] = DEFAULT_PRIORITY
    expires_in_s: Annotated[
        float | None, Field(gt=0, le=10 * 366 * 86400, description="Seconds until it ends unspent; null: never.")
    ] = None

    id: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00]*$")]
    nanousd: Amount
    reason: Name


class NewKey(RequestBody):
    name: Name = ""
    scopes: list[str] = Field(default=[scope.value for scope in DEFAULT_SCOPES], max_length=8)
    limits: LimitsBody = LimitsBody()
    expires_in_s: Annotated[float, Field(gt=0, le=10 * 366 * 86400)] | None = None


class Rotation(RequestBody):
    """A rotation. `end_made`: end all keys made with this one as well, in case it leaked."""

    grace_s: Annotated[float, Field(ge=0, le=366 * 86400)] = 0.0
    end_made: bool = False


class Signup(RequestBody):
    """A new tenant. `password`: of its login at the console; null: it gets none."""

    id: ShortText
    name: Name = ""
    email: ShortText | None = None
    password: Annotated[str, Field(max_length=1000)] | None = None


class SignedUp(BaseModel):
    tenant: TenantBody
    key: KeyBody


def iso(moment_ms: int) -> str:
    """Return a moment as ISO 8601, UTC, with milliseconds."""
    return datetime.fromtimestamp(moment_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def scopes_of(names: list[str]) -> tuple[Scope, ...]:
    """Return scopes by their names. Raise `InvalidParameter` for an unknown name."""
    known = [scope.value for scope in Scope]
    for name in names:
        if name not in (*known, OLDER_SCOPE):
            raise InvalidParameter(f"`scopes` must be of {', '.join(known)}. Given: {name[:40]!r}", parameter="scopes")
    return scopes_of_words(names)
