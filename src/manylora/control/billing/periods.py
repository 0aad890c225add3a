"""Periods of usage: a month, or from one day or month through another, in UTC or another time zone."""

from dataclasses import dataclass
from datetime import UTC, date, timedelta, tzinfo

from manylora.control.calendar import (
    DAY_MS,
    FIRST_YEAR,
    LAST_YEAR,
    bounds_of,
    day_begin_ms,
    day_of,
    parse_month,
)
from manylora.errors import InvalidParameter

MAX_DAYS = 3660
"""Limit of one period: ten years."""
MONTH_LETTERS = len("2026-11")


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """A half-open interval in milliseconds since 1970."""

    begin_ms: int
    end_ms: int


def parse_period(*, month: str, first: str, last: str, now_ms: int, zone: tzinfo = UTC) -> Period:
    """Return the period of a request; an empty text is an absent parameter.

    Args:    month  `2026-11`; alone, since it is a whole period
             first  `2026-11` or `2026-11-25`: its beginning
             last   likewise: its last day or month, included; default: the day of `now_ms`
             without all three: the month of `now_ms`
             zone   of the days and months
    Raises:  `InvalidParameter`, which names `month`, `from` or `to`
    """
    if month and (first or last):
        raise InvalidParameter("give `month`, or `from` and `to`, and not both", parameter="month")
    if last and not first:
        raise InvalidParameter("`to` needs a `from`", parameter="from")
    today = day_of(now_ms, zone)
    if not first:
        number = parse_month(month) if month else 100 * today.year + today.month
        begin_ms, end_ms = _month_bounds(number, zone)
        return Period(begin_ms=begin_ms, end_ms=end_ms)
    begin_ms = _bounds(first, "from", zone)[0]
    end_ms = _bounds(last, "to", zone)[1] if last else day_begin_ms(today + timedelta(days=1), zone)
    if end_ms <= begin_ms:
        until = f"`to` {last!r}" if last else "today, which `to` is where it is not given"
        raise InvalidParameter(f"`from` {first!r} is later than {until}", parameter="from")
    if end_ms - begin_ms > MAX_DAYS * DAY_MS:
        raise InvalidParameter(f"a period has at most {MAX_DAYS} days", parameter="from")
    return Period(begin_ms=begin_ms, end_ms=end_ms)


def _bounds(text: str, parameter: str, zone: tzinfo) -> tuple[int, int]:
    """Return the half-open interval of a month or a day in milliseconds."""
    try:
        if len(text) == MONTH_LETTERS:
            return _month_bounds(parse_month(text), zone)
        day = date.fromisoformat(text)
        if day.isoformat() == text and FIRST_YEAR <= day.year <= LAST_YEAR:  # excludes the other forms of ISO 8601
            return day_begin_ms(day, zone), day_begin_ms(day + timedelta(days=1), zone)
    except (InvalidParameter, ValueError):
        pass
    raise InvalidParameter(
        f"`{parameter}` is a day like 2026-11-25 or a month like 2026-11, from {FIRST_YEAR} to {LAST_YEAR}. "
        f"Given: {text[:40]!r}",
        parameter=parameter,
    )


def _month_bounds(month: int, zone: tzinfo) -> tuple[int, int]:
    """Return the half-open interval of a zone's month: it begins and ends with days of the zone."""
    begin_ms, end_ms = bounds_of(month)
    return day_begin_ms(day_of(begin_ms, UTC), zone), day_begin_ms(day_of(end_ms, UTC), zone)
