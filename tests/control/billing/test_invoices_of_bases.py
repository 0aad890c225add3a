"""A month on two bases, each at its own prices, one of which change: usage, lines and sums by base are exact."""

import csv
import io
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from manylora.control.billing.ledger import insert_records
from manylora.control.calendar import month_of, text_of
from tests.control.plane import Plane, record

PRICES = {"org/small": (3, 1, 7), "org/large": (11, 5, 13)}
DEARER = (17, 6, 19)
NAMES = ("input_nanousd", "cached_input_nanousd", "output_nanousd")
CHANGE_S = 86_400
ADAPTERS = (None, "acme/triage/1", "acme/triage/2")


async def put_price(plane: Plane, base: str, prices: tuple[int, int, int], effective_in_s: float = 0) -> None:
    body = {"base": base, "force": True, "effective_in_s": effective_in_s, **dict(zip(NAMES, prices, strict=True))}
    reply = await plane.call("POST", "/admin/prices", body)
    assert reply.status_code == 201, reply.text


async def use(plane: Plane, dice: random.Random, dear: bool, first: int) -> Counter[tuple[str, str | None, bool]]:
    """Book thirty requests of both bases; return the cost of each base, adapter and price, computed here."""
    records, costs = [], Counter[tuple[str, str | None, bool]]()
    for number in range(first, first + 30):
        base, adapter = dice.choice(list(PRICES)), dice.choice(ADAPTERS)
        prompt, completion = dice.randrange(1, 5000), dice.randrange(0, 900)
        cached = dice.randrange(0, prompt)
        is_dear = dear and base == "org/large"
        prices = DEARER if is_dear else PRICES[base]
        costs[base, adapter, is_dear] += (prompt - cached) * prices[0] + cached * prices[1] + completion * prices[2]
        counts = {"charged_prompt_tokens": prompt, "charged_cached_tokens": cached, "prompt_tokens": prompt}
        counts |= {"cached_tokens": cached, "completion_tokens": completion, "charged_completion_tokens": completion}
        values: dict[str, Any] = {
            "base": base,
            "adapter": None,
            "adapter_source": None,
            "adapter_owner": None,
            **counts,
        }
        if adapter is not None:
            owner, _, name = adapter.partition("/")
            values |= {"adapter": name, "adapter_source": "pbase", "adapter_owner": owner}
        records.append(record(number, opened_ms=plane.control.now_ms(), **values))
    await insert_records(plane.control, records)
    return costs


def by_base(costs: Counter[tuple[str, str | None, bool]]) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for (base, _, _), cost in costs.items():
        sums[base] += cost
    return dict(sums)


def test_usage_and_invoice_have_each_base_at_its_prices_and_the_exact_sum(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        dice, key = random.Random(7), await plane.new_tenant("acme")
        for base, prices in PRICES.items():
            await put_price(plane, base, prices)
        await put_price(plane, "org/large", DEARER, CHANGE_S)  # announced: it counts from then on
        costs = await use(plane, dice, dear=False, first=0)
        plane.clock.advance(CHANGE_S)
        costs += await use(plane, dice, dear=True, first=30)
        assert len(costs) == 3 * len(ADAPTERS)  # each adapter on the small base, and on the large one at two prices
        total = sum(costs.values())

        usage = (await plane.call("GET", "/v1/account/usage?by=base", key=key)).json()["usage"]
        assert {row["names"][0]: row["cost_nanousd"] for row in usage} == by_base(costs)
        assert sum(row["requests"] for row in usage) == 60

        path = f"/v1/account/invoices/{text_of(month_of(plane.control.now_ms()))}"
        invoice = (await plane.call("GET", path, key=key)).json()
        dear_price = f"{DEARER[0] / 10**9:.9f}"
        lines = {
            (line["base"], line["adapter"], line["input_usd"] == dear_price): line["nanousd"]
            for line in invoice["lines"]
        }
        assert lines == {(base, adapter, dear): cost for (base, adapter, dear), cost in costs.items()}
        assert invoice["total_nanousd"] == total
        text = (await plane.call("GET", f"{path}?format=csv", key=key)).text
        rows = list(csv.DictReader(io.StringIO(text)))
        assert sum(round(float(row["usd"]) * 10**9) for row in rows) == total
        assert Counter(row["base"] for row in rows) == {"org/small": 3, "org/large": 6}
        assert [row["base"] for row in rows] == sorted(row["base"] for row in rows)  # the lines of a base together
        left = (await plane.call("GET", "/v1/account", key=key)).json()["balance"]
        assert left["charged_nanousd"] == total

    run(scenario)
