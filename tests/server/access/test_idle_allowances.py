"""Allowances that an edge forgets, gives back at its end, or has many of."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manylora.allowances import MINUTE_S, MOST_WISHES, REPORT_S, AllowanceReport, AllowanceWish, LimitKind
from manylora.errors import ControlUnavailable
from manylora.server.access.allowances import IDLE_S
from manylora.tenancy import Limits
from tests.server.access.test_fleet_limits import ACME, Edge, Fleet

OTHER = "tenant other"


def level(edge: Edge, limit: int, name: str = ACME) -> float:
    """The free amount of a pool, as a reader without claims sees it."""
    wish = AllowanceWish(name=name, kind=LimitKind.REQUESTS, limit=limit, claimed=0)
    (found,) = edge.link.pools.answer(AllowanceReport(edge="reader", wishes=(wish,))).allowances
    return found.level


async def pause(fleet: Fleet, duration_s: float, *, busy: int) -> None:
    """Let time pass in which an edge serves another tenant alone."""
    for _ in range(round(duration_s)):
        await fleet.edges[busy].begin(tenant=OTHER)
        fleet.edges[busy].under_way.clear()
        await fleet.wait(1)


def test_an_idle_rate_that_returns_gives_no_former_use_back() -> None:
    async def scenario() -> None:
        fleet = Fleet(Limits(requests_per_minute=600), edges=2)
        first, second = fleet.edges
        while first.taken < 1200:
            if not await first.begin():
                await fleet.wait(1)
        for _ in range(round(IDLE_S) + 5):
            await pause(fleet, 1, busy=0)
            while await second.begin():
                pass
        assert len(first.fleet.allowances) == 1, "the edge has forgotten the idle rate"
        before = fleet.taken
        for _ in range(600):
            await first.begin()
            await second.begin()
        assert fleet.taken - before <= 10
        assert level(first, 600) <= 10

    asyncio.run(scenario())


STEPS = st.lists(
    st.tuples(st.sampled_from(["drain", "drain", "some", "pause", "long pause"]), st.integers(0, 1)),
    max_size=12,
)


@settings(max_examples=40)
@given(STEPS, st.integers(5, 60))
def test_edges_with_pauses_stay_within_one_bucket(steps: list[Any], limit: int) -> None:
    async def scenario() -> None:
        fleet = Fleet(Limits(requests_per_minute=limit), edges=2)
        begun_s = fleet.clock.monotonic_s()
        for name, number in steps:
            edge = fleet.edges[number]
            if name == "drain":
                while await edge.begin():
                    pass
            elif name == "some":
                await edge.begin()
            else:
                await pause(fleet, 3 if name == "pause" else IDLE_S + 5, busy=number)
            minutes = (fleet.clock.monotonic_s() - begun_s) / MINUTE_S
            assert fleet.taken <= limit * (1 + minutes)

    asyncio.run(scenario())


def test_a_rate_whose_last_claim_was_lost_is_not_forgotten() -> None:
    async def scenario() -> None:
        fleet = Fleet(Limits(requests_per_minute=60), edges=1)
        (edge,) = fleet.edges
        assert await edge.begin()
        fleet.cut()
        for _ in range(60):
            await edge.begin()
        await fleet.wait(2 * IDLE_S)
        used = edge.taken
        assert len(edge.fleet.allowances) == 1
        fleet.cut(False)
        await fleet.wait(REPORT_S)
        assert level(edge, 60) <= 60 - used + 2, "the use of the time apart is owed"

    asyncio.run(scenario())


def test_an_edge_that_ends_gives_its_unused_rates_back() -> None:
    async def scenario() -> None:
        fleet = Fleet(Limits(requests_per_minute=6000), edges=2)
        first, second = fleet.edges
        for _ in range(100):
            assert await first.begin()
        held = next(iter(first.fleet.allowances._all.values())).held
        assert held > 0
        await first.fleet.leave()
        assert level(second, 6000) == 6000 - first.taken

    asyncio.run(scenario())


def test_an_edge_that_ends_gives_back_a_grant_of_which_it_has_not_heard() -> None:
    async def scenario() -> None:
        fleet = Fleet(Limits(requests_per_minute=60), edges=1)
        (edge,) = fleet.edges
        answer = fleet.pools.answer

        def lost(report: AllowanceReport) -> Any:
            answer(report)
            raise ControlUnavailable("the answer is lost")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fleet.pools, "answer", lost)
            assert await edge.begin(), "an edge apart has its part"
        await edge.fleet.leave()
        assert level(edge, 60) == 59

    asyncio.run(scenario())


def test_a_report_of_many_wishes_goes_in_parts() -> None:
    async def scenario() -> None:
        fleet = Fleet(Limits(requests_per_minute=60), edges=1)
        (edge,) = fleet.edges
        sizes, answer = list[int](), fleet.pools.answer

        def counted(report: AllowanceReport) -> Any:
            sizes.append(len(report.wishes))
            return answer(report)

        count = 2 * MOST_WISHES + 1
        for number in range(count):
            assert await edge.begin(tenant=f"tenant {number}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fleet.pools, "answer", counted)
            await fleet.wait(REPORT_S)
            assert sizes == [MOST_WISHES, MOST_WISHES, 1]
            del sizes[:]
            await edge.fleet.leave()
        assert (max(sizes), sum(sizes) > MOST_WISHES) == (MOST_WISHES, True)
        assert {level(edge, 60, f"tenant {number}") for number in range(count)} == {59.5}

    asyncio.run(scenario())
