"""Money: the price of tokens in whole nano-dollars, and the one function that turns an amount into text."""

from fractions import Fraction

NANO = 1_000_000_000
"""Nano-dollars in a dollar."""
NANO_DIGITS = 9
CENT_NANOUSD = NANO // 100


def cost_nanousd(
    *,
    prompt_tokens: int,
    cached_tokens: int,
    completion_tokens: int,
    input_nanousd: int,
    cached_input_nanousd: int,
    output_nanousd: int,
) -> int:
    """Return the exact nano-dollars of a request, a ledger row or a correction.

    Args:  cached_tokens  the part of `prompt_tokens` that came from the prefix cache; counts may be below zero
           …_nanousd      the price of one token
    """
    uncached = (prompt_tokens - cached_tokens) * input_nanousd
    return uncached + cached_tokens * cached_input_nanousd + completion_tokens * output_nanousd


def dollars(nanousd: int, *, symbol: str = "$", grouping: str = ",", least_decimals: int = 2) -> str:
    """Return nano-dollars as dollars, exactly: `$1,234.50`, `-$0.0000002`.

    Args:  grouping        text between thousands; empty: nothing
           least_decimals  digits behind the point that stay although they are zero; 0 writes `$25`
    """
    whole, rest = divmod(abs(nanousd), NANO)
    digits = f"{rest:0{NANO_DIGITS}d}".rstrip("0").ljust(least_decimals, "0")
    amount = f"{whole:,}".replace(",", grouping)
    return f"{'-' if nanousd < 0 else ''}{symbol}{amount}{'.' if digits else ''}{digits}"


def rounded(nanousd: Fraction | int, decimals: int = 2) -> int:
    """Return the nearest amount with `decimals` decimals, in nano-dollars. A half goes to the even one."""
    unit: int = NANO // 10**decimals
    return round(Fraction(nanousd) / unit) * unit
