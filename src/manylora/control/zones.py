"""Periods of a stated time zone: days and months as half-open intervals, also where the clock is put forward."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from functools import cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from manylora.control.calendar import FIRST_YEAR, LAST_YEAR
from manylora.errors import InvalidParameter

DEFAULT_ZONE = "UTC"
MAX_ZONE = 64


class PeriodKind(StrEnum):
    """The length of a period."""

    DAY = "day"
    MONTH = "month"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZonedPeriod:
    """A half-open interval [begin_ms, end_ms) in milliseconds since 1970."""

    begin_ms: int
    end_ms: int


@cache
def zone_of(name: str) -> ZoneInfo:
    """Return a time zone of IANA's database. Raise `InvalidParameter` for an unknown name."""
    try:
        if not 0 < len(name) <= MAX_ZONE or name.startswith(("/", ".")):
            raise ValueError(name)
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidParameter(
            f"`zone` must be a name of IANA's time zones, such as UTC or Europe/Berlin. Given: {name[:MAX_ZONE]!r}",
            parameter="zone",
        ) from error


def period_at(kind: PeriodKind, zone: str, moment_ms: int) -> ZonedPeriod:
    """Return the day or month of a zone that a moment lies in."""
    day = datetime.fromtimestamp(moment_ms / 1000, zone_of(zone)).date()
    begin = day.replace(day=1) if kind is PeriodKind.MONTH else day
    return ZonedPeriod(begin_ms=_midnight_ms(begin, zone), end_ms=_midnight_ms(_next(kind, begin), zone))


def month_in(zone: str, month: int) -> ZonedPeriod:
    """Return a month, 202611, of a zone."""
    year, number = divmod(month, 100)
    assert FIRST_YEAR <= year <= LAST_YEAR, "`parse_month` has checked it"
    begin = date(year, number, 1)
    return ZonedPeriod(begin_ms=_midnight_ms(begin, zone), end_ms=_midnight_ms(_next(PeriodKind.MONTH, begin), zone))


def iso_in(moment_ms: int, zone: str) -> str:
    """Return a moment as ISO 8601 with the offset of a zone: `2026-11-01T00:00:00+01:00`."""
    return datetime.fromtimestamp(moment_ms / 1000, zone_of(zone)).isoformat(timespec="seconds")


def _next(kind: PeriodKind, begin: date) -> date:
    if kind is PeriodKind.DAY:
        return begin + timedelta(days=1)
    return date(begin.year + begin.month // 12, begin.month % 12 + 1, 1)


def _midnight_ms(day: date, zone: str) -> int:
    """Return the first moment of a day; where the clock skips midnight, the moment after the gap."""
    return int(1000 * datetime(day.year, day.month, day.day, tzinfo=zone_of(zone)).timestamp())
