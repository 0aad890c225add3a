"""UTC months: their bounds in milliseconds since 1970, and the month of a ledger row."""

import re
from datetime import UTC, datetime

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
