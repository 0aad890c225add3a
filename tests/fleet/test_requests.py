"""Requests of edges on several replicas: each ends once, and another replica takes those of a lost one."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from manylora.engine.events import Finished, FinishReason
from manylora.fleet.edge.replicas import ListedReplicas
from tests.fleet.fleet_house import FleetHouse, HostedFake, end_of, fleet_house, request, text_of, until
from tests.support.waiting import PATIENCE_S


def run(tmp_path: Path, num_hosts: int, scenario: Callable[[FleetHouse], Awaitable[None]]) -> None:
    async def main() -> None:
        async with fleet_house(tmp_path, num_hosts) as house:
            await scenario(house)

    asyncio.run(main())


def host_of(house: FleetHouse, request_id: str) -> HostedFake:
    """The one host whose engine has a request now."""
    (found,) = [each for each in house.hosts if request_id in each.engine.live]
    return found


def test_two_edges_share_the_engines_of_a_fleet(tmp_path: Path) -> None:
    async def scenario(house: FleetHouse) -> None:
        edges = [await house.edge() for _ in range(2)]
        asked = [edge.generate(request(f"SAY:{number}")) for number in range(20) for edge in edges]
        texts = await asyncio.gather(*map(text_of, asked))
        assert texts == [str(number) for number in range(20) for _ in edges]
        counts = [len(each.engine.submitted) for each in house.hosts]
        assert sum(counts) == 40
        assert min(counts) > 0
        assert edges[0].served.model_id == "tiny"
        assert (Path(edges[0].served.base_dir) / "tokenizer.json").is_file()
        committed = 2 * sum(len(str(number)) + 1 for number in range(20))
        async with asyncio.timeout(PATIENCE_S):
            while (stats := await edges[0].stats()) is None or stats.completion_tokens != committed:
                pass  # the numbers of each engine are a second old at most

    run(tmp_path, 3, scenario)


def test_a_lost_engine_ends_streams_and_hands_requests_without_a_token_to_another(tmp_path: Path) -> None:
    async def scenario(house: FleetHouse) -> None:
        edge = await house.edge()
        ends: list[Finished] = []
        edge.watch(lambda _, end: ends.append(end))
        running = edge.generate(request("HOLD"))
        await running.ready()
        lost = host_of(house, running.request.id)
        waiting = [edge.generate(request("WAIT SAY:ok")) for _ in range(4)]
        await until(lambda: sum(len(each.engine.live) for each in house.hosts) == 5)
        there = [each for each in waiting if each.request.id in lost.engine.live]
        assert there
        (other,) = [each for each in house.hosts if each is not lost]
        await house.cut(lost)
        end = await end_of(running)
        assert (end.reason, end.failure and end.failure.error) == (FinishReason.ENGINE_FAILURE, "Unavailable")
        await until(lambda: len(other.engine.live) == 4)
        assert all(each.finished is None for each in waiting)
        for each in waiting:
            each.close()
        await until(lambda: len(ends) == 5)
        assert sorted(each.request_id for each in ends) == sorted(each.request.id for each in (running, *waiting))
        await until(lambda: not lost.engine.live)  # the host has ended what its edge has left

    run(tmp_path, 2, scenario)


def test_an_engine_that_is_silent_gives_its_requests_without_a_token_to_another(tmp_path: Path) -> None:
    async def scenario(house: FleetHouse) -> None:
        edge = await house.edge()
        waiting = [edge.generate(request("WAIT SAY:ok")) for _ in range(4)]
        await until(lambda: sum(len(each.engine.live) for each in house.hosts) == 4)
        silent, other = sorted(house.hosts, key=lambda each: -len(each.engine.live))
        assert silent.engine.live
        replica = house.transports[edge]._replicas[silent.host.address]
        # Its beats come each half second: to this edge it is silent between two of them.
        replica._identity = replace(replica._identity, peer_timeout_s=0.1)
        await until(lambda: len(other.engine.live) == 4)
        assert all(each.finished is None for each in waiting)
        await until(lambda: not silent.engine.live)

    run(tmp_path, 2, scenario)


def test_a_request_that_ends_two_engines_is_not_tried_on_a_third(tmp_path: Path) -> None:
    async def scenario(house: FleetHouse) -> None:
        edge = await house.edge()
        end = await end_of(edge.generate(request("CRASH")))
        assert (end.reason, end.failure and end.failure.error) == (FinishReason.ENGINE_FAILURE, "EngineFault")
        assert sorted(len(each.engine.submitted) for each in house.hosts) == [0, 1, 1]
        assert await text_of(edge.generate(request("SAY:ok"))) == "ok"

    run(tmp_path, 3, scenario)


def test_a_refusal_of_one_engine_sends_the_request_to_the_next(tmp_path: Path) -> None:
    async def scenario(house: FleetHouse) -> None:
        edge = await house.edge()
        house.hosts[0].engine.refused_seed = 0
        texts = await asyncio.gather(*(text_of(edge.generate(request("SAY:ok"))) for _ in range(6)))
        assert texts == ["ok"] * 6
        assert house.hosts[0].engine.submitted
        house.hosts[1].engine.refused_seed = 0
        end = await end_of(edge.generate(request("SAY:ok")))
        assert (end.reason, end.failure and end.failure.error) == (FinishReason.REJECTED, "Overloaded")

    run(tmp_path, 2, scenario)


def test_an_edge_that_leaves_ends_its_requests_alone(tmp_path: Path) -> None:
    async def scenario(house: FleetHouse) -> None:
        leaving, staying = await house.edge(), await house.edge()
        gone, kept = leaving.generate(request("HOLD")), staying.generate(request("HOLD"))
        await gone.ready()
        await kept.ready()
        await leaving.close()
        assert (await end_of(gone)).reason is FinishReason.SHUTDOWN
        (hosted,) = house.hosts
        await until(lambda: list(hosted.engine.live) == [kept.request.id])
        kept.close()
        await until(lambda: kept.request.id not in hosted.engine.live)

    run(tmp_path, 1, scenario)


def test_a_drained_engine_finishes_its_streams_and_takes_no_new_request(tmp_path: Path) -> None:
    async def scenario(house: FleetHouse) -> None:
        edge = await house.edge()
        gate = tmp_path / "gate"
        gate.touch()
        for each in house.hosts:
            each.engine.gate = gate
        stream = edge.generate(request("REST SAY:a long reply"))
        await stream.ready()
        draining = host_of(house, stream.request.id)
        drain = asyncio.create_task(draining.host.drain(60))
        await until(lambda: draining.host.load().is_draining)
        texts = await asyncio.gather(*(text_of(edge.generate(request("SAY:ok"))) for _ in range(6)))
        assert texts == ["ok"] * 6
        assert len(draining.engine.submitted) == 1
        assert not drain.done()
        gate.unlink()
        assert await text_of(stream) == "a long reply"
        await drain
        await draining.host.close()
        assert await text_of(edge.generate(request("SAY:ok"))) == "ok"

    run(tmp_path, 2, scenario)


def test_a_drain_has_a_limit(tmp_path: Path) -> None:
    async def scenario(house: FleetHouse) -> None:
        edge = await house.edge()
        stream = edge.generate(request("HOLD"))
        await stream.ready()
        await house.hosts[0].host.drain(0)
        await house.hosts[0].host.close()
        end = await end_of(stream)
        assert (end.reason, end.failure and end.failure.error) == (FinishReason.SHUTDOWN, "Unavailable")

    run(tmp_path, 1, scenario)


def test_the_list_of_engines_may_change_at_any_time(tmp_path: Path) -> None:
    async def scenario(house: FleetHouse) -> None:
        first, second = house.hosts
        listed = ListedReplicas([first.host.address])
        edge = await house.edge(listed)
        stream = edge.generate(request("HOLD"))
        await stream.ready()
        listed.set([second.host.address])
        await until(lambda: second.host.load().num_edges == 1)
        texts = await asyncio.gather(*(text_of(edge.generate(request("SAY:ok"))) for _ in range(3)))
        assert texts == ["ok"] * 3
        assert len(second.engine.submitted) == 3
        stream.close()
        await until(lambda: first.host.load().num_edges == 0)

    run(tmp_path, 2, scenario)
