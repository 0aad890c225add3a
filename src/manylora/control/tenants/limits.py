"""Limits of tenants and keys: their columns, the narrower of two, and the bases that they may name."""

import asyncio
import difflib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields

from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.control import Control
from manylora.control.storage.tables import LIMIT_COLUMNS, prices
from manylora.errors import InvalidParameter
from manylora.tenancy import BaseLimits, Limits

RATES = tuple(entry.name for entry in fields(BaseLimits) if entry.name != "base")
"""The limits that a single base may have."""


def columns_of(limits: Limits) -> dict[str, object]:
    """Return limits as columns. Raise `InvalidParameter` for a negative one."""
    values = {name: getattr(limits, name) for name in LIMIT_COLUMNS}
    named = [*values.items(), *((name, getattr(base, name)) for base in limits.bases for name in RATES)]
    for name, value in named:
        if value is not None and value < 0:
            raise InvalidParameter(f"`{name}` must be at least 0, or null for no limit. Given: {value}", parameter=name)
    return values | {"limits_of_bases": json.dumps([asdict(base) for base in limits.bases]) if limits.bases else None}


def limits_of(row: Row[tuple[object, ...]]) -> Limits:
    """Return the limits in a row of `tenants` or `keys`."""
    mapping: Mapping[str, int | None] = row._mapping  # type: ignore[assignment]  # these columns are numbers
    bases = () if row.limits_of_bases is None else tuple(BaseLimits(**each) for each in json.loads(row.limits_of_bases))
    return Limits(**{name: mapping[name] for name in LIMIT_COLUMNS}, bases=bases)


def narrower(one: Limits, other: Limits) -> Limits:
    """Return the narrower of two limits, name by name and base by base."""
    bases = {base.base: base for base in one.bases}
    for base in other.bases:
        known = bases.get(base.base, base)
        rates = {name: lower(getattr(known, name), getattr(base, name)) for name in RATES}
        bases[base.base] = BaseLimits(base=base.base, **rates)
    numbers = {name: lower(getattr(one, name), getattr(other, name)) for name in LIMIT_COLUMNS}
    return Limits(**numbers, bases=tuple(bases[name] for name in sorted(bases)))


def lower(one: int | None, other: int | None) -> int | None:
    """Return the lower of two bounds; None stands for no bound."""
    return min((value for value in (one, other) if value is not None), default=None)


async def require_known_bases(
    control: Control, connection: AsyncConnection, limits: Limits, kept: Limits | None = None
) -> None:
    """Raise `InvalidParameter` for limits of a base that no server here serves and that has no price.

    kept: the limits before, whose bases may stay although they are not served any more.
    """
    kept_names = {base.base for base in (kept or Limits()).bases}
    for message in await unknown_bases(control, connection, limits, kept_names):
        raise InvalidParameter(message, parameter="limits")


async def unknown_bases(
    control: Control, connection: AsyncConnection, limits: Limits, kept: Collection[str] = ()
) -> list[str]:
    """Return a message for each base in limits that no server here serves, that has no price and is not in `kept`."""
    named = {base.base for base in limits.bases} - {*kept}
    if not named:
        return []
    served = {*await asyncio.to_thread(control.served_bases), *control.config.control.free_bases}
    priced = set((await connection.execute(select(prices.c.base).distinct())).scalars())
    return [
        f"no server here serves the base model `{base[:80]}`; the nearest served one is `{nearest(base, served)}`"
        for base in sorted(named - served - priced)
    ]


def nearest(base: str, served: Collection[str]) -> str:
    """Return the served base whose name is nearest to a name; empty where none is served."""
    found = difflib.get_close_matches(base.lower(), [name.lower() for name in served], n=1, cutoff=0.0)
    return next((name for name in sorted(served) if name.lower() in found), "")
