"""Checks of a whole plan against the server, before its first step."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.catalogue.planning import CatalogueStep
from manylora.control.control import Control
from manylora.control.deployments.deployments import (
    MAX_DEPLOYMENTS,
    Shared,
    check_deployment_base,
    deployment_columns,
    list_deployments,
)
from manylora.control.deployments.memory import require_memory_of_all
from manylora.control.http.schemas import LimitsBody
from manylora.control.storage.tables import keys
from manylora.control.tenants.limits import unknown_bases
from manylora.errors import InvalidParameter
from manylora.ids import TenantId


async def require_possible(
    connection: AsyncConnection, control: Control, steps: Sequence[CatalogueStep], shared: Shared
) -> None:
    """Raise `InvalidParameter` for a plan that the single routes would refuse, with the name of the object.

    Limits of unknown bases, and deployments: their configuration, their number, and the memory of all together.
    """
    priced = {step.place[1] for step in steps if step.place[0] == "price"}
    for step in steps:
        if step.place[0] == "tenant" and step.new is not None:
            limits = LimitsBody.model_validate(step.new["limits"]).limits()
            kept = {*priced, *((step.old or {"limits": {}})["limits"].get("bases") or {})}
            for message in await unknown_bases(control, connection, limits, kept):
                raise InvalidParameter(f"tenant `{step.place[1]}`: {message}", parameter="limits")
    await _require_deployable(connection, control, [step for step in steps if step.place[0] == "deployment"], shared)


async def _require_deployable(
    connection: AsyncConnection, control: Control, steps: Sequence[CatalogueStep], shared: Shared
) -> None:
    wanted: dict[tuple[str, str], dict[str, Any] | None] = {}  # columns of several types
    for step in steps:
        _, code, name = step.place
        wanted[code, name] = (
            None if step.new is None else _columns(step, shared, control.config.placement.hourly_nanousd)
        )
    await _require_keys(connection, steps)
    for code in sorted({code for code, _ in wanted}):
        present = {each.name for each in await list_deployments(connection, TenantId(code), [], "dedicated")}
        kept = present - {name for owner, name in wanted if owner == code}
        own = [name for (owner, name), columns in wanted.items() if owner == code and columns is not None]
        if len(kept) + len(own) > MAX_DEPLOYMENTS:
            raise InvalidParameter(f"tenant `{code}`: a tenant has at most {MAX_DEPLOYMENTS} deployments")
    if control.placer is not None and any(columns is not None for columns in wanted.values()):
        await require_memory_of_all(connection, control.placer, wanted)


async def _require_keys(connection: AsyncConnection, steps: Sequence[CatalogueStep]) -> None:
    """Raise `InvalidParameter` for a step that lets a key pay which its tenant has not, or has no more."""
    new = {step.place: (step.new or {}).get("key") for step in steps}
    old = {step.place: (step.old or {}).get("key") for step in steps}
    chosen = {place: key for place, key in new.items() if key is not None and key != old[place]}
    if not chosen:
        return
    asked = select(keys.c.tenant, keys.c.id).where(keys.c.id.in_(sorted({*chosen.values()})))
    asked = asked.where(keys.c.revoked_ms.is_(None), keys.c.is_session.is_(False))
    known = {(tenant, key) for tenant, key in (await connection.execute(asked)).all()}
    for (_, code, name), key in chosen.items():
        if (code, key) not in known:
            raise InvalidParameter(
                f"deployment `{code}/{name}`: the tenant has no key `{key}` in force", parameter="key"
            )


def _columns(step: CatalogueStep, shared: Shared, hourly_nanousd: int) -> dict[str, Any]:  # values of several types
    _, code, name = step.place
    new, old = step.new or {}, step.old
    if any(each.name == name for each in shared):
        raise InvalidParameter(f"deployment `{code}/{name}`: `{name}` is a deployment that all tenants share")
    try:
        columns = deployment_columns(new["config"], shared, hourly_nanousd)
        if old is not None:
            check_deployment_base(new["config"], str(old["config"].get("baseModel", "")))
    except InvalidParameter as error:
        raise InvalidParameter(f"deployment `{code}/{name}`: {error.message}", parameter=error.parameter) from error
    return columns
