"""The cost of a load by the token and on dedicated hardware, in whole nano-dollars and exact fractions."""

from dataclasses import dataclass
from fractions import Fraction

from manylora import money

DAYS_PER_MONTH = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The requests of a day, each with the same number of prompt and completion tokens."""

    requests_per_day: int
    prompt_tokens: int
    completion_tokens: int

    @property
    def tokens_per_day(self) -> int:
        return self.requests_per_day * (self.prompt_tokens + self.completion_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrice:
    """Prices of a prompt token and a completion token, in nano-dollars."""

    input_nanousd: int
    output_nanousd: int

    def of(self, load: Load) -> int:
        """Return the price of one request in nano-dollars."""
        return load.prompt_tokens * self.input_nanousd + load.completion_tokens * self.output_nanousd


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A dedicated machine: its price an hour in nano-dollars, and the hours a day that it runs."""

    name: str
    hourly_nanousd: int
    hours_per_day: Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The costs of a load by the token and on a dedicated machine.

    ratio                 dedicated ÷ serverless; None if serverless is free
    break_even_requests   requests a day from which dedicated hardware is no dearer; None if it never is
    """

    serverless_day_nanousd: int
    dedicated_day_nanousd: Fraction
    ratio: Fraction | None
    break_even_requests: int | None

    @property
    def serverless_month_nanousd(self) -> int:
        return DAYS_PER_MONTH * self.serverless_day_nanousd

    @property
    def dedicated_month_nanousd(self) -> Fraction:
        return DAYS_PER_MONTH * self.dedicated_day_nanousd


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The measured throughput of one machine: requests a second, and the tokens of each."""

    requests_per_s: Fraction
    requests_per_day: int
    machine_nanousd_per_token: Fraction


def compare(load: Load, price: TokenPrice, hardware: Hardware) -> Comparison:
    """Return the serverless and the dedicated cost of a load, for a day and for a month of 30 days."""
    each = price.of(load)
    serverless = each * load.requests_per_day
    dedicated = hardware.hourly_nanousd * hardware.hours_per_day
    return Comparison(
        serverless_day_nanousd=serverless,
        dedicated_day_nanousd=dedicated,
        ratio=dedicated / serverless if serverless else None,
        break_even_requests=_ceiling(dedicated / each) if each else None,
    )


def capacity(load: Load, hardware: Hardware, requests_per_s: Fraction) -> Capacity:
    """Return the cost of a measured throughput, on a machine that runs as long as the hardware does."""
    seconds = hardware.hours_per_day * 3600
    requests = requests_per_s * seconds
    tokens = requests * (load.prompt_tokens + load.completion_tokens)
    day = hardware.hourly_nanousd * hardware.hours_per_day
    return Capacity(
        requests_per_s=requests_per_s,
        requests_per_day=int(requests),
        machine_nanousd_per_token=day / tokens if tokens else Fraction(0),
    )


def dollars(nanousd: Fraction | int, decimals: int = 2) -> str:
    """Return nano-dollars as dollars, rounded half to even: `$1,234.50`."""
    return money.dollars(money.rounded(nanousd, decimals), least_decimals=decimals)


def _ceiling(value: Fraction) -> int:
    return -(-value.numerator // value.denominator)
