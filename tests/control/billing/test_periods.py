"""Usage over any period: a month, or days and months from one through another, on either database."""

from collections.abc import Callable

import pytest

from manylora.control.billing.ledger import insert_records
from manylora.control.billing.periods import parse_period
from manylora.control.calendar import DAY_MS
from tests.control.plane import Plane, record

NOW_MS = 1_700_001_000_000
"""22:30 on 14 November 2023."""
TODAY_MS = NOW_MS - NOW_MS % DAY_MS


@pytest.mark.parametrize(
    ("given", "begin_day", "end_day"),
    [
        ({}, -13, 17),
        ({"month": "2023-10"}, -44, -13),
        ({"first": "2023-10", "last": "2023-11"}, -44, 17),
        ({"first": "2023-11-01", "last": "2023-11-14"}, -13, 1),
        ({"first": "2023-11-14", "last": "2023-11-14"}, 0, 1),
        ({"first": "2023-10-31", "last": "2023-11"}, -14, 17),
        ({"first": "2023-11", "last": "2023-11-02"}, -13, -11),
        ({"first": "2023-11-14"}, 0, 1),
        ({"first": "2023-10"}, -44, 1),
    ],
)
def test_a_period_counts_its_last_day_or_month_in(given: dict[str, str], begin_day: int, end_day: int) -> None:
    month, first, last = (given.get(name, "") for name in ("month", "first", "last"))
    period = parse_period(month=month, first=first, last=last, now_ms=NOW_MS)
    assert ((period.begin_ms - TODAY_MS) / DAY_MS, (period.end_ms - TODAY_MS) / DAY_MS) == (begin_day, end_day)


@pytest.mark.parametrize(
    ("query", "named", "said"),
    [
        ("month=2023-11&from=2023-11-01", "month", "not both"),
        ("month=2023-11&to=2023-11-01", "month", "not both"),
        ("to=2023-11", "from", "needs a `from`"),
        ("from=2023-11-15&to=2023-11-14", "from", "later than `to`"),
        ("from=2023-12&to=2023-11", "from", "later than `to`"),
        ("from=2023-11-15", "from", "later than today"),
        ("from=2000-01-01&to=2023-11-14", "from", "at most 3660 days"),
        ("from=2023-02-29", "from", "like 2026-11-25"),
        ("from=2023-13", "from", "like 2026-11-25"),
        ("from=2023-11&to=20231114", "to", "like 2026-11-25"),
        ("from=2023-W46-2", "from", "like 2026-11-25"),
        ("from=yesterday", "from", "like 2026-11-25"),
        ("from=1969-12-31&to=2023-11", "from", "like 2026-11-25"),
        ("from=2023-11&to=9999-12-31", "to", "like 2026-11-25"),
        ("from=2023-11-14T00:00:00Z", "from", "10 characters"),
    ],
)
def test_what_is_no_period_is_named(run: Callable[..., None], query: str, named: str, said: str) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        own = await plane.call("GET", f"/v1/account/usage?{query}", key=key)
        assert (own.status_code, own.json()["error"]["param"]) == (400, named)
        assert said in own.json()["error"]["message"]
        everyone = await plane.call("GET", f"/admin/usage?{query}")
        assert everyone.status_code == 422
        assert said in everyone.json()["error"]

    run(scenario)


@pytest.mark.parametrize("by", ["day", "base", "adapter", "key", "tenant", "day,base,adapter,key,tenant"])
def test_a_period_is_the_sum_of_its_parts(run: Callable[..., None], by: str) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        now_ms = plane.control.now_ms()
        await insert_records(
            plane.control,
            [
                record(
                    number,
                    opened_ms=now_ms - number * DAY_MS // 2,
                    tenant=("acme", "beta")[number % 2],
                    key=("AAAAAAAA", None)[number % 2],
                    adapter=("triage/1", "triage/2", None)[number % 3],
                    base=("Mistral-7b-instruct", "unpriced")[number % 5 == 0],
                )
                for number in range(60)
            ],
        )

        async def total(query: str, path: str = "/admin/usage") -> dict[tuple[str | None, ...], tuple[int, int]]:
            reply = await plane.call("GET", f"{path}?by={by}&{query}", key=key if "account" in path else "")
            assert reply.status_code == 200, reply.text
            return {tuple(row["names"]): (row["requests"], row["cost_nanousd"]) for row in reply.json()["usage"]}

        whole = await total("from=2023-10-16&to=2023-11-14")
        assert sum(requests for requests, _ in whole.values()) == 60
        parts = [await total("from=2023-10-16&to=2023-10"), await total("month=2023-11")]
        assert await total("from=2023-10-16") == whole
        for names, sums in whole.items():
            found = [part[names] for part in parts if names in part]
            assert tuple(map(sum, zip(*found, strict=True))) == sums
        own = await total("from=2023-10&to=2023-11", "/v1/account/usage")
        assert own == await total("from=2023-10&to=2023-11&tenant=acme")
        assert sum(requests for requests, _ in own.values()) == 30

    run(scenario)
