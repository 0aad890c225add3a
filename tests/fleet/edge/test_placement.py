"""Places of adapters over real hosts: the demand of all edges, preloads, and replicas whose beats are false."""

import asyncio
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterAction
from manylora.cluster.demand import Arrivals
from manylora.engine.request import Request
from manylora.fleet.host.door import HostDoor
from manylora.fleet.host.link import EdgeLink
from manylora.fleet.wire.link_messages import HostBeat
from manylora.ids import Digest
from tests.fleet.fleet_house import FleetHouse, HostedFake, fleet_house, request, text_of, until
from tests.server.fake_engine import NOTHING_STORED
from tests.support.waiting import PATIENCE_S

HOT = AdapterRef(SourceName.LOCAL, "hot")
BANK_BYTES = 1 << 30


def for_adapter(prompt: str = "SAY:ok", ref: AdapterRef = HOT) -> Request:
    return replace(request(prompt, max_new_tokens=8), adapter=ref)


def preloaded(hosted: HostedFake) -> bool:
    return (AdapterAction.PRELOAD, HOT) in hosted.engine.adapters.asked


def prefetched(hosted: HostedFake) -> bool:
    return (AdapterAction.PREFETCH, HOT) in hosted.engine.adapters.asked


def change_beats(monkeypatch: pytest.MonkeyPatch, fields: dict[str, object], of: list[HostDoor] | None = None) -> None:
    """Replace fields of the beats of some doors, or of all, and let beats follow each other at once."""
    for module in ("fleet.host.host", "cluster.steering"):
        monkeypatch.setattr(f"manylora.{module}.BEAT_S", 0.02)
    told = HostDoor._beat_of

    def beat_of(door: HostDoor, link: EdgeLink, arrivals: dict[str, tuple[int, int]]) -> HostBeat:
        beat = told(door, link, arrivals)
        return beat if of is not None and door not in of else msgspec.structs.replace(beat, **fields)

    monkeypatch.setattr(HostDoor, "_beat_of", beat_of)


async def with_banks(house: FleetHouse, number: int) -> None:
    for _ in range(number):
        hosted = await house.host()
        hosted.engine.store = replace(NOTHING_STORED, bank_bytes_total=BANK_BYTES)


def test_a_hot_adapter_is_loaded_ahead_on_a_second_engine_and_every_edge_knows_the_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_beats(monkeypatch, {"tokens_per_s": 100.0})

    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), fleet_house(tmp_path) as house:
            await with_banks(house, 3)
            edge, other = await house.edge(), await house.edge()
            watching = house.transports[other]._router._steering
            sending = house.transports[edge]._router._steering
            while sum(map(preloaded, house.hosts)) < 2:
                streams = [edge.generate(for_adapter("SAY:ok" + "." * 200)) for _ in range(20)]
                assert [await text_of(stream) for stream in streams] == ["ok" + "." * 6] * 20
            assert max(map(len, sending.placement.places.values())) >= 2
            # The other edge has sent no request, and has the demand from the engines.
            await until(lambda: any(len(places) >= 2 for places in watching.placement.places.values()))
            assert not any(
                action is not AdapterAction.PRELOAD
                for each in house.hosts
                for action, ref in each.engine.adapters.asked
                if ref == HOT
            )

    asyncio.run(main())


def test_a_warm_adapter_is_prefetched_to_the_disk_of_the_engine_that_gets_its_overflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_beats(monkeypatch, {})
    monkeypatch.setattr("manylora.cluster.steering.PREFETCH_S", 0.05)

    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), fleet_house(tmp_path) as house:
            for _ in range(2):
                hosted = await house.host()
                hosted.engine.store = replace(NOTHING_STORED, disk_bytes_total=BANK_BYTES)
            edge = await house.edge()
            for _ in range(3):
                assert await text_of(edge.generate(for_adapter())) == "ok"
            await until(lambda: any(prefetched(each) and not each.engine.submitted for each in house.hosts))
            assert not any(map(preloaded, house.hosts))

    asyncio.run(main())


def test_an_adapter_of_a_callers_own_credential_is_loaded_for_requests_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), fleet_house(tmp_path, 1) as house:
            router = house.transports[await house.edge()]._router
            router.want_for(for_adapter(ref=replace(HOT, token="hub-token")))
            assert not router._refs
            router.want_for(for_adapter())
            assert list(router._refs.values()) == [HOT]

    asyncio.run(main())


@pytest.mark.parametrize("action", [AdapterAction.EVICT, AdapterAction.DELETE])
def test_the_ranking_forgets_what_is_evicted_or_deleted_everywhere(tmp_path: Path, action: AdapterAction) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), fleet_house(tmp_path, 2) as house:
            edge = await house.edge()
            seen = house.transports[edge]._router._steering
            key = Digest("local:hot")
            seen.arrived(key, Arrivals(requests=100, tokens=1e6, num_bytes=1))
            seen.view.placed[key] = seen.view.is_open.nonzero()[0]
            await edge.manage(action, HOT)
            assert key not in seen.view.placed
            assert key not in seen._arrived

    asyncio.run(main())


@pytest.mark.parametrize(
    "lie",
    [
        {"tiers": {"local:hot": 0}, "sizes": {"local:hot": 1}},
        {"tiers": {"local:hot": -7, "no name": 99}, "sizes": {"local:hot": -5}},
        {"backlog_tokens": float("nan"), "tokens_per_s": float("inf")},
        {"backlog_tokens": -1e300, "tokens_per_s": -1.0, "received": 1 << 40},
        {"load_s": (-1.0, float("nan"), float("inf")), "bank_bytes": -1, "disk_bytes": -1},
        {"arrivals": {"local:hot": (-5, -5), "": (1 << 60, 1 << 60)}, "bank_bytes": 1 << 62, "disk_bytes": 1 << 62},
    ],
)
def test_an_engine_that_lies_in_its_beats_changes_no_reply(
    tmp_path: Path, lie: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beats are hints: the engine that gets the request decides, and another one gets what it refuses."""
    liars: list[HostDoor] = []
    change_beats(monkeypatch, lie, liars)

    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), fleet_house(tmp_path) as house:
            await with_banks(house, 2)
            liars.append(house.hosts[0].host._door)
            house.hosts[0].engine.refused_seed = 7
            edge = await house.edge()
            beats = house.transports[edge]._router._epochs
            for hosted in house.hosts:
                assert hosted.host.address in beats
            for number in range(4):
                assert await text_of(edge.generate(for_adapter(f"SAY:{number}"))) == str(number)
            asked = for_adapter()
            refused = replace(asked, sampling=replace(asked.sampling, seed=7))
            assert await text_of(edge.generate(refused)) == "ok"
            before = dict(beats)
            await until(lambda: all(beats[address] > 2 + before[address] for address in house.addresses))
            assert await text_of(edge.generate(for_adapter())) == "ok"

    asyncio.run(main())
