"""A correction says who made it and why, and belongs to the month in which it is made: months that are over stay."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, func, select

from manylora.control.billing.invoice_forms import FORMATS, render
from manylora.control.billing.invoices import invoice_rows, make_invoice
from manylora.control.billing.ledger import MAX_COUNT, correct, insert_records
from manylora.control.calendar import bounds_of, month_of, text_of
from manylora.control.storage.tables import ledger, spending
from manylora.control.tenants.credit import MOST_NANOUSD, balance_of, lease_credit
from manylora.errors import InvalidParameter, NameTaken
from tests.control.plane import Plane, record, standing_plane

COST = 110 * 200
DAY_S = 86_400.0
MONTH_S = 31 * DAY_S


async def take_back(plane: Plane, record_id: str, correction_id: str, **changes: Any) -> None:
    values: dict[str, Any] = {"prompt_tokens": -100, "completion_tokens": -10, "reason": "twice", "author": "admin"}
    await correct(plane.control, record_id, correction_id=correction_id, **(values | changes))


async def invoice_of(plane: Plane, tenant: str, month: int, form: str = "json") -> bytes:
    async with plane.control.database.read() as connection:
        rows = await invoice_rows(connection, tenant, month)
    return render(make_invoice(tenant, tenant, month, rows, is_preliminary=False), form)


def test_a_correction_says_who_made_it_and_why(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await insert_records(plane.control, [record(1, opened_ms=plane.control.now_ms())])
        asked = {"id": "fix-1", "corrects": "usage-1", "prompt_tokens": -100, "reason": " charged twice\n"}
        made = await plane.call("POST", "/admin/corrections", asked)
        operator = plane.admin_key.split("_")[1]
        assert made.json() == {"id": "fix-1", "corrects": "usage-1", "reason": "charged twice", "author": operator}
        again = await plane.call("POST", "/admin/corrections", asked)
        assert (again.status_code, again.json()) == (201, made.json())

        row = (await plane.call("GET", "/admin/ledger")).json()["rows"][0]
        assert (row["reason"], row["author"], row["finish_reason"]) == ("charged twice", operator, "correction")
        own = (await plane.call("GET", "/v1/account/ledger", key=key)).json()["rows"][0]
        assert own["reason"] == "charged twice"
        assert "author" not in own

    run(scenario)


def test_where_nobody_has_a_key_the_operator_is_admin(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await insert_records(plane.control, [record(1, opened_ms=plane.control.now_ms())])
        asked = {"id": "fix-1", "corrects": "usage-1", "reason": "a gift"}
        assert (await plane.call("POST", "/admin/corrections", asked, key=None)).json()["author"] == "admin"

    run(scenario, is_key_needed=False, client_host="127.0.0.1")


@pytest.mark.parametrize("reason", [None, "", "  \n", "x" * 201, "a\0b", 7])
def test_without_a_reason_nothing_is_corrected(run: Callable[..., None], reason: object) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        await insert_records(plane.control, [record(1, opened_ms=plane.control.now_ms())])
        asked = {"id": "fix-1", "corrects": "usage-1"} | ({} if reason is None else {"reason": reason})
        refused = await plane.call("POST", "/admin/corrections", asked)
        assert refused.status_code == 422
        assert "reason" in refused.json()["error"]
        assert len((await plane.call("GET", "/admin/ledger")).json()["rows"]) == 1

    run(scenario)


def test_what_is_no_correction_is_refused(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await insert_records(plane.control, [record(1, opened_ms=plane.control.now_ms())])
        for wrong in ({"reason": " "}, {"reason": "x" * 201}, {"prompt_tokens": MAX_COUNT}):
            with pytest.raises(InvalidParameter):
                await take_back(plane, "usage-1", "fix-1", **wrong)
        assert MAX_COUNT * 200 > MOST_NANOUSD

    run(scenario)


def test_one_id_corrects_once_however_many_come_at_once(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await insert_records(plane.control, [record(each, opened_ms=plane.control.now_ms()) for each in range(4)])
        tries = (take_back(plane, f"usage-{each % 4}", "fix-1") for each in range(8))
        ends = await asyncio.gather(*tries, return_exceptions=True)
        assert sorted(type(end).__name__ for end in ends) == ["NameTaken"] * 6 + ["NoneType"] * 2
        with pytest.raises(NameTaken):
            await take_back(plane, "usage-0", "usage-1")
        async with plane.control.database.read() as connection:
            assert (await balance_of(connection, "acme", plane.control.now_ms())).charged_nanousd == 3 * COST

    run(scenario)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prompt_tokens": -99}, "prompt_tokens"),
        ({"completion_tokens": -1}, "completion_tokens"),
        ({"cached_tokens": -1}, "cached_tokens"),
        ({"reason": "another"}, "reason"),
        ({"corrects": "usage-2"}, "corrects"),
        ({"corrects": "nothing"}, "corrects"),
    ],
)
def test_the_id_of_a_correction_that_says_otherwise_is_taken(
    run: Callable[..., None], change: dict[str, Any], named: str
) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await insert_records(plane.control, [record(each, opened_ms=plane.control.now_ms()) for each in (1, 2)])
        asked = {"id": "fix-1", "corrects": "usage-1", "prompt_tokens": -100, "reason": "twice"}
        assert (await plane.call("POST", "/admin/corrections", asked)).status_code == 201
        refused = await plane.call("POST", "/admin/corrections", asked | change)
        assert refused.status_code == 409
        assert f"whose `{named}` is" in refused.json()["error"]
        taken = await plane.call("POST", "/admin/corrections", asked | {"id": "usage-2"})
        assert (taken.status_code, "a request's row" in taken.json()["error"]) == (409, True)
        assert len((await plane.call("GET", "/v1/account/ledger", key=key)).json()["rows"]) == 3

    run(scenario)


def test_cached_tokens_are_given_back_at_their_own_price(run: Callable[..., None]) -> None:
    """Without a word of them a correction gives back what cost most; a repeated one is the same either way."""

    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        price = {"base": "mine", "input_nanousd": 10, "cached_input_nanousd": 1, "output_nanousd": 30, "force": True}
        assert (await plane.call("POST", "/admin/prices", price)).status_code == 201
        cached: dict[str, Any] = {"base": "mine", "cached_tokens": 70, "charged_cached_tokens": 70}
        await insert_records(plane.control, [record(1, opened_ms=plane.control.now_ms(), **cached)])

        async def give_back(number: int, **counts: int) -> httpx2.Response:
            asked = {"id": f"fix-{number}", "corrects": "usage-1", "reason": "twice", **counts}
            return await plane.call("POST", "/admin/corrections", asked)

        for _ in range(2):
            assert (await give_back(1, prompt_tokens=-20)).status_code == 201
            assert (await give_back(2, prompt_tokens=-15)).status_code == 201
            assert (await give_back(3, prompt_tokens=-5, cached_tokens=-5)).status_code == 201
        too_many = await give_back(4, prompt_tokens=-60, cached_tokens=-61)
        assert "`cached_tokens` may give back at most the 60 tokens" in too_many.json()["error"]
        not_cached = await give_back(4, prompt_tokens=-1, cached_tokens=0)
        assert "at most the 0 tokens that are charged and not cached" in not_cached.json()["error"]
        assert (await give_back(4, prompt_tokens=-60, completion_tokens=-10)).status_code == 201
        rows = (await plane.call("GET", "/v1/account/ledger", key=key)).json()["rows"]
        costs = {row["id"]: (row["charged_cached_tokens"], row["cost_nanousd"]) for row in rows}
        assert costs == {
            "usage-1": (70, 30 * 10 + 70 + 300),
            "fix-1": (0, -200),
            "fix-2": (-5, -10 * 10 - 5),
            "fix-3": (-5, -5),
            "fix-4": (-60, -60 - 300),
        }
        assert sum(cost for _, cost in costs.values()) == 0

    run(scenario)


def test_a_correction_belongs_to_the_month_in_which_it_is_made(run: Callable[..., None]) -> None:
    """Invoice, usage, balance and budget all follow its own month; the line says which month it corrects."""

    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme", credit_nanousd=10 * COST)
        await plane.call("PUT", "/admin/tenants/acme/limits", {"monthly_budget_nanousd": COST})
        used_ms = plane.control.now_ms()
        used_in, now_in = text_of(month_of(used_ms)), text_of(month_of(used_ms + int(1000 * MONTH_S)))
        await insert_records(plane.control, [record(1, opened_ms=used_ms)])
        plane.clock.advance(MONTH_S)
        before = (await plane.call("GET", f"/v1/account/invoices/{used_in}?format=text", key=key)).content
        asked = {
            "id": "fix-1",
            "corrects": "usage-1",
            "prompt_tokens": -100,
            "completion_tokens": -10,
            "reason": "charged twice",
        }
        assert (await plane.call("POST", "/admin/corrections", asked)).status_code == 201
        assert (await plane.call("GET", f"/v1/account/invoices/{used_in}?format=text", key=key)).content == before

        (line,) = (await plane.call("GET", f"/v1/account/invoices/{now_in}", key=key)).json()["lines"]
        assert (line["kind"], line["corrects_month"], line["reason"]) == ("correction", used_in, "charged twice")
        assert (line["nanousd"], line["price_version"], line["requests"]) == (-COST, 1, 0)
        costs = {}
        for month in (used_in, now_in):
            report = (await plane.call("GET", f"/v1/account/usage?month={month}&by=day", key=key)).json()["usage"]
            costs[month] = [(row["names"][0][:7], row["requests"], row["cost_nanousd"]) for row in report]
        assert costs == {used_in: [(used_in, 1, COST)], now_in: [(now_in, 0, -COST)]}

        balance = (await plane.call("GET", "/v1/account", key=key)).json()["balance"]
        assert (balance["left_nanousd"], balance["spent_this_month_nanousd"]) == (10 * COST, -COST)
        assert (await lease_credit(plane.control, "edge-2", "acme", 5 * COST)).granted_nanousd == 2 * COST

    run(scenario)


def test_a_row_gives_back_no_more_than_it_charged(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await insert_records(plane.control, [record(1, opened_ms=plane.control.now_ms())])
        for name, count in (("prompt_tokens", -101), ("completion_tokens", -11)):
            with pytest.raises(InvalidParameter, match=f"`{name}` may give back at most"):
                await take_back(plane, "usage-1", "fix-1", **{name: count})
        await take_back(plane, "usage-1", "fix-1", prompt_tokens=-60, completion_tokens=5)
        with pytest.raises(InvalidParameter, match="at most the 40 tokens"):
            await take_back(plane, "usage-1", "fix-2", prompt_tokens=-41, completion_tokens=0)
        await take_back(plane, "usage-1", "fix-2", prompt_tokens=-40, completion_tokens=-15)
        with pytest.raises(InvalidParameter, match="correct the row `usage-1` again"):
            await take_back(plane, "fix-2", "fix-3", prompt_tokens=1, completion_tokens=0)
        async with plane.control.database.read() as connection:
            assert (await balance_of(connection, "acme", plane.control.now_ms())).charged_nanousd == 0

    run(scenario)


def test_corrections_at_once_give_back_no_more_either(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await insert_records(plane.control, [record(1, opened_ms=plane.control.now_ms())])
        tries = (take_back(plane, "usage-1", f"fix-{number}") for number in range(6))
        ends = await asyncio.gather(*tries, return_exceptions=True)
        assert sorted(type(end).__name__ for end in ends) == ["InvalidParameter"] * 5 + ["NoneType"]

    run(scenario)


CORRECTIONS = st.lists(
    st.tuples(
        st.integers(0, 9),
        st.integers(-100, 10**6),
        st.integers(-10, 10**6),
        st.sampled_from(["twice", "=1+1", "<b>", "Grüße\n"]),
        st.sampled_from([0.0, 1.0, 3 * DAY_S, MONTH_S]),
    ),
    max_size=8,
)
number_of_example = itertools.count()


@pytest.mark.parametrize("examples", [4, pytest.param(12, marks=pytest.mark.long)])
def test_an_invoice_of_a_month_that_is_over_stays_as_it_is(url: URL, tmp_path: Path, examples: int) -> None:
    """Byte for byte in every form, whatever is corrected afterwards; and nothing of a correction is lost."""
    with standing_plane(url, tmp_path, is_key_needed=False) as (runner, plane):

        @settings(max_examples=examples)
        @given(CORRECTIONS)
        def hold(corrections: list[tuple[int, int, int, str, float]]) -> None:
            runner.run(_correct_months(plane, corrections))

        hold()


async def _correct_months(plane: Plane, corrections: list[tuple[int, int, int, str, float]]) -> None:
    tenant = f"tenant-{next(number_of_example)}"  # the database is one for all examples
    now_ms = plane.control.now_ms()
    ids = [f"{tenant}-{number}" for number in range(4)]
    await insert_records(
        plane.control,
        [
            record(
                number,
                id=each,
                tenant=tenant,
                adapter_owner="beta",
                opened_ms=now_ms - number * 20 * int(1000 * DAY_S),
                base=("Mistral-7b-instruct", "unpriced")[number % 2],
            )
            for number, each in enumerate(ids)
        ],
    )
    plane.clock.advance(MONTH_S)
    months = {month_of(now_ms - number * 20 * int(1000 * DAY_S)) for number in range(4)}
    final: dict[tuple[int, str], bytes] = {}
    for chosen, prompt_tokens, completion_tokens, reason, wait_s in corrections:
        past = {month for month in months if bounds_of(month)[1] <= plane.control.now_ms()}
        for key in itertools.product(past, FORMATS):
            final.setdefault(key, await invoice_of(plane, tenant, *key))
        counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        with contextlib.suppress(InvalidParameter):  # it would give back more than was charged
            await take_back(
                plane, ids[chosen % len(ids)], f"{tenant}-fix-{next(number_of_example)}", reason=reason, **counts
            )
        months.add(month_of(plane.control.now_ms()))
        for key, content in final.items():
            assert await invoice_of(plane, tenant, *key) == content
        plane.clock.advance(wait_s)
    async with plane.control.database.read() as connection:
        every = select(func.sum(ledger.c.cost_nanousd)).where(ledger.c.tenant == tenant)
        total = int((await connection.execute(every)).scalar_one())
        booked = select(spending.c.month, func.sum(spending.c.cost_nanousd)).where(spending.c.tenant == tenant)
        by_month = {
            month: int(cost) for month, cost in (await connection.execute(booked.group_by(spending.c.month))).all()
        }
    billed = {month: json.loads(await invoice_of(plane, tenant, month))["total_nanousd"] for month in months}
    assert billed == dict.fromkeys(months, 0) | by_month
    assert sum(billed.values()) == total


def test_a_month_is_preliminary_until_the_last_row_is_in_it(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        month = month_of(plane.control.now_ms())
        end_ms = bounds_of(month)[1]
        shown = []
        for moment_ms in (end_ms - 1, end_ms, end_ms + 3_899_999, end_ms + 3_900_000):
            plane.clock.advance((moment_ms - plane.control.now_ms()) / 1000)
            invoice = (await plane.call("GET", f"/v1/account/invoices/{text_of(month)}", key=key)).json()
            shown.append(invoice["is_preliminary"])
        assert shown == [True, True, True, False]

    run(scenario)
