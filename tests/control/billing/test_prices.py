"""Prices: what customers are shown, which bases may have one, cached prompt tokens, and price × tokens = cost."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, select

from manylora.config.groups.model import DEFAULT_BASE
from manylora.control.billing.ledger import insert_records
from manylora.control.storage.tables import ledger
from manylora.tenancy import PriceFacts, Snapshot
from manylora.usage import UsageRecord
from tests.control.plane import EDGE_TOKEN, Plane, record, standing_plane

EDGE = {"authorization": f"Bearer {EDGE_TOKEN}"}
MINE = {"base": "mine", "input_nanousd": 200, "cached_input_nanousd": 20, "output_nanousd": 300}


async def put(plane: Plane, **changes: Any) -> dict[str, Any]:
    reply = await plane.call("POST", "/admin/prices", MINE | {"force": True} | changes)
    assert reply.status_code == 201, reply.text
    price: dict[str, Any] = reply.json()
    return price


def used(number: int, plane: Plane, **changes: Any) -> UsageRecord:
    values: dict[str, Any] = {"base": "mine", "opened_ms": plane.control.now_ms()} | changes
    return record(number, **values)


def test_customers_see_the_prices_of_the_served_bases_without_a_key(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await put(plane, base=DEFAULT_BASE)
        await put(plane, base=DEFAULT_BASE, effective_in_s=60, input_nanousd=400)
        reply = await plane.call("GET", "/v1/prices", key=None)
        assert reply.status_code == 200
        now, later = reply.json()["prices"]
        assert reply.json()["deployment_hourly_nanousd"] == plane.control.config.placement.hourly_nanousd
        assert now == {
            "base": DEFAULT_BASE,
            "version": 2,
            "effective": "2023-11-14T22:30:00.000Z",
            "is_in_force": True,
            "input_nanousd": 200,
            "cached_input_nanousd": 20,
            "output_nanousd": 300,
            "usd_per_1000_tokens": {"input": "0.0002", "cached_input": "0.00002", "output": "0.0003"},
        }
        assert (later["version"], later["is_in_force"], later["input_nanousd"]) == (3, False, 400)
        plane.clock.advance(60)
        (now,) = (await plane.call("GET", "/v1/prices", key=None)).json()["prices"]
        assert (now["version"], now["is_in_force"]) == (3, True)

    run(scenario)


def test_bases_of_the_edges_that_ask_are_served_and_free_ones_cost_nothing(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await put(plane)
        await put(plane, base="house")
        await plane.client.get("/internal/snapshot?base=mine", headers=EDGE)
        prices = (await plane.call("GET", "/v1/prices", key=None)).json()["prices"]
        assert {price["base"]: (price["version"], price["input_nanousd"]) for price in prices} == {
            DEFAULT_BASE: (1, 0),
            "house": (None, 0),
            "mine": (1, 200),
        }
        only = (await plane.call("GET", "/v1/prices?base=mine", key=None)).json()["prices"]
        assert [price["base"] for price in only] == ["mine"]
        plane.clock.advance(3600)
        prices = (await plane.call("GET", "/v1/prices", key=None)).json()["prices"]
        assert "mine" not in [price["base"] for price in prices]

    run(scenario, settings={"control.free_bases": ["house"]})


def test_a_base_that_nobody_serves_has_a_price_only_by_force(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        refused = await plane.call("POST", "/admin/prices", MINE | {"base": f"Hub/{DEFAULT_BASE}"})
        assert refused.status_code == 422
        assert f"the nearest served one is `{DEFAULT_BASE}`" in refused.json()["error"]
        assert (await plane.call("GET", "/admin/prices?base=mine")).json()["prices"] == []
        await put(plane, base=DEFAULT_BASE, force=False)
        await put(plane, base="Mistral-7b-instruct", force=False)  # it has a price already
        await plane.client.get("/internal/snapshot?base=mine", headers=EDGE)
        await put(plane, force=False)

    run(scenario)


def test_the_list_marks_the_version_in_force(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        for seconds in (0, 10, 20):
            await put(plane, effective_in_s=seconds)
        for version in (1, 2, 3):
            listed = (await plane.call("GET", "/admin/prices?base=mine")).json()["prices"]
            assert [price["version"] for price in listed if price["is_in_force"]] == [version]
            plane.clock.advance(10)

    run(scenario)


@pytest.mark.parametrize("cached", [-1, 201, 1.5, "1"])
def test_a_cached_token_costs_no_more_than_any_other(run: Callable[..., None], cached: object) -> None:
    async def scenario(plane: Plane) -> None:
        refused = await plane.call("POST", "/admin/prices", MINE | {"force": True, "cached_input_nanousd": cached})
        assert refused.status_code == 422
        assert "cached_input_nanousd" in refused.json()["error"]

    run(scenario)


def test_without_a_cached_price_a_cached_token_costs_what_any_other_does(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        made = await put(plane, cached_input_nanousd=None)
        assert made["cached_input_nanousd"] == 200

    run(scenario)


def test_edges_are_told_the_cached_price_and_an_older_control_plane_tells_none(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await put(plane)
        told = await plane.client.get("/internal/snapshot", headers=EDGE)
        (price,) = [each for each in msgspec.json.decode(told.content, type=Snapshot).prices if each.base == "mine"]
        assert price.cost_nanousd(prompt_tokens=10, cached_tokens=4, completion_tokens=1) == 6 * 200 + 4 * 20 + 300
        older = {"base": "mine", "version": 1, "effective_ms": 0, "input_nanousd": 200, "output_nanousd": 300}
        price = msgspec.json.decode(msgspec.json.encode(older), type=PriceFacts)
        assert price.cost_nanousd(prompt_tokens=10, cached_tokens=4, completion_tokens=1) == 10 * 200 + 300

    run(scenario)


@pytest.mark.parametrize(("told", "cached"), [({}, 40), ({"charged_cached_tokens": 7}, 7)])
def test_records_of_an_older_edge_are_charged_by_their_count_of_cached_tokens(
    run: Callable[..., None], told: dict[str, int], cached: int
) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await put(plane)
        body = msgspec.to_builtins(used(1, plane, cached_tokens=40))
        del body["charged_cached_tokens"]
        shipped = await plane.client.post("/internal/usage", json={"records": [body | told]}, headers=EDGE)
        assert shipped.status_code == 200, shipped.text
        (row,) = (await plane.call("GET", "/v1/account/ledger", key=key)).json()["rows"]
        assert (row["charged_cached_tokens"], row["cached_input_nanousd"]) == (cached, 20)
        assert row["cost_nanousd"] == (100 - cached) * 200 + cached * 20 + 10 * 300

    run(scenario)


COUNTS = ("charged_prompt_tokens", "charged_cached_tokens", "charged_completion_tokens")
MONTH = "2023-11"
PRICES = ("input_nanousd", "cached_input_nanousd", "output_nanousd")
LOADS = st.lists(
    st.tuples(
        st.sampled_from(["mine", "yours"]),
        st.integers(0, 1000),
        st.integers(0, 1000),
        st.integers(0, 99),
        st.sampled_from([0, 0, 1]),
        st.integers(0, 300),
    ),
    min_size=1,
    max_size=8,
)
"""(base, charged prompt tokens, cached ones, completion tokens, is the price then changed, what is given back)"""


@pytest.mark.parametrize("examples", [4, pytest.param(10, marks=pytest.mark.long)])
def test_price_times_charged_tokens_is_the_cost_of_every_line(url: URL, tmp_path: Path, examples: int) -> None:
    """Of rows, of sums of usage, and of the invoice: the same numbers, corrections and all."""
    numbers = itertools.count()
    with standing_plane(url, tmp_path) as (runner, plane):

        @settings(max_examples=examples, deadline=None, derandomize=True)
        @given(LOADS)
        def law(load: list[tuple[str, int, int, int, int, int]]) -> None:
            runner.run(lines_are_exact(plane, f"t-{next(numbers)}", load))

        law()


async def lines_are_exact(plane: Plane, tenant: str, load: list[tuple[str, int, int, int, int, int]]) -> None:
    key = await plane.new_tenant(tenant)
    for name in ("mine", "yours"):
        await put(plane, base=f"{tenant}-{name}")
    for number, (name, prompt, cached, completion, is_changed, back) in enumerate(load):
        base, counts = f"{tenant}-{name}", dict(zip(COUNTS, (prompt, min(cached, prompt), completion), strict=True))
        row = used(number, plane, id=f"{tenant}-{number}", tenant=tenant, base=base, **counts)
        await insert_records(plane.control, [row])
        if back:
            asked = {"id": f"{tenant}-fix-{number}", "corrects": row.id, "prompt_tokens": -back, "reason": "x"}
            reply = await plane.call("POST", "/admin/corrections", asked)
            assert reply.status_code == (201 if back <= prompt else 422)
        if is_changed:
            plane.clock.advance(1)
            await put(plane, base=base, input_nanousd=900 + number, cached_input_nanousd=number)
    rows = (await plane.call("GET", "/v1/account/ledger", key=key)).json()["rows"]
    sums = (await plane.call("GET", "/v1/account/usage?by=base,price", key=key)).json()["usage"]
    for line in [*rows, *sums]:
        (prompt, cached, completion), price = (line[name] for name in COUNTS), [line[name] for name in PRICES]
        assert (prompt - cached) * price[0] + cached * price[1] + completion * price[2] == line["cost_nanousd"]
    invoice = (await plane.call("GET", f"/v1/account/invoices/{MONTH}", key=key)).json()
    totals = {sum(line["cost_nanousd"] for line in lines) for lines in (rows, sums)}
    assert totals == {invoice["total_nanousd"]}
    for line in (await plane.call("GET", "/v1/account/usage?by=base", key=key)).json()["usage"]:
        versions = {row["price_version"] for row in rows if row["base"] == line["names"][0]}
        assert (line["input_nanousd"] is None) == (len(versions) > 1)


@pytest.mark.parametrize(("percent", "prices"), [(50, (101, 10, 150)), (100, (201, 20, 300)), (0, (0, 0, 0))])
def test_a_token_of_a_batch_costs_a_part_of_the_price_in_whole_nano_dollars(
    run: Callable[..., None], percent: int, prices: tuple[int, int, int]
) -> None:
    async def scenario(plane: Plane) -> None:
        await put(plane, input_nanousd=201)
        alone, batch = used(1, plane), used(2, plane, is_batch=True, charged_cached_tokens=3)
        await insert_records(plane.control, [alone, batch])
        asked = select(ledger).order_by(ledger.c.id)
        async with plane.control.database.read() as connection:
            first, second = (await connection.execute(asked)).mappings().all()
        assert (first["input_nanousd"], first["cost_nanousd"]) == (
            201,
            201 * alone.charged_prompt_tokens + 300 * alone.charged_completion_tokens,
        )
        names = ("input_nanousd", "cached_input_nanousd", "output_nanousd")
        assert tuple(second[name] for name in names) == prices
        reply = await plane.client.get("/internal/snapshot?base=mine", headers=EDGE)
        snapshot = msgspec.json.decode(reply.content, type=Snapshot)
        (price,) = (price for price in snapshot.prices if price.base == "mine")
        at_the_edge = price.at_percent(snapshot.batch_price_percent).cost_nanousd(
            prompt_tokens=batch.charged_prompt_tokens,
            cached_tokens=3,
            completion_tokens=batch.charged_completion_tokens,
        )
        assert second["cost_nanousd"] == at_the_edge

    run(scenario, settings={"control.batch_price_percent": percent})
