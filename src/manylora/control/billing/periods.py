"""Periods of usage: a UTC month, or from one UTC day or month through another."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from manylora.control.calendar import DAY_MS, FIRST_YEAR, LAST_YEAR, bounds_of, month_of, parse_month
from manylora.errors import InvalidParameter

MAX_DAYS = 3660
"""Limit of one period: ten years."""
MONTH_LETTERS = len("2026-11")


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """A half-open interval in milliseconds since 1970."""

    begin_ms: int
    end_ms: int


def parse_period(*, month: str, first: str, last: str, now_ms: int) -> Period:
    """Return the period of a request; an empty text is an absent parameter.

    Args:    month  `2026-11`; alone, since it is a whole period
             first  `2026-11` or `2026-11-25`: its beginning
             last   likewise: its last day or month, included; default: the day of `now_ms`
             without all three: the month of `now_ms`
    Raises:  `InvalidParameter`, which names `month`, `from` or `to`
    """
    if month and (first or last):
        raise InvalidParameter("give `month`, or `from` and `to`, and not both", parameter="month")
    if last and not first:
        raise InvalidParameter("`to` needs a `from`", parameter="from")
    if not first:
        begin_ms, end_ms = bounds_of(parse_month(month) if month else month_of(now_ms))
        return Period(begin_ms=begin_ms, end_ms=end_ms)
    begin_ms = _bounds(first, "from")[0]
    end_ms = _bounds(last, "to")[1] if last else now_ms - now_ms % DAY_MS + DAY_MS
    if end_ms <= begin_ms:
        until = f"`to` {last!r}" if last else "today, which `to` is where it is not given"
        raise InvalidParameter(f"`from` {first!r} is later than {until}", parameter="from")
    if end_ms - begin_ms > MAX_DAYS * DAY_MS:
        raise InvalidParameter(f"a period has at most {MAX_DAYS} days", parameter="from")
    return Period(begin_ms=begin_ms, end_ms=end_ms)


def _bounds(text: str, parameter: str) -> tuple[int, int]:
    """Return the half-open interval of a month or a day in milliseconds."""
    try:
        if len(text) == MONTH_LETTERS:
            return bounds_of(parse_month(text))
        day = date.fromisoformat(text)
        if day.isoformat() == text and FIRST_YEAR <= day.year <= LAST_YEAR:  # excludes the other forms of ISO 8601
            begin = datetime(day.year, day.month, day.day, tzinfo=UTC)
            return int(1000 * begin.timestamp()), int(1000 * (begin + timedelta(days=1)).timestamp())
    except (InvalidParameter, ValueError):
        pass
    raise InvalidParameter(
        f"`{parameter}` is a UTC day like 2026-11-25 or a month like 2026-11, from {FIRST_YEAR} to {LAST_YEAR}. "
        f"Given: {text[:40]!r}",
        parameter=parameter,
    )
