"""The activity of a day: sums, failures, and percentiles of loads and first tokens, of the tenant's rows alone."""

from collections.abc import Callable
from typing import Any

from manylora.control.billing.ledger import correct, insert_records
from tests.control.plane import Plane, record

DAY_S, HOUR_MS = 86_400, 3_600_000
LOADS_US = range(10, 1_010, 10)
"""Loads of 100 cold starts: 99 of 100 take 990 at most, 50 of 100 take 500."""


def test_a_day_has_the_waits_failures_and_sums_of_its_own_rows(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        plane.clock.advance(DAY_S - plane.clock.wall_s() % DAY_S + DAY_S / 2)  # at noon in UTC
        noon_ms = plane.control.now_ms()

        def rows(numbers: range, **changes: Any) -> list[Any]:
            return [record(n, id=f"{n}-{len(changes)}", opened_ms=noon_ms, **changes) for n in numbers]

        cold = [
            record(n, opened_ms=noon_ms, load_ms=us / 1000, first_token_ms=us / 500) for n, us in enumerate(LOADS_US)
        ]
        others = [
            *rows(range(3), load_ms=0.0, first_token_ms=0.001),
            *rows(range(2), finish_reason="engine_failure", charged_prompt_tokens=0, charged_completion_tokens=0),
            record(7, id="rival", tenant="rival", opened_ms=noon_ms, load_ms=1e6, finish_reason="rejected"),
            record(8, id="before", opened_ms=noon_ms - 13 * HOUR_MS, load_ms=1e6, finish_reason="rejected"),
        ]
        await plane.new_tenant("rival")
        await insert_records(plane.control, [*reversed(cold), *others])
        back: dict[str, Any] = {"prompt_tokens": -10, "completion_tokens": 0, "reason": "slow", "author": "admin"}
        await correct(plane.control, "usage-1", correction_id="back", **back)
        found = (await plane.call("GET", "/v1/account/activity", key=key)).json()
        assert {name: found[name] for name in found if name.endswith("_us")} == {
            "cold_p50_us": 500,
            "cold_p99_us": 990,
            "first_token_p50_us": 980,  # of 103 rows that began, the 52nd
            "first_token_p99_us": 1_980,
        }
        assert (found["requests"], found["failures"], found["cold_starts"]) == (105, 2, 100)
        assert found["charged_tokens"] == 103 * 110 - 10
        usage = (await plane.call("GET", f"/v1/account/usage?by=&from={found['begin'][:10]}", key=key)).json()["usage"]
        assert found["cost_nanousd"] == usage[0]["cost_nanousd"] > 0
        tokyo = (await plane.call("GET", "/v1/account/activity?zone=Asia/Tokyo", key=key)).json()
        assert (tokyo["requests"], tokyo["failures"]) == (106, 3), "there the day began nine hours before"
        none = (await plane.call("GET", "/v1/account/activity?day=2020-01-01", key=key)).json()
        assert (none["requests"], none["cold_starts"], none["cold_p50_us"], none["cold_p99_us"]) == (0, 0, None, None)

    run(scenario)
