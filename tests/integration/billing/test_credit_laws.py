"""The laws of credit: several edges lease from one control plane, whatever ends, expires, dies or is shipped when."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from manylora.control.app.application import create_control_app
from manylora.control.billing.prices import set_price
from manylora.control.calendar import bounds_of, month_of
from manylora.control.storage.tables import leases
from manylora.control.tenants.credit import balance_of, grant_credit
from manylora.errors import QuotaExhausted
from manylora.ids import TenantId
from manylora.server.access.control_client import HttpControlClient
from manylora.server.access.credit import Hold, LeasedCredit
from manylora.tenancy import PriceFacts
from manylora.usage import UsageRecord
from tests.control.plane import EDGE_TOKEN, Plane, migrated_in, record, standing_plane

PRICE = PriceFacts(base="cheap", version=1, effective_ms=0, input_nanousd=1, output_nanousd=2, cached_input_nanousd=0)
"""Half of each prompt is cached, which no edge can know before the request's end."""
LEASE_NANOUSD = 50
LEASE_S = 6
"""Time passes in whole seconds, so that a half and a whole lease are hit exactly."""
MONTH_S = 20
"""From the beginning of an example to the end of its month."""
NUM_EDGES = 3
EDGES = st.integers(0, NUM_EDGES - 1)
"""Of those that live, in the order of their age."""
AMOUNTS = st.integers(0, 60) | st.integers(0, 200)
HOLDS = st.tuples(
    st.just("hold"),
    st.lists(
        st.tuples(EDGES, st.integers(1, 9) | st.integers(1, 60), st.sampled_from([0, 0, 5, 40])), min_size=1, max_size=3
    ),
)
"""(edge, prompt tokens, budget of completion tokens) of requests that come at once"""
WAITS = st.tuples(st.just("wait"), st.sampled_from([1, 2, 3, LEASE_S]))
EVENTS = st.lists(
    st.one_of(
        HOLDS,
        HOLDS,
        HOLDS,
        WAITS,
        WAITS,
        st.tuples(st.just("settle"), st.integers(0, 9), st.booleans(), st.integers(0, 40)),
        st.tuples(st.just("ship"), EDGES, st.integers(1, 4), st.integers(1, 2)),
        st.tuples(st.just("die"), EDGES, st.booleans(), st.integers(0, 40)),
        st.tuples(st.just("recover"), st.integers(1, 2)),
        st.tuples(st.just("leave"), EDGES),
        st.tuples(st.just("grant"), st.integers(1, 100)),
    ),
    min_size=15,
    max_size=30,
)
"""A method of `Market` with its arguments."""
LATE_IN_A_LEASE = [
    ("hold", [(0, 5, 0)]),
    ("wait", LEASE_S - 1),
    ("hold", [(0, 9, 0)]),
    ("wait", 1),
    ("hold", [(1, 50, 0)]),
]
"""What comes shortly before a lease's end prolongs it, or another edge would sell the same: too rare to be drawn."""


@dataclass
class Sale:
    """A request from its hold to the ledger. nanousd: its worst case, and from its end on its cost."""

    number: int
    tenant: TenantId
    edge: str
    hold: Hold
    prompt_tokens: int
    budget_tokens: int
    held_s: float
    nanousd: int
    charged: tuple[int, int] | None = None
    booked_s: float | None = None

    @property
    def month(self) -> int:
        return month_of(int(1000 * self.held_s))

    @property
    def record(self) -> UsageRecord:
        assert self.charged is not None, "it has ended"
        prompt_tokens, completion_tokens = self.charged
        return record(
            self.number,
            id=f"{self.tenant}-{self.number}",
            tenant=self.tenant,
            edge=self.edge,
            base=PRICE.base,
            opened_ms=int(1000 * self.held_s),
            charged_prompt_tokens=prompt_tokens,
            charged_completion_tokens=completion_tokens,
            charged_cached_tokens=prompt_tokens // 2,
        )


class Market:
    """Edges that sell one tenant's tokens; each that dies or leaves is followed by another."""

    def __init__(
        self, runner: asyncio.Runner, plane: Plane, client: HttpControlClient, credit: int, budget: int | None
    ) -> None:
        self.runner, self.plane, self.client = runner, plane, client
        self.control, self.clock = plane.control, plane.clock
        self.credit, self.budget = credit, budget
        # The plane is that of all examples: each has a tenant, edges and a month of its own.
        _, month_ends_ms = bounds_of(month_of(self.control.now_ms() + 1000 * MONTH_S))
        self.clock.advance(month_ends_ms / 1000 - MONTH_S - self.now_s)
        self.tenant = TenantId(f"tenant-{self.control.now_ms()}")
        self.num_edges = 0
        self.leased_of: dict[str, LeasedCredit] = {}
        self.lost: list[str] = []  # edges that died, whose leases are not given back yet
        self.sales: list[Sale] = []
        runner.run(self.begun())

    async def begun(self) -> None:
        limits = {} if self.budget is None else {"monthly_budget_nanousd": self.budget}
        await self.plane.new_tenant(self.tenant, credit_nanousd=self.credit, limits=limits)
        for _ in range(NUM_EDGES):
            self.begin_edge()

    def begin_edge(self) -> None:
        name = f"{self.tenant}-edge-{self.num_edges}"
        self.num_edges += 1
        self.leased_of[name] = LeasedCredit(self.client, self.clock, edge=name, lease_nanousd=LEASE_NANOUSD)

    def edge(self, index: int) -> str:
        return list(self.leased_of)[index]

    def under_way(self, edge: str | None = None) -> list[Sale]:
        return [sale for sale in self.sales if sale.charged is None and edge in (None, sale.edge)]

    @property
    def now_s(self) -> float:
        return self.clock.wall_s()

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────

    def hold(self, wishes: list[tuple[int, int, int]]) -> None:
        """Requests that come at once."""
        self.runner.run(self.held([(self.edge(index), prompt, budget) for index, prompt, budget in wishes]))

    async def held(self, wishes: list[tuple[str, int, int]]) -> None:
        refused = await asyncio.gather(*(self.sell(*wish) for wish in wishes))
        for edge, cost in filter(None, refused):
            assert await self.could_have(edge) < cost, f"{edge} was refused {cost}, which were there"

    async def sell(self, edge: str, prompt_tokens: int, budget_tokens: int) -> tuple[str, int] | None:
        """Set a request's worst case aside; returns the edge and the cost of one that is refused."""
        cost = prompt_tokens * PRICE.input_nanousd + budget_tokens * PRICE.output_nanousd
        try:
            hold = await self.leased_of[edge].hold(
                self.tenant, PRICE, prompt_tokens=prompt_tokens, budget_tokens=budget_tokens
            )
        except QuotaExhausted:
            return edge, cost
        assert hold is not None
        number = len(self.sales)
        self.sales.append(Sale(number, self.tenant, edge, hold, prompt_tokens, budget_tokens, self.now_s, cost))
        return None

    async def could_have(self, edge: str) -> int:
        """What an edge that has just asked has left of its lease, and what the control plane could add to it."""
        now_ms = self.control.now_ms()
        async with self.control.database.read() as connection:
            balance = await balance_of(connection, self.tenant, now_ms)
            asked = select(leases.c.granted_nanousd).where(leases.c.edge == edge, leases.c.expires_ms > now_ms)
            granted = int((await connection.execute(asked)).scalar_one())
        room = balance.left_nanousd - balance.leased_nanousd
        if self.budget is not None:
            room = min(room, self.budget - balance.spent_this_month_nanousd - balance.leased_nanousd)
        return room + granted - sum(sale.nanousd for sale in self.sales if sale.edge == edge)

    def settle(self, index: int, is_prompt_charged: bool, completion_tokens: int) -> None:
        if under_way := self.under_way():
            self.end(under_way[index % len(under_way)], is_prompt_charged, completion_tokens)

    def end(self, sale: Sale, is_prompt_charged: bool, completion_tokens: int) -> None:
        prompt, completion = is_prompt_charged * sale.prompt_tokens, min(completion_tokens, sale.budget_tokens)
        sale.charged = (prompt, completion)
        sale.nanousd = (prompt - prompt // 2) * PRICE.input_nanousd + completion * PRICE.output_nanousd
        sale.hold.settle(prompt, completion, prompt // 2)

    # ── records, edges and time ──────────────────────────────────────────────────────────────────────────────────

    def ship(self, edge: int, limit: int, num_times: int) -> None:
        self.runner.run(self.shipped(self.edge(edge), limit, num_times=num_times))

    async def shipped(self, edge: str, limit: int | None = None, *, num_times: int = 1) -> None:
        ended = [sale for sale in self.sales if sale.edge == edge and sale.charged and sale.booked_s is None][:limit]
        for _ in range(num_times):
            await self.client.ship([sale.record for sale in ended])
        for sale in ended:
            sale.booked_s = self.now_s

    def die(self, edge: int, is_prompt_charged: bool, completion_tokens: int) -> None:
        """Its leased credit is gone; its spool and the journal of its engine have what is to be charged."""
        name = self.edge(edge)
        del self.leased_of[name]
        for sale in self.under_way(name):
            self.end(sale, is_prompt_charged, completion_tokens)
        self.lost.append(name)
        self.begin_edge()

    def recover(self, num_times: int) -> None:
        if self.lost:
            self.runner.run(self.gone(self.lost.pop(0), num_times=num_times))

    async def gone(self, edge: str, *, num_times: int = 1) -> None:
        """What is left of an edge is shipped, and only then what it leased is given back."""
        await self.shipped(edge, num_times=num_times)
        for _ in range(num_times):
            await self.client.give_back(edge)

    def leave(self, edge: int) -> None:
        """A server that is stopped lets its requests end."""
        name = self.edge(edge)
        del self.leased_of[name]
        for sale in self.under_way(name):
            self.end(sale, True, sale.budget_tokens)
        self.runner.run(self.gone(name))
        self.begin_edge()

    def wait(self, duration_s: int) -> None:
        self.clock.advance(duration_s)

    def grant(self, nanousd: int) -> None:
        self.credit += nanousd
        self.runner.run(self.granted(nanousd))

    async def granted(self, nanousd: int) -> None:
        grant_id, now_ms = f"{self.tenant}-{self.credit}", self.control.now_ms()
        async with self.control.database.write() as connection:
            await grant_credit(connection, self.tenant, nanousd, grant_id=grant_id, reason="paid", now_ms=now_ms)

    # ── laws ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def what_is_spent_and_promised_never_exceeds_the_credit_nor_the_budget(self) -> None:
        """But by requests that took longer than the half of a lease: see docs/control-plane.md."""
        in_time = [sale for sale in self.sales if (sale.booked_s or self.now_s) - sale.held_s <= LEASE_S / 2]
        assert sum(sale.nanousd for sale in in_time) <= self.credit
        if self.budget is not None:
            for month in {sale.month for sale in in_time}:
                assert sum(sale.nanousd for sale in in_time if sale.month == month) <= self.budget

    async def rested(self) -> None:
        """After a lease's time without requests, the edge that asks first can spend all that is left, and no more."""
        for sale in self.under_way():
            self.end(sale, True, 0)
        for edge in self.leased_of:
            await self.shipped(edge)
        while self.lost:
            await self.gone(self.lost.pop())
        for leased in self.leased_of.values():
            self.clock.advance(LEASE_S)
            left = max(0, self.left())
            hold = await leased.hold(self.tenant, PRICE, prompt_tokens=left, budget_tokens=0)
            with pytest.raises(QuotaExhausted):
                await leased.hold(self.tenant, PRICE, prompt_tokens=1, budget_tokens=0)
            assert hold is not None
            hold.settle(0, 0)

    def left(self) -> int:
        """Of the credit and of this month's budget."""
        in_credit = self.credit - sum(sale.nanousd for sale in self.sales)
        if self.budget is None:
            return in_credit
        month = month_of(self.control.now_ms())
        return min(in_credit, self.budget - sum(sale.nanousd for sale in self.sales if sale.month == month))


async def client_of(plane: Plane) -> HttpControlClient:
    """An edge's way to a plane that has a price of one and two nano-dollars a token."""
    now_ms = plane.control.now_ms()
    async with plane.control.database.write() as connection:
        await set_price(
            connection,
            PRICE.base,
            input_nanousd=PRICE.input_nanousd,
            output_nanousd=PRICE.output_nanousd,
            cached_input_nanousd=PRICE.cached_input_nanousd,
            effective_ms=now_ms,
            now_ms=now_ms,
        )
    return HttpControlClient(EDGE_TOKEN, app=create_control_app(plane.control))


@pytest.mark.parametrize("examples", [6, pytest.param(30, marks=pytest.mark.long)])
def test_edges_together_never_overspend_and_no_credit_is_lost(tmp_path: Path, examples: int) -> None:
    url = migrated_in(tmp_path)
    leasing = {"control.lease_s": LEASE_S, "control.snapshot_max_age_s": LEASE_S / 2}
    with standing_plane(url, tmp_path, settings=leasing) as (runner, plane):
        client = runner.run(client_of(plane))

        @settings(max_examples=examples, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
        @example(credit=55, budget=None, events=LATE_IN_A_LEASE)
        @given(credit=AMOUNTS, budget=st.none() | AMOUNTS, events=EVENTS)
        def law(credit: int, budget: int | None, events: list[tuple[Any, ...]]) -> None:
            market = Market(runner, plane, client, credit, budget)
            for name, *arguments in events:
                getattr(market, name)(*arguments)
                market.what_is_spent_and_promised_never_exceeds_the_credit_nor_the_budget()
            runner.run(market.rested())

        law()
        runner.run(client.close())
