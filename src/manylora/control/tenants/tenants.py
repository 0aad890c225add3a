"""Tenants: their codes, states, shares and limits."""

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.budgets.budgets import hard_budgets
from manylora.control.storage.revisions import next_revision
from manylora.control.storage.tables import tenants
from manylora.control.tenants.limits import columns_of, limits_of
from manylora.errors import InvalidParameter, NameTaken, ResourceNotFound
from manylora.http.paths import PATHS
from manylora.ids import TenantId
from manylora.tenancy import DEFAULT_TENANT, Limits, TenantFacts, TenantState

OPERATOR = TenantId("operator")
"""The tenant of keys with the scope `admin`. It is always active, and its own requests need no credit."""
DEFAULT_PLAN = "standard"
MAX_WEIGHT = 1000
RESERVED = PATHS.first_words | {DEFAULT_TENANT, OPERATOR}
"""First words of paths, and the tenants that exist from the start."""
_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A tenant as the operator sees it. number, uuid: further identifiers, for clients that need one of that form."""

    facts: TenantFacts
    number: int
    uuid: str
    name: str
    email: str | None
    plan: str
    created_ms: int

    @property
    def id(self) -> TenantId:
        return self.facts.id


def is_tenant_name(code: str) -> bool:
    """Return whether a text has the form of a tenant's code."""
    return _CODE.fullmatch(code) is not None


def check_tenant_code(code: str) -> None:
    """Raise `InvalidParameter` for a text that no new tenant can have as its code."""
    if not is_tenant_name(code) or code.lower() in RESERVED:
        raise InvalidParameter(
            f"`id` must be 1 to 64 letters, digits, `-` or `_`, begin with a letter or digit, and be no word that "
            f"paths of this server begin with. Given: {code[:80]!r}",
            parameter="id",
        )


async def create_tenant(
    connection: AsyncConnection,
    code: str,
    *,
    now_ms: int,
    name: str = "",
    email: str | None = None,
    plan: str = DEFAULT_PLAN,
    weight: int = 1,
    limits: Limits | None = None,
) -> Tenant:
    """Create a tenant. Raise as `require_free`."""
    await require_free(connection, code)
    return await insert_tenant(
        connection, code, now_ms=now_ms, name=name, email=email, plan=plan, weight=weight, limits=limits
    )


async def require_free(connection: AsyncConnection, code: str) -> None:
    """Raise `InvalidParameter` for an invalid code of a tenant, `NameTaken` for one that was given before."""
    check_tenant_code(code)
    await _require_unused(connection, code)


async def insert_tenant(
    connection: AsyncConnection,
    code: str,
    *,
    now_ms: int,
    name: str = "",
    email: str | None = None,
    plan: str = DEFAULT_PLAN,
    weight: int = 1,
    limits: Limits | None = None,
    state: TenantState = TenantState.ACTIVE,
) -> Tenant:
    """Create a tenant, also under a reserved code. Raise as `create_tenant`."""
    revision = await next_revision(connection)  # from here on no other transaction makes a tenant
    number = (await connection.execute(select(func.coalesce(func.max(tenants.c.number), 0)))).scalar_one() + 1
    await _require_unused(connection, code)
    values = {
        "id": code,
        "number": number,
        "uuid": str(uuid.uuid4()),
        "name": name or code,
        "email": email,
        "plan": plan,
        "state": state.value,
        "weight": _checked_weight(weight),
        **columns_of(limits or Limits()),
        "created_ms": now_ms,
        "revision": revision,
    }
    try:
        await connection.execute(insert(tenants).values(values))
    except IntegrityError as error:
        raise NameTaken(f"a tenant `{code}` is there already", parameter="id") from error
    return await get_tenant(connection, code)


async def _require_unused(connection: AsyncConnection, code: str) -> None:
    taken = select(tenants.c.id).where(func.lower(tenants.c.id) == code.lower())
    if (await connection.execute(taken)).first() is not None:
        raise NameTaken(f"a tenant `{code}` is there already", parameter="id")


async def get_tenant(connection: AsyncConnection, code: str) -> Tenant:
    """Return a tenant. Raise `ResourceNotFound`."""
    row = (await connection.execute(select(tenants).where(tenants.c.id == code))).one_or_none()
    if row is None:
        raise ResourceNotFound(f"there is no tenant `{code[:80]}`")
    return _tenant(row)


async def tenant_for_change(connection: AsyncConnection, code: str) -> Tenant:
    """Return a tenant. No other transaction changes it until this one ends. Raise `ResourceNotFound`."""
    await next_revision(connection)
    return await get_tenant(connection, code)


async def list_tenants(connection: AsyncConnection, *, after: str = "", limit: int = 100) -> list[Tenant]:
    """Return at most `limit` tenants in the order of their codes, those after `after`."""
    asked = select(tenants).where(tenants.c.id > after).order_by(tenants.c.id).limit(limit)
    return [_tenant(row) for row in (await connection.execute(asked)).all()]


async def set_state(connection: AsyncConnection, code: str, state: TenantState) -> Tenant:
    """Suspend, resume or close a tenant. A closed tenant stays closed.

    Raises `InvalidParameter` for a closed tenant, for the operator's own, whose suspension would end all
    administration, and for closing the tenant of open servers.
    """
    tenant = await tenant_for_change(connection, code)
    is_needed = code == OPERATOR or (code == DEFAULT_TENANT and state is TenantState.CLOSED)
    if is_needed and state is not TenantState.ACTIVE:
        raise InvalidParameter(f"tenant `{code}` belongs to the server: it cannot be {state}", parameter="state")
    if tenant.facts.state is TenantState.CLOSED and state is not TenantState.CLOSED:
        raise InvalidParameter(f"tenant `{code}` is closed, for ever", parameter="state")
    return await _change(connection, code, {"state": state.value})


async def set_terms(
    connection: AsyncConnection,
    code: str,
    *,
    limits: Limits | None = None,
    weight: int | None = None,
    plan: str | None = None,
) -> Tenant:
    """Change the terms that are not None; `limits` are replaced whole."""
    values: dict[str, object] = {} if limits is None else dict(columns_of(limits))
    if weight is not None:
        values["weight"] = _checked_weight(weight)
    if plan is not None:
        values["plan"] = plan
    return await _change(connection, code, values)


async def changed_tenants(connection: AsyncConnection, since: int) -> tuple[TenantFacts, ...]:
    """Return the facts of tenants that were changed after a revision, for edges."""
    asked = select(tenants).where(tenants.c.revision > since)
    rows = (await connection.execute(asked)).all()
    stopping = await hard_budgets(connection, [row.id for row in rows])
    return tuple(replace(_tenant(row).facts, budgets=stopping.get(row.id, ())) for row in rows)


async def _change(connection: AsyncConnection, code: str, values: Mapping[str, object]) -> Tenant:
    revision = await next_revision(connection)
    done = await connection.execute(update(tenants).where(tenants.c.id == code).values(**values, revision=revision))
    if not done.rowcount:
        raise ResourceNotFound(f"there is no tenant `{code[:80]}`")
    return await get_tenant(connection, code)


def _tenant(row: Row[tuple[object, ...]]) -> Tenant:
    return Tenant(
        facts=TenantFacts(id=TenantId(row.id), state=TenantState(row.state), weight=row.weight, limits=limits_of(row)),
        number=row.number,
        uuid=row.uuid,
        name=row.name,
        email=row.email,
        plan=row.plan,
        created_ms=row.created_ms,
    )


def _checked_weight(weight: int) -> int:
    if not 1 <= weight <= MAX_WEIGHT:
        raise InvalidParameter(f"`weight` must be 1 to {MAX_WEIGHT}. Given: {weight}", parameter="weight")
    return weight


def is_unlimited(tenant: str) -> bool:
    """Return whether a tenant needs no credit: the tenant of open servers, and the operator's.

    Their usage is metered and priced like that of others, but no request is refused for lack of credit.
    """
    return tenant in (DEFAULT_TENANT, OPERATOR)
