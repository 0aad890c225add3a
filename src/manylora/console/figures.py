"""Figures of the pages as text: money, counts, bytes, durations, and moments in a time zone."""

import re
from datetime import UTC, datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

from manylora.money import NANO, dollars

UNITS = ("B", "KB", "MB", "GB", "TB")
STEP = 1000
TENTH_BELOW = 100
US_OF_MS, US_OF_S = 1_000, 1_000_000
PER_TOKENS = 1000
HOUR_S = 3600
AGES = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
"""Units of the time since a moment, in seconds."""
NONE = "–"
MOST_DIGITS = 12
"""Digits before the point in a form: longer numbers fit no column, and the time to read one grows with its size."""
_AMOUNT = re.compile(rf"-?(?:[0-9]{{1,{MOST_DIGITS}}}(?:\.[0-9]{{0,9}})?|\.[0-9]{{1,9}})")
_HOURS = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,3})?")
_WHOLE = re.compile(rf"[0-9]{{1,{MOST_DIGITS}}}")


def money(nanousd: int | None) -> str:
    """Return an exact amount in dollars."""
    return NONE if nanousd is None else dollars(nanousd)


def count(number: int | None) -> str:
    return NONE if number is None else f"{number:,}"


def size(num_bytes: int | None) -> str:
    """Return bytes in the largest decimal unit that leaves a whole part."""
    if num_bytes is None:
        return NONE
    value, unit = float(num_bytes), 0
    while value >= STEP and unit < len(UNITS) - 1:
        value, unit = value / STEP, unit + 1
    return f"{value:.1f} {UNITS[unit]}" if unit and value < TENTH_BELOW else f"{value:.0f} {UNITS[unit]}"


def duration(micros: int | None) -> str:
    """Return microseconds as milliseconds or seconds."""
    if micros is None:
        return NONE
    return f"{micros / US_OF_S:.2f} s" if micros >= US_OF_S else f"{micros / US_OF_MS:.0f} ms"


def ago(seconds: float | None) -> str:
    """Return the time since a moment in its largest whole unit, such as `5 min ago`."""
    if seconds is None:
        return NONE
    unit, name = next(((unit, name) for unit, name in AGES if seconds >= unit), AGES[-1])
    return f"{int(seconds / unit)} {name} ago"


def moment(text: str | None, zone: str = "UTC") -> str:
    """Return an ISO 8601 moment of the API to the minute, in a time zone."""
    if not text:
        return NONE
    local = datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(ZoneInfo(zone))
    return f"{local:%Y-%m-%d %H:%M}"


def moment_of_ms(moment_ms: int | None, zone: str = "UTC") -> str:
    """Return milliseconds since 1970 to the second, in a time zone."""
    if moment_ms is None:
        return NONE
    return f"{datetime.fromtimestamp(moment_ms / 1000, UTC).astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M:%S}"


def nanousd_of(text: str) -> int:
    """Return an amount in dollars as nano-dollars. Raise `ValueError` with a message for the visitor."""
    plain = text.replace(",", "").strip().removeprefix("$").strip()
    if not _AMOUNT.fullmatch(plain):
        raise ValueError(
            f"an amount is dollars, such as 25 or 0.5, of at most {MOST_DIGITS} digits and nine decimals. "
            f"Given: {text[:40]!r}"
        )
    return int(Decimal(plain) * NANO)


def whole_number(text: str, what: str) -> int:
    """Return a whole number of a form. Raise `ValueError` with a message for the visitor; `what` names the number."""
    plain = text.replace(",", "").strip().removesuffix("%").strip()
    if not _WHOLE.fullmatch(plain):
        raise ValueError(f"{what} is a whole number of at most {MOST_DIGITS} digits. Given: {text[:40]!r}")
    return int(plain)


def price_of_token(text: str) -> int:
    """Return nano-dollars a token of a price in dollars for 1,000 tokens. Raise `ValueError` for the visitor."""
    price, rest = divmod(nanousd_of(text), PER_TOKENS)
    if rest:
        raise ValueError(f"a price of 1,000 tokens has at most six decimals. Given: {text[:40]!r}")
    return price


def hours_in_s(text: str) -> float:
    """Return hours of a form as seconds. Raise `ValueError` with a message for the visitor."""
    plain = text.strip() or "0"
    if not _HOURS.fullmatch(plain):
        raise ValueError(f"a begin is a number of hours from now, such as 0.5 or 24. Given: {text[:40]!r}")
    return HOUR_S * float(plain)
