"""Counts without an edge are offered to one edge after the other until one has recorded them."""

import asyncio
from pathlib import Path

from manylora.clock import ManualClock
from manylora.fleet.host.counts import CountKeeper
from manylora.fleet.host.handover import OFFER_WAIT_S, Handover
from manylora.fleet.host.hub import EngineHub
from manylora.fleet.wire.link_messages import KeptCounts
from tests.fleet.linked_edge import LinkedEdge, linked_edge
from tests.fleet.test_counts import frame
from tests.server.manual_transport import ManualTransport


async def offer_to(edge: LinkedEdge) -> KeptCounts:
    message = await edge.next()
    assert isinstance(message, KeptCounts)
    return message


def orphan(keeper: CountKeeper, name: str) -> None:
    keeper.keep([frame(1, {name: 2}, f"host-{name}-1")])
    keeper.give_up(f"host-{name}-1")


def test_counts_go_to_the_next_edge_while_one_does_not_record_them(tmp_path: Path) -> None:
    async def main() -> None:
        clock, keeper = ManualClock(), CountKeeper(tmp_path)
        orphan(keeper, "gone")
        hub = EngineHub(ManualTransport(), keeper, clock, base=lambda: "tiny")
        handover = Handover(keeper, hub, clock, host="host", edge_gone_s=3600.0)
        async with linked_edge("full", clock) as full, linked_edge("other", clock) as other:
            hub.links += [full.link, other.link]
            handover.tend()
            first = await offer_to(full)
            for _ in range(4):
                handover.tend()
                clock.advance(OFFER_WAIT_S / 4)
            handover.tend()
            second = await offer_to(other)
            assert (second.number, second.counts) == (first.number + 1, first.counts)
            clock.advance(10 * OFFER_WAIT_S)
            handover.tend()  # each edge owes an answer
            handover.taken(other.link, second.number)
            assert keeper.orphans == []
            orphan(keeper, "late")
            handover.tend()
            third = await offer_to(other)
            assert (third.number, third.counts) == (second.number + 1, keeper.orphans)
            handover.taken(full.link, first.number)  # its disk has room again
            assert len(keeper.orphans) == 1
            handover.taken(other.link, third.number)
            orphan(keeper, "later")
            handover.tend()
            assert (await offer_to(full)).counts == keeper.orphans

    asyncio.run(main())
