"""The pools of the fleet's limits: claims, debts, edges that end, and a control plane that begins anew."""

from typing import Any

import pytest

from manylora.allowances import VALID_S, Allowance, AllowanceReport, AllowanceWish, LimitKind
from manylora.clock import ManualClock
from manylora.control.edges import allowances as module
from manylora.control.edges.allowances import FORGET_S, SUPPOSED_S, AllowancePools


class Pools(AllowancePools):
    """Pools that answer one wish at a time."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        super().__init__(self.clock)

    def ask(self, edge: str, kind: str = "requests", limit: int = 60, name: str = "a", **wish: Any) -> Allowance:
        values = {"claimed": 0, **wish}
        wishes = (AllowanceWish(name=name, kind=LimitKind(kind), limit=limit, **values),)
        [given] = self.answer(AllowanceReport(edge=edge, wishes=wishes)).allowances
        return given


def test_a_bucket_grants_what_it_has_and_at_least_what_is_needed() -> None:
    pools = Pools()
    assert pools.ask("e", wanted=50).granted == 50
    assert pools.ask("f", wanted=50).granted == 10
    assert pools.ask("g", wanted=5).granted == 0
    pools.clock.advance(6)
    assert pools.ask("g", needed=7, wanted=9) == Allowance(name="a", kind=LimitKind.REQUESTS, granted=0, level=6)
    assert pools.ask("g", needed=6, wanted=9).granted == 6


def test_a_lost_answer_and_a_lower_claim_come_back() -> None:
    pools = Pools()
    pools.ask("e", wanted=20)
    assert pools.ask("e", claimed=0, wanted=60).granted == 60, "the edge has not heard of the first 20"
    assert pools.ask("e", claimed=45).level == 15


def test_use_without_a_grant_is_a_debt_of_a_minute_at_most() -> None:
    pools = Pools()
    pools.ask("e", wanted=60)
    assert pools.ask("e", claimed=1000).level == -60
    pools.clock.advance(61)
    assert pools.ask("f", wanted=2).granted == 1


def test_permits_of_a_silent_edge_end_and_those_of_a_leaving_one_at_once() -> None:
    pools = Pools()
    assert pools.ask("e", "streams", 4, wanted=3).granted == 3
    assert pools.ask("f", "streams", 4, wanted=3).granted == 1
    pools.answer(AllowanceReport(edge="f", is_leaving=True))
    assert pools.ask("g", "streams", 4, wanted=3).granted == 1
    pools.clock.advance(VALID_S)
    assert pools.answer(AllowanceReport(edge="g")).edges == 1
    assert pools.ask("g", "streams", 4, claimed=1, wanted=3).granted == 4


def test_a_control_plane_that_begins_anew_learns_the_levels_of_its_edges() -> None:
    pools = Pools()
    assert pools.ask("e", claimed=500, level=7.0).level == 7
    assert pools.ask("f", claimed=20, level=3.0).level == 3
    assert pools.ask("g", wanted=9).granted == 3, "an edge that knows no level changes none"
    assert pools.ask("e", "streams", 10, claimed=2, level=5.0, wanted=9).granted == 7, "3 are supposed at others"
    pools.clock.advance(SUPPOSED_S)
    assert pools.ask("e", "streams", 10, claimed=7, wanted=9).granted == 10


@pytest.mark.parametrize("kind", ["requests", "streams"])
def test_a_lowered_limit_holds_at_once(kind: str) -> None:
    pools = Pools()
    claimed = pools.ask("e", kind, 60, wanted=10).granted
    given = pools.ask("e", kind, 10, claimed=claimed, wanted=10)
    assert given.granted == (20 if kind == "requests" else 10)
    assert pools.ask("f", kind, 10, wanted=1).granted == 0


def test_pools_and_edges_without_reports_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_POOLS", 3)
    pools = Pools()
    for number in range(4):
        pools.ask(f"e{number}", name=str(number), wanted=1)
    pools.clock.advance(FORGET_S)
    pools.ask("f", name="new")
    assert (len(pools), pools.answer(AllowanceReport(edge="f")).edges) == (1, 1)
