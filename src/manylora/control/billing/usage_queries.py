"""Queries of the ledger: sums over a period by day, base, adapter or key, and single rows, in pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, String, and_, case, func, literal_column, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.billing.invoices import requests_of
from manylora.control.calendar import DAY_MS, offsets_of
from manylora.control.storage.tables import ledger
from manylora.errors import InvalidParameter

GROUPS = ("tenant", "base", "adapter", "key", "price")
"""Columns that group sums; `day` is in the zone of the call, `price` is the version of the base's price, and `adapter`
the name by which the tenant calls it."""
NUMBERS = ("day", "price")
"""The numeric columns among them."""
COUNTS = (
    *("prompt_tokens", "cached_tokens", "completion_tokens"),
    *("charged_prompt_tokens", "charged_cached_tokens", "charged_completion_tokens"),
)
# Literals: PostgreSQL treats two expressions with parameters as different.
_DAY: ColumnElement[int] = literal_column(str(DAY_MS))
_LEAST_NUMBER: ColumnElement[int] = literal_column("-1")
_LEAST_TEXT: ColumnElement[str] = literal_column("''")
PRICES = ("input_nanousd", "cached_input_nanousd", "output_nanousd")


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSum:
    """Sums of the rows with the same `names`; corrections are not counted as requests.

    charged_cached_tokens are a part of charged_prompt_tokens
    …_nanousd               the price of each token where all rows have the same; else None
    """

    names: tuple[str | None, ...]
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    charged_prompt_tokens: int
    charged_cached_tokens: int
    charged_completion_tokens: int
    input_nanousd: int | None
    cached_input_nanousd: int | None
    output_nanousd: int | None
    cost_nanousd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerPage:
    """Rows of the table, newest first. `before`: the argument that returns the next page; None on the last page."""

    rows: list[dict[str, object]]
    before: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsagePage:
    """A page of sums. place: the names of the last sum in the order; None on the last page."""

    sums: list[UsageSum]
    place: tuple[str | int, ...] | None


async def sum_usage(
    connection: AsyncConnection,
    *,
    begin_ms: int,
    end_ms: int,
    tenant: str | None = None,
    groups: Sequence[str] = (),
) -> list[UsageSum]:
    """Return the sums over [begin_ms, end_ms), of one tenant or all. Raise `InvalidParameter` for an unknown group."""
    page = await usage_page(connection, begin_ms=begin_ms, end_ms=end_ms, tenant=tenant, groups=groups, limit=None)
    return page.sums


async def usage_page(
    connection: AsyncConnection,
    *,
    begin_ms: int,
    end_ms: int,
    tenant: str | None = None,
    groups: Sequence[str] = (),
    limit: int | None,
    after: tuple[str | int, ...] | None = None,
    zone: tzinfo = UTC,
) -> UsagePage:
    """Return at most `limit` sums over [begin_ms, end_ms), of one tenant or of all, in the order of `groups`.

    Args:    after  the `place` of the page before
             zone   of the column `day`
    Raises:  `InvalidParameter` for an unknown group, or a place of other columns
    """
    day = _day_column(offsets_of(zone, begin_ms, end_ms)) if "day" in groups else None
    found = [day if day is not None and group == "day" else _column(group) for group in groups]
    columns = [column.label(group) for group, column in zip(groups, found, strict=True)]
    order = [_ordered(group, column) for group, column in zip(groups, found, strict=True)]
    totals = [func.sum(ledger.c[name]).label(name) for name in (*COUNTS, "cost_nanousd")]
    requests = requests_of()
    asked = select(*columns, requests.label("requests"), *totals, *_price_bounds())
    asked = asked.where(ledger.c.booked_ms >= begin_ms, ledger.c.booked_ms < end_ms)
    if tenant is not None:
        asked = asked.where(ledger.c.tenant == tenant)
    if columns:
        asked = asked.group_by(*found).order_by(*order)
    if after is not None:
        asked = asked.where(_is_after(order, groups, after))
    if limit is not None:
        asked = asked.limit(limit + 1)
    rows = list((await connection.execute(asked)).mappings())
    kept = rows if limit is None else rows[:limit]
    sums = [
        UsageSum(
            names=tuple(_name(group, row[group]) for group in groups),
            requests=int(row["requests"]),
            cost_nanousd=int(row["cost_nanousd"] or 0),
            **_counts(row),
            **_prices(row),
        )
        for row in kept
    ]
    return UsagePage(sums=sums, place=_place_of(kept[-1], groups) if len(kept) < len(rows) else None)


async def ledger_page(
    connection: AsyncConnection, *, tenant: str | None = None, before: int | None = None, limit: int = 100
) -> LedgerPage:
    """Return single rows, the newest first."""
    asked = select(ledger).order_by(ledger.c.number.desc()).limit(limit)
    if tenant is not None:
        asked = asked.where(ledger.c.tenant == tenant)
    if before is not None:
        asked = asked.where(ledger.c.number < before)
    rows = [dict(row) for row in (await connection.execute(asked)).mappings()]
    return LedgerPage(rows=rows, before=rows[-1]["number"] if len(rows) == limit else None)


def cached_price() -> ColumnElement[int]:
    """Return the cached price of a row; an older row has the price of other prompt tokens."""
    return func.coalesce(ledger.c.cached_input_nanousd, ledger.c.input_nanousd)


def require_groups(groups: Sequence[str]) -> None:
    """Raise `InvalidParameter` for a column that does not group sums."""
    for group in groups:
        _column(group)


def _column(group: str) -> ColumnElement[Any]:
    if group == "day":
        return _day_column([(0, 0)])
    if group == "price":
        return ledger.c.price_version
    if group == "adapter":
        return _called()
    if group in GROUPS:
        return ledger.c[group]
    raise InvalidParameter(f"`by` must be of {', '.join((*GROUPS, 'day'))}. Given: {group[:40]!r}", parameter="by")


def _called() -> ColumnElement[str]:
    """Return the adapter's name as the tenant calls it, by the rule of `called_adapter`: after another owner's name."""
    owner, adapter = ledger.c.adapter_owner, ledger.c.adapter
    comma, slash = (literal_column(f"'{sign}'", String) for sign in ",/")
    foreign = owner + slash + func.replace(adapter, comma, comma + owner + slash)
    return case((or_(owner.is_(None), owner == "", owner == ledger.c.tenant), adapter), else_=foreign)


def _day_column(offsets: Sequence[tuple[int, int]]) -> ColumnElement[int]:
    """Return the day of a row as the UTC moment at which a day of that date begins.

    Args:  offsets  the zone's offsets from UTC, each with its first moment, from `calendar.offsets_of`
    """
    shift: ColumnElement[int] = literal_column(str(offsets[0][1]))
    for first_ms, offset_ms in offsets[1:]:
        is_later = ledger.c.booked_ms >= literal_column(str(first_ms))
        shift = case((is_later, literal_column(str(offset_ms))), else_=shift)
    local = ledger.c.booked_ms + shift
    return local - local % _DAY


def _least(group: str) -> str | int:
    """Return the substitute for NULL in the order; no column has it."""
    return -1 if group in NUMBERS else ""


def _ordered(group: str, column: ColumnElement[Any]) -> ColumnElement[Any]:
    return column if group == "day" else func.coalesce(column, _LEAST_NUMBER if group in NUMBERS else _LEAST_TEXT)


def _place_of(row: RowMapping, groups: Sequence[str]) -> tuple[str | int, ...]:
    return tuple(_least(group) if row[group] is None else row[group] for group in groups)


def _is_after(
    order: Sequence[ColumnElement[Any]], groups: Sequence[str], place: tuple[str | int, ...]
) -> ColumnElement[bool]:
    """Return the condition of a page's begin. Raise `InvalidParameter` for a place of columns of another type."""
    if len(place) != len(groups) or any(
        isinstance(value, int) != (group in NUMBERS) for group, value in zip(groups, place, strict=True)
    ):
        raise InvalidParameter("`after` must be the `next` of the page before, with the same `by`", parameter="after")
    alike: list[ColumnElement[bool]] = []
    found: list[ColumnElement[bool]] = []
    for column, value in zip(order, place, strict=True):
        found.append(and_(*alike, column > value))
        alike.append(column == value)
    return or_(*found)


def _price_bounds() -> list[ColumnElement[int]]:
    """Return the least and the greatest of each price, which are equal where a sum's rows have one price."""
    amounts = {name: ledger.c[name] for name in PRICES} | {"cached_input_nanousd": cached_price()}
    return [
        bound(amount).label(f"{which}_{name}")
        for name, amount in amounts.items()
        for which, bound in (("least", func.min), ("most", func.max))
    ]


def _counts(row: RowMapping) -> dict[str, Any]:
    return {name: int(row[name] or 0) for name in COUNTS}


def _prices(row: RowMapping) -> dict[str, Any]:
    is_one = all(row[f"least_{name}"] == row[f"most_{name}"] for name in PRICES)
    return {name: row[f"least_{name}"] if is_one else None for name in PRICES}


def _name(group: str, value: object) -> str | None:
    if group == "day" and isinstance(value, int):
        return datetime.fromtimestamp(value / 1000, UTC).date().isoformat()
    return None if value is None else str(value)
