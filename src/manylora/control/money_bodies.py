"""The forms of prices, usage, credits and corrections, as pydantic models."""

from typing import Annotated

from pydantic import BaseModel, Field

from manylora.control.bodies import Body, iso
from manylora.control.credit import GrantPage
from manylora.control.ledger import MAX_COUNT, MAX_REASON
from manylora.control.prices import MOST_NANOUSD
from manylora.control.usage_queries import UsageSum
from manylora.tenancy import PriceFacts

Nanousd = Annotated[int, Field(ge=0, le=MOST_NANOUSD)]
Tokens = Annotated[int, Field(ge=-MAX_COUNT, le=MAX_COUNT)]
Base = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]


class PriceBody(BaseModel):
    """Nano-dollars a token, prompt and completion."""

    base: str
    version: int
    effective: str
    input_nanousd: int
    output_nanousd: int

    @staticmethod
    def of(price: PriceFacts) -> "PriceBody":
        return PriceBody(
            base=price.base,
            version=price.version,
            effective=iso(price.effective_ms),
            input_nanousd=price.input_nanousd,
            output_nanousd=price.output_nanousd,
        )


class PriceList(BaseModel):
    prices: list[PriceBody]


class NewPrice(Body):
    """In force from now on, or `effective_in_s` seconds later."""

    base: Base
    input_nanousd: Nanousd
    output_nanousd: Nanousd
    effective_in_s: Annotated[float, Field(ge=0, le=10 * 366 * 86400)] = 0.0


class UsageBody(BaseModel):
    """`names`: what the rows have in common, in the order of `by`."""

    names: list[str | None]
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    charged_prompt_tokens: int
    charged_completion_tokens: int
    cost_nanousd: int

    @staticmethod
    def of(usage: UsageSum) -> "UsageBody":
        return UsageBody(
            **{name: getattr(usage, name) for name in UsageBody.model_fields if name != "names"},
            names=list(usage.names),
        )


class UsageReport(BaseModel):
    begin: str
    end: str
    by: list[str]
    usage: list[UsageBody]


class LedgerBody(BaseModel):
    """Rows as they are in the ledger, newest first; `before`: give it for those that follow."""

    rows: list[dict[str, str | int | None]]
    before: int | None


class GrantBody(BaseModel):
    """One grant of credit; below zero it took away."""

    id: str
    nanousd: int
    reason: str
    created: str


class GrantList(BaseModel):
    """The newest first; `before`: give it for those that follow."""

    credits: list[GrantBody]
    before: int | None

    @staticmethod
    def of(page: GrantPage) -> "GrantList":
        grants = [
            GrantBody(id=grant.id, nanousd=grant.nanousd, reason=grant.reason, created=iso(grant.created_ms))
            for grant in page.grants
        ]
        return GrantList(credits=grants, before=page.before)


class NewCorrection(Body):
    """Tokens added to, or below zero taken from, what a row charges; the same `id` is refused."""

    id: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00]*$")]
    corrects: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00]*$")]
    reason: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_REASON,
            pattern=r"^[^\x00]*[^\s\x00][^\x00]*$",
            description="What for, as it stays in the books and on the invoice.",
        ),
    ]
    prompt_tokens: Tokens = 0
    completion_tokens: Tokens = 0


class Corrected(BaseModel):
    """author: the id of the key that asked for it, or `admin`."""

    id: str
    corrects: str
    reason: str
    author: str
