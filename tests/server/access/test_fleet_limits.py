"""Limits of a fleet: its edges together stay within each limit, and one edge alone may use all of it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.allowances import MINUTE_S, REPORT_S, VALID_S, AllowanceAnswer, AllowanceReport
from manylora.clock import ManualClock
from manylora.control.edges.allowances import AllowancePools
from manylora.control.storage.database import database_url
from manylora.errors import ControlUnavailable, LimitExceeded, StreamLimitExceeded, TokenRateExceeded
from manylora.server.access.access import Access
from manylora.server.access.control_client import HttpControlClient
from manylora.server.access.directory import Directory
from manylora.server.access.fleet_limits import FleetLimits
from manylora.server.access.limits import Limiter, Reservation
from manylora.tenancy import Limits
from tests.control.plane import EDGE_TOKEN, migrated, open_plane

ACME = "tenant acme"


class Link:
    """The way of one edge to the pools, which counts calls and may be cut."""

    def __init__(self, pools: AllowancePools) -> None:
        self.pools, self.calls, self.is_cut = pools, 0, False

    async def share_limits(self, report: AllowanceReport) -> AllowanceAnswer:
        if self.is_cut:
            raise ControlUnavailable("away")
        self.calls += 1
        return self.pools.answer(report)


@dataclass
class Edge:
    link: Link
    clock: ManualClock
    limits: Limits
    under_way: list[Reservation] = field(default_factory=list)
    taken: int = 0
    """Requests of one tenant, or tokens less those given back."""

    def __post_init__(self) -> None:
        self.limiter = Limiter(self.clock)
        self.fleet = FleetLimits(self.link, self.clock, self.limiter, edge=f"{id(self)}")  # type: ignore[arg-type]

    async def begin(self, *, streams: int = 1, tokens: int = 0, is_batch: bool = False, tenant: str = ACME) -> bool:
        """Begin a request; return whether the limits admit it."""
        try:
            reservation = self.limiter.enter({tenant: self.limits}, streams=streams, is_batch=is_batch)
        except LimitExceeded:
            return False
        try:
            await self.fleet.enter(reservation)
            self.limiter.reserve(reservation, tokens)
            await self.fleet.reserve(reservation)
        except LimitExceeded:
            reservation.settle(0)
            return False
        self.taken += (tokens or 1) if tenant == ACME else 0
        self.under_way.append(reservation)
        return True

    def end(self, used_tokens: int = 0) -> None:
        reservation = self.under_way.pop(0)
        self.taken -= max(0, reservation.tokens - used_tokens)
        reservation.settle(used_tokens)

    @property
    def streams(self) -> int:
        return sum(each.streams for each in self.under_way)


class Fleet:
    """Edges of one control plane, and the time in which they live."""

    def __init__(self, limits: Limits, edges: int = 3) -> None:
        self.clock, self.limits, self.past = ManualClock(), limits, 0
        self.pools = AllowancePools(self.clock)
        self.edges = [self._new() for _ in range(edges)]

    def _new(self) -> Edge:
        return Edge(Link(self.pools), self.clock, self.limits)

    def kill(self, number: int) -> None:
        self.past += self.edges[number].taken
        self.edges[number] = self._new()

    async def wait(self, duration_s: float) -> None:
        """Let time pass, with the reports that edges send meanwhile."""
        for _ in range(round(duration_s / REPORT_S)):
            self.clock.advance(REPORT_S)
            for edge in self.edges:
                await edge.fleet.refresh()

    def cut(self, is_cut: bool = True) -> None:
        for edge in self.edges:
            edge.link.is_cut = is_cut

    @property
    def taken(self) -> int:
        return self.past + sum(edge.taken for edge in self.edges)

    @property
    def streams(self) -> int:
        return sum(edge.streams for edge in self.edges)


OPS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "begin", "burst", "end", "wait", "kill"]), st.integers(0, 2), st.integers(1, 9)
    ),
    max_size=40,
)


async def act(fleet: Fleet, name: str, number: int, amount: int, *, tokens: int = 0) -> None:
    edge = fleet.edges[number]
    if name in ("begin", "burst"):
        for _ in range(3 * amount if name == "burst" else 1):
            await edge.begin(streams=amount if name == "begin" else 1, tokens=tokens * amount)
    elif name == "end" and edge.under_way:
        edge.end(used_tokens=amount)
    elif name == "wait":
        await fleet.wait(amount * amount * REPORT_S)
    elif name == "kill":
        fleet.kill(number)


@given(OPS, st.integers(1, 40))
def test_edges_together_never_begin_more_requests_than_one_bucket_has(ops: list[Any], limit: int) -> None:
    async def scenario() -> None:
        fleet, begun_s = Fleet(Limits(requests_per_minute=limit)), ManualClock().monotonic_s()
        for op in ops:
            await act(fleet, *op)
            assert fleet.taken <= limit * (1 + (fleet.clock.monotonic_s() - begun_s) / MINUTE_S)
        await fleet.wait(2 * MINUTE_S)
        begun = [await fleet.edges[0].begin() for _ in range(limit + 1)]
        assert begun.count(False) <= max(1, 0.1 * limit), "one edge alone may use the whole limit"

    asyncio.run(scenario())


@given(OPS, st.integers(20, 200))
def test_edges_together_never_use_more_tokens_than_one_bucket_has(ops: list[Any], limit: int) -> None:
    async def scenario() -> None:
        fleet, begun_s = Fleet(Limits(tokens_per_minute=limit)), ManualClock().monotonic_s()
        for op in ops:
            await act(fleet, *op, tokens=5)
            assert fleet.taken <= limit * (1 + (fleet.clock.monotonic_s() - begun_s) / MINUTE_S)
        await fleet.wait(2 * MINUTE_S)
        assert await fleet.edges[1].begin(tokens=limit)

    asyncio.run(scenario())


@given(OPS, st.integers(1, 12))
def test_edges_together_never_have_more_streams_than_permits(ops: list[Any], limit: int) -> None:
    async def scenario() -> None:
        fleet = Fleet(Limits(concurrent_streams=limit))
        for name, number, amount in ops:
            if name == "kill":  # the streams of a killed edge end with it, and its permits later
                fleet.edges[number].under_way.clear()
            await act(fleet, name, number, amount)
            assert fleet.streams <= limit
        for edge in fleet.edges:
            while edge.under_way:
                edge.end()
        begun = [await fleet.edges[2].begin() for _ in range(limit)]
        for _ in range(begun.count(False)):  # permits that others hold in reserve come with their next reports
            await fleet.wait(VALID_S)
            assert await fleet.edges[2].begin()

    asyncio.run(scenario())


@pytest.mark.parametrize("limits", [Limits(requests_per_minute=600), Limits(tokens_per_minute=600)])
@pytest.mark.parametrize("load", [(10, 10, 10), (20, 0, 0), (0, 1, 20)])
def test_a_loaded_fleet_uses_its_whole_limit(limits: Limits, load: tuple[int, ...]) -> None:
    async def scenario() -> None:
        fleet, tokens = Fleet(limits), 1 if limits.tokens_per_minute else 0
        for _ in range(120):
            for edge, count in zip(fleet.edges, load, strict=True):
                for _ in range(count):
                    if await edge.begin(tokens=tokens):
                        edge.end(used_tokens=tokens)
            await fleet.wait(REPORT_S)
        assert 0.97 * 1200 <= fleet.taken <= 1200  # a full bucket, and the refill of one minute

    asyncio.run(scenario())


def test_a_steady_load_asks_beforehand() -> None:
    async def scenario() -> None:
        fleet = Fleet(Limits(requests_per_minute=6000, tokens_per_minute=60_000, concurrent_streams=200))
        waited = 0
        for _ in range(60):
            for edge in fleet.edges:
                before = edge.link.calls
                for _ in range(10):
                    assert await edge.begin(tokens=10)
                waited += edge.link.calls - before
                for _ in range(10):
                    edge.end(used_tokens=10)
            await fleet.wait(REPORT_S)
        assert waited <= 3 * 3, "a question at the first request of each edge, for each kind of limit at most"

    asyncio.run(scenario())


def test_an_edge_apart_uses_its_part_and_owes_the_rest() -> None:
    async def scenario() -> None:
        fleet = Fleet(Limits(requests_per_minute=60))
        for edge in fleet.edges:
            await edge.begin()
        await fleet.wait(MINUTE_S)
        fleet.cut()
        for _ in range(4 * 60):
            for edge in fleet.edges:
                await edge.begin()
            await fleet.wait(REPORT_S)
        assert 0.9 * 180 <= fleet.taken <= 183, "a bucket and two minutes"
        fleet.cut(False)
        await fleet.wait(REPORT_S)
        for edge in fleet.edges:
            await edge.begin()
        assert fleet.taken <= 186

    asyncio.run(scenario())


def test_two_control_planes_behind_one_address_learn_of_each_others_grants() -> None:
    async def scenario() -> None:
        fleet = Fleet(Limits(requests_per_minute=600))
        pools = [fleet.pools, AllowancePools(fleet.clock)]
        for _ in range(2 * 180):
            for number, edge in enumerate(fleet.edges):
                for _ in range(10):
                    edge.link.pools = pools[(edge.link.calls + number) % 2]
                    await edge.begin()
            await fleet.wait(REPORT_S)
        assert 0.9 * 2400 <= fleet.taken <= 1.1 * 2400

    asyncio.run(scenario())


def test_permits_of_an_edge_apart_become_its_part_of_the_limit() -> None:
    async def scenario() -> None:
        fleet = Fleet(Limits(concurrent_streams=9))
        first, second, third = fleet.edges
        for edge in (second, third):
            await edge.begin()
            edge.end()
        await fleet.wait(VALID_S)
        assert [await first.begin() for _ in range(10)].count(True) == 7, "two are in reserve elsewhere"
        await fleet.wait(VALID_S)
        assert [await first.begin() for _ in range(3)].count(True) == 2
        await fleet.wait(VALID_S)
        fleet.cut()
        assert not await second.begin()
        await fleet.wait(VALID_S)
        assert [await second.begin() for _ in range(4)].count(True) == 3
        for _ in range(7):
            first.end()
        assert [await first.begin() for _ in range(4)].count(True) == 1
        fleet.cut(False)
        await fleet.wait(REPORT_S)
        assert fleet.streams == 6
        assert await second.begin()

    asyncio.run(scenario())


def test_a_batch_leaves_half_of_the_fleets_streams_to_others() -> None:
    async def scenario() -> None:
        fleet = Fleet(Limits(concurrent_streams=20))
        first, second, _ = fleet.edges
        assert [await first.begin() for _ in range(5)] == [True] * 5
        begun = [await second.begin(is_batch=True) for _ in range(10)].count(True)
        assert begun in (4, 5), "one permit may be in reserve"
        assert [await second.begin() for _ in range(9)] == [True] * 9

    asyncio.run(scenario())


def test_a_request_gets_as_many_streams_as_the_fleet_has_left() -> None:
    async def scenario() -> None:
        fleet = Fleet(Limits(concurrent_streams=5))
        assert await fleet.edges[0].begin(streams=3)
        await fleet.wait(2 * REPORT_S)
        assert await fleet.edges[1].begin(streams=4)
        assert (fleet.edges[1].streams, fleet.streams) == (2, 5)
        reservation = fleet.edges[2].limiter.enter({ACME: fleet.limits}, streams=1)
        with pytest.raises(StreamLimitExceeded) as caught:
            await fleet.edges[2].fleet.enter(reservation)
        reservation.settle(0)
        assert caught.value.retry_after_s == 1

    asyncio.run(scenario())


def test_a_refusal_tells_the_wait_of_the_fleets_bucket() -> None:
    async def scenario() -> None:
        fleet = Fleet(Limits(tokens_per_minute=60))
        assert await fleet.edges[0].begin(tokens=50)
        edge = fleet.edges[1]
        reservation = edge.limiter.enter({ACME: fleet.limits}, streams=1)
        await edge.fleet.enter(reservation)
        edge.limiter.reserve(reservation, 30)
        with pytest.raises(TokenRateExceeded) as caught:
            await edge.fleet.reserve(reservation)
        assert caught.value.retry_after_s == pytest.approx(20, abs=1)
        reservation.settle(0)
        assert await edge.begin(tokens=9)

    asyncio.run(scenario())


@pytest.fixture
def three_edges(tmp_path: Path) -> Callable[..., None]:
    """Run a scenario with a real control plane, a key of its tenant `acme`, and the access checks of three edges."""

    def run(scenario: Callable[..., Awaitable[None]], **limits: int) -> None:
        async def main() -> None:
            (tmp_path / "control.db").write_bytes(migrated())
            async with open_plane(database_url("", tmp_path), tmp_path) as plane:
                key = await plane.new_tenant("acme", limits=limits)
                clients = [HttpControlClient(EDGE_TOKEN, app=plane.client._transport.app) for _ in range(3)]  # type: ignore[attr-defined]
                edges = []
                for number, client in enumerate(clients):
                    directory = Directory(client, plane.clock, poll_s=1.0, max_age_s=600.0)
                    await directory.refresh()
                    access = Access(plane.clock, is_key_needed=True, directory=directory)
                    access.join_fleet(client, f"edge-{number}")
                    edges.append(access)
                await scenario(plane.clock, edges, f"Bearer {key}")
                for client in clients:
                    await client.close()

        asyncio.run(main())

    return run


async def admitted(access: Access, header: str) -> bool:
    caller = access.identify("POST", "/generate", header, None)
    try:
        admission = access.enter(caller, sequences=1)
    except LimitExceeded:
        return False
    try:
        await access.share(admission)
        await access.reserve(admission, base="b", prompt_tokens=1, budget_tokens=1)
    except LimitExceeded:
        return False
    finally:
        admission.settle(1, 1)
    return True


@pytest.mark.parametrize("load", [(4, 4, 4), (9, 0, 0)])
def test_three_edges_of_one_control_plane_share_a_limit(three_edges: Any, load: tuple[int, ...]) -> None:
    async def scenario(clock: ManualClock, edges: list[Access], header: str) -> None:
        count = 0
        for _ in range(60):
            for access, number in zip(edges, load, strict=True):
                count += sum([await admitted(access, header) for _ in range(number)])
                assert access.fleet is not None
                await access.fleet.refresh()
            clock.advance(1)
        assert 0.9 * 240 <= count <= 240

    three_edges(scenario, requests_per_minute=120)
