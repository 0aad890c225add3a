"""Engines whose clocks are minutes from the edge's, and began at another moment: no message has a time to compare."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from manylora.clock import SystemClock
from tests.fleet.fleet_house import fleet_house, request, text_of

MINUTES_S = 600.0
REQUESTS = 24


class ClockApart(SystemClock):
    """The machine's clock, moved. Its monotonic origin moves, too, as another machine's differs."""

    def __init__(self, apart_s: float) -> None:
        self._apart_s = apart_s

    def monotonic_s(self) -> float:
        return super().monotonic_s() + 1e6 + self._apart_s

    def wall_s(self) -> float:
        return super().wall_s() + self._apart_s


@pytest.mark.parametrize("of_edge_s", [0.0, MINUTES_S])
def test_engines_with_clocks_minutes_apart_share_the_requests_and_none_counts_as_gone(
    tmp_path: Path, of_edge_s: float
) -> None:
    async def main() -> None:
        async with fleet_house(tmp_path) as house:
            for apart_s in (-MINUTES_S, 0.0, MINUTES_S):
                await house.host(clock=ClockApart(apart_s))
            edge = await house.edge(clock=ClockApart(of_edge_s))
            asked = [edge.generate(request(f"SAY:{number}")) for number in range(REQUESTS)]
            assert await asyncio.gather(*map(text_of, asked)) == [str(number) for number in range(REQUESTS)]
            by_host = Counter(len(each.engine.submitted) for each in house.hosts)
            assert sum(count * hosts for count, hosts in by_host.items()) == REQUESTS
            assert min(by_host) > 0
            assert all(replica.host for replica in house.transports[edge]._replicas.values())

    asyncio.run(main())
