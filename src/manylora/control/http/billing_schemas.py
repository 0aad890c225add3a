"""JSON of prices, usage, credits and corrections, as pydantic models."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import BaseModel, Field

from manylora.control.billing.ledger import MAX_COUNT, MAX_REASON
from manylora.control.billing.prices import MOST_NANOUSD
from manylora.control.http.schemas import RequestBody, iso
from manylora.control.tenants.credit import GrantPage
from manylora.money import dollars
from manylora.tenancy import PriceFacts

Nanousd = Annotated[int, Field(ge=0, le=MOST_NANOUSD)]
Tokens = Annotated[int, Field(ge=-MAX_COUNT, le=MAX_COUNT)]
Base = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]


class PriceBody(BaseModel):
    """A price in nano-dollars for one token: prompt, cached prompt, completion; valid from `effective` on."""

    base: str
    version: int
    effective: str
    input_nanousd: int
    cached_input_nanousd: int
    output_nanousd: int
    is_in_force: bool

    @staticmethod
    def of(price: PriceFacts, current: PriceFacts | None) -> "PriceBody":
        """Return a version; `current` is the version of its base in force."""
        return PriceBody(
            base=price.base,
            version=price.version,
            effective=iso(price.effective_ms),
            input_nanousd=price.input_nanousd,
            cached_input_nanousd=price.cached_nanousd,
            output_nanousd=price.output_nanousd,
            is_in_force=price == current,
        )


class PriceList(BaseModel):
    prices: list[PriceBody]

    @staticmethod
    def of(prices: Sequence[PriceFacts], current: Mapping[str, PriceFacts]) -> "PriceList":
        """Return versions; `current` has the version in force of each base."""
        return PriceList(prices=[PriceBody.of(price, current.get(price.base)) for price in prices])


class DollarPrices(BaseModel):
    """Prices in dollars for 1,000 tokens, exact."""

    input: str
    cached_input: str
    output: str


class OfferedPrice(BaseModel):
    """Price of one base model and of all its adapters from a moment on; `version` null: free."""

    base: str
    version: int | None
    effective: str | None
    is_in_force: bool
    input_nanousd: int
    cached_input_nanousd: int
    output_nanousd: int
    usd_per_1000_tokens: DollarPrices

    @staticmethod
    def all_of(base: str, versions: Sequence[PriceFacts], current: PriceFacts | None) -> "list[OfferedPrice]":
        """Return the price in force, then the later versions."""
        later = [price for price in versions if current is None or price.version > current.version]
        now = OfferedPrice.of(base, current, is_in_force=True)
        return [now, *(OfferedPrice.of(base, price, is_in_force=False) for price in later)]

    @staticmethod
    def of(base: str, price: PriceFacts | None, *, is_in_force: bool) -> "OfferedPrice":
        amounts = (0, 0, 0) if price is None else (price.input_nanousd, price.cached_nanousd, price.output_nanousd)
        texts = [dollars(1000 * amount, symbol="", grouping="") for amount in amounts]
        return OfferedPrice(
            base=base,
            version=None if price is None else price.version,
            effective=None if price is None else iso(price.effective_ms),
            is_in_force=is_in_force,
            input_nanousd=amounts[0],
            cached_input_nanousd=amounts[1],
            output_nanousd=amounts[2],
            usd_per_1000_tokens=DollarPrices(input=texts[0], cached_input=texts[1], output=texts[2]),
        )


class Offer(BaseModel):
    """Prices of the served base models: for each the price in force, then announced ones.

    `deployment_hourly_nanousd`: of an hour of one replica of a dedicated deployment that is made or changed now.
    """

    prices: list[OfferedPrice]
    deployment_hourly_nanousd: int


class NewPrice(RequestBody):
    """A new price, valid from now on or after `effective_in_s` seconds; a base that is not served needs `force`."""

    base: Base
    input_nanousd: Nanousd
    cached_input_nanousd: Annotated[
        Nanousd | None,
        Field(description="Price of a prompt token from the prefix cache; default: that of any prompt token."),
    ] = None
    output_nanousd: Nanousd
    force: bool = False
    effective_in_s: Annotated[float, Field(ge=0, le=10 * 366 * 86400)] = 0.0


class UsageBody(BaseModel):
    """Sums of rows with the same `names`, which are in the order of `by`.

    `…_nanousd` are the price of each token where all rows have the same, else null; then
    (charged_prompt - charged_cached) × input + charged_cached × cached_input + charged_completion × output is the cost.
    """

    names: list[str | None]
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


class UsageReport(BaseModel):
    """A page of sums in the order of `by`. `next`: the `after` of the next page; null on the last page.

    `begin` and `end` are moments in UTC; the column `day` is in the `zone`.
    """

    begin: str
    end: str
    zone: str
    by: list[str]
    usage: list[UsageBody]
    has_more: bool
    next: str | None


class ActivityBody(BaseModel):
    """A tenant's requests of one day: sums, failures, and waits for adapters that were not in memory.

    `…_us` are microseconds, null where there was none. The counts are those of the usage.
    """

    begin: str
    end: str
    zone: str
    requests: int
    charged_tokens: int
    cost_nanousd: int
    failures: int
    cold_starts: int
    cold_p50_us: int | None
    cold_p99_us: int | None
    first_token_p50_us: int | None
    first_token_p99_us: int | None


class LedgerBody(BaseModel):
    """Rows of the ledger, newest first. `before`: the `before` of the next page; null on the last page."""

    rows: list[dict[str, str | int | bool | None]]
    has_more: bool
    before: int | None


class GrantBody(BaseModel):
    """One grant of credit; a negative amount was taken away."""

    id: str
    nanousd: int
    reason: str
    created: str


class GrantList(BaseModel):
    """Grants, the newest first. `before`: the `before` of the next page; null on the last page."""

    credits: list[GrantBody]
    before: int | None

    @staticmethod
    def of(page: GrantPage) -> "GrantList":
        grants = [
            GrantBody(id=grant.id, nanousd=grant.nanousd, reason=grant.reason, created=iso(grant.created_ms))
            for grant in page.grants
        ]
        return GrantList(credits=grants, before=page.before)


class NewCorrection(RequestBody):
    """Tokens to charge in addition to a row, or to give back by negative counts. A repeated `id` changes nothing."""

    id: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00]*$")]
    corrects: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00]*$")]
    reason: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_REASON,
            pattern=r"^[^\x00]*[^\s\x00][^\x00]*$",
            description="The reason, as the ledger and the invoice show it.",
        ),
    ]
    prompt_tokens: Tokens = 0
    cached_tokens: Annotated[
        Tokens | None, Field(description="Part of `prompt_tokens` at the cached price. Default: as few as possible.")
    ] = None
    completion_tokens: Tokens = 0


class Corrected(BaseModel):
    """A correction. author: the id of the key that ordered it, or `admin`."""

    id: str
    corrects: str
    reason: str
    author: str
