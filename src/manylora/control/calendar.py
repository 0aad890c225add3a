"""UTC months: their bounds in milliseconds since 1970, and the month of a ledger row; days of other time zones."""

import re
from datetime import UTC, date, datetime, timedelta, tzinfo

from manylora.errors import InvalidParameter

DAY_MS = 86_400_000

SETTLING_MS = 3_600_000
"""Time after a month's end during which its requests may still run; its invoice is preliminary until then."""
COMMIT_MS = 300_000
"""Longer than a transaction takes after it has read the clock, and than the clocks of several machines differ."""
FIRST_YEAR, LAST_YEAR = 1970, 9000
_MONTH = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])")


def month_of(moment_ms: int) -> int:
    """Return the month of a moment as a number: 202611."""
    moment = datetime.fromtimestamp(moment_ms / 1000, UTC)
    return 100 * moment.year + moment.month


def parse_month(text: str) -> int:
    """Parse `2026-11` into 202611. Raise `InvalidParameter`."""
    match = _MONTH.fullmatch(text)
    if match is None or not FIRST_YEAR <= int(match[1]) <= LAST_YEAR:
        raise InvalidParameter(
            f"a month is written like 2026-11, from {FIRST_YEAR} to {LAST_YEAR}. Given: {text[:40]!r}",
            parameter="month",
        )
    return 100 * int(match[1]) + int(match[2])


def bounds_of(month: int) -> tuple[int, int]:
    """Return the half-open interval of a month in milliseconds."""
    year, number = divmod(month, 100)
    begin = datetime(year, number, 1, tzinfo=UTC)
    end = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    return int(1000 * begin.timestamp()), int(1000 * end.timestamp())


def text_of(month: int) -> str:
    """Return 202611 as `2026-11`."""
    return f"{month // 100:04d}-{month % 100:02d}"


def is_closed(month: int, now_ms: int) -> bool:
    """Return whether a month takes no more rows."""
    return bounds_of(month)[1] + SETTLING_MS <= now_ms


def is_final(month: int, now_ms: int) -> bool:
    """Return whether an invoice that is made now is final: the last row of the month has been committed."""
    return is_closed(month, now_ms - COMMIT_MS)


def booked_ms_of(opened_ms: int, now_ms: int) -> int:
    """Return the moment that decides on a record's month: its opening, or now where that month is closed."""
    return now_ms if is_closed(month_of(opened_ms), now_ms) else opened_ms


def day_begin_ms(day: date, zone: tzinfo) -> int:
    """Return the moment at which a day begins in a zone."""
    return int(1000 * datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())


def day_of(moment_ms: int, zone: tzinfo) -> date:
    """Return the day of a moment in a zone."""
    return datetime.fromtimestamp(moment_ms / 1000, zone).date()


def offsets_of(zone: tzinfo, begin_ms: int, end_ms: int) -> list[tuple[int, int]]:
    """Return the offsets of a zone from UTC over [begin_ms, end_ms), each as (first moment, milliseconds).

    The first moment of the first one is `begin_ms`. A zone changes its offset at a whole second.
    """
    found = [(begin_ms, _offset_ms(zone, begin_ms))]
    for moment_ms in (*range(begin_ms + DAY_MS, end_ms, DAY_MS), end_ms):
        if _offset_ms(zone, moment_ms) != found[-1][1]:
            found.append((_change(zone, max(begin_ms, moment_ms - DAY_MS), moment_ms), _offset_ms(zone, moment_ms)))
    return found


def _change(zone: tzinfo, before_ms: int, after_ms: int) -> int:
    """Return the first second in (before_ms, after_ms] that has the offset of `after_ms`."""
    wanted = _offset_ms(zone, after_ms)
    low, high = before_ms // 1000, -(-after_ms // 1000)
    while high - low > 1:
        middle = (low + high) // 2
        if _offset_ms(zone, 1000 * middle) == wanted:
            high = middle
        else:
            low = middle
    return 1000 * high


def _offset_ms(zone: tzinfo, moment_ms: int) -> int:
    offset = datetime.fromtimestamp(moment_ms / 1000, zone).utcoffset() or timedelta()
    return offset // timedelta(milliseconds=1)
