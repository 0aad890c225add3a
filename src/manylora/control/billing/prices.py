"""Prices of base models, in versions: past usage is never repriced. A fine-tune costs the same as its base."""

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import Row, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.storage.revisions import next_revision
from manylora.control.storage.tables import prices
from manylora.control.tenants.limits import nearest
from manylora.errors import InvalidParameter
from manylora.models.fetch.known_bases import KNOWN_BASES, PriceClass
from manylora.tenancy import PriceFacts, price_at

SHIPPED_NANOUSD: Mapping[PriceClass, int] = {PriceClass.FREE: 0, PriceClass.B7: 200}
"""The price of a token, prompt and completion alike: $0.0002 per 1,000 in the 7B class. Operators set the others."""
MOST_NANOUSD = 10**9
"""One dollar for each token; a higher price is taken for a mistake."""


async def set_price(
    connection: AsyncConnection,
    base: str,
    *,
    input_nanousd: int,
    output_nanousd: int,
    effective_ms: int,
    now_ms: int,
    cached_input_nanousd: int | None = None,
) -> PriceFacts:
    """Add a version that holds from `effective_ms` on. Default of `cached_input_nanousd`: `input_nanousd`.

    Raises `InvalidParameter` for a moment in the past or before the last version's, or an amount out of range.
    """
    cached = check_amounts(input_nanousd, output_nanousd, cached_input_nanousd)
    if not base or len(base) > 200:
        raise InvalidParameter("`base` must have 1 to 200 characters", parameter="base")
    revision = await next_revision(connection)  # from here on no other transaction adds a version
    known = await price_versions(connection, base)
    earliest_ms = max([now_ms, *(price.effective_ms for price in known)])
    if effective_ms < earliest_ms:
        raise InvalidParameter(
            f"`effective_ms` must be at least {earliest_ms}: past usage is never repriced. Given: {effective_ms}",
            parameter="effective_ms",
        )
    price = PriceFacts(
        base=base,
        version=len(known) + 1,
        effective_ms=effective_ms,
        input_nanousd=input_nanousd,
        output_nanousd=output_nanousd,
        cached_input_nanousd=cached,
    )
    await _insert(connection, price, revision)
    return price


def check_amounts(input_nanousd: int, output_nanousd: int, cached_input_nanousd: int | None) -> int:
    """Return the price of a cached prompt token. Raise `InvalidParameter` for an amount out of range."""
    for name, amount in (("input_nanousd", input_nanousd), ("output_nanousd", output_nanousd)):
        if not 0 <= amount <= MOST_NANOUSD:
            raise InvalidParameter(f"`{name}` must be 0 to {MOST_NANOUSD}. Given: {amount}", parameter=name)
    cached = input_nanousd if cached_input_nanousd is None else cached_input_nanousd
    if not 0 <= cached <= input_nanousd:
        raise InvalidParameter(
            f"`cached_input_nanousd` must be 0 to {input_nanousd}, the price of a prompt token that is not cached. "
            f"Given: {cached}",
            parameter="cached_input_nanousd",
        )
    return cached


async def price_versions(connection: AsyncConnection, base: str | None = None) -> list[PriceFacts]:
    """Return the price versions of a base, or of all bases, in their order."""
    asked = select(prices).order_by(prices.c.base, prices.c.version)
    if base is not None:
        asked = asked.where(prices.c.base == base)
    return [_price(row) for row in (await connection.execute(asked)).all()]


def in_force(versions: Sequence[PriceFacts], now_ms: int) -> dict[str, PriceFacts]:
    """Return the price in force of each base that has one."""
    found = {base: price_at(versions, base, now_ms) for base in {price.base for price in versions}}
    return {base: price for base, price in found.items() if price is not None}


async def require_known_base(connection: AsyncConnection, base: str, served: Collection[str]) -> None:
    """Raise `InvalidParameter` for a base model that is not served here and has no price: probably a misspelt name."""
    if base in served or await price_versions(connection, base):
        return
    raise InvalidParameter(
        f"no server here serves the base model `{base[:80]}`; the nearest served one is `{nearest(base, served)}`. A "
        "price of a base that is yet to be served needs `force` (`manylora prices set --force`)",
        parameter="base",
    )


async def changed_prices(connection: AsyncConnection, since: int) -> tuple[PriceFacts, ...]:
    """Return the versions added after a revision."""
    rows = (await connection.execute(select(prices).where(prices.c.revision > since))).all()
    return tuple(_price(row) for row in rows)


async def ship_defaults(connection: AsyncConnection) -> None:
    """Insert the default prices at the first start, in force since 1970: the 7B class, and a free default base."""
    if await price_versions(connection):
        return
    revision = await next_revision(connection)
    for known in KNOWN_BASES:
        if (nanousd := SHIPPED_NANOUSD.get(known.price_class)) is None:
            continue
        price = PriceFacts(base=known.name, version=1, effective_ms=0, input_nanousd=nanousd, output_nanousd=nanousd)
        await _insert(connection, price, revision)


async def _insert(connection: AsyncConnection, price: PriceFacts, revision: int) -> None:
    await connection.execute(
        insert(prices).values(
            base=price.base,
            version=price.version,
            effective_ms=price.effective_ms,
            input_nanousd=price.input_nanousd,
            output_nanousd=price.output_nanousd,
            cached_input_nanousd=price.cached_nanousd,
            revision=revision,
        )
    )


def _price(row: Row[tuple[object, ...]]) -> PriceFacts:
    return PriceFacts(
        base=row.base,
        version=row.version,
        effective_ms=row.effective_ms,
        input_nanousd=row.input_nanousd,
        output_nanousd=row.output_nanousd,
        cached_input_nanousd=row.cached_input_nanousd,
    )
