"""Acts of operators on adapters reach every replica, those that were away included, and have one answer."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterAction, AdapterInfo, AdapterState
from manylora.config.settings import load_config, parse_setting
from manylora.errors import AdapterCapacity, AdapterInUse, AdapterNotFound, Unavailable
from manylora.fleet.edge.merged import merged_infos
from manylora.fleet.edge.questions import FleetQuestions
from manylora.fleet.edge.replicas import ListedReplicas
from manylora.fleet.edge.transport import FleetTransport
from manylora.server.engine_client.client import EngineClient
from tests.fleet.fleet_house import FleetHouse, fleet_config, fleet_house, request, text_of, until

TONE = AdapterRef(SourceName.LOCAL, "team/tone")


def run(tmp_path: Path, num_hosts: int, scenario: Callable[[FleetHouse], Awaitable[None]]) -> None:
    async def main() -> None:
        async with fleet_house(tmp_path, num_hosts) as house:
            await scenario(house)

    asyncio.run(main())


def asked(house: FleetHouse) -> list[list[AdapterAction]]:
    return [[action for action, ref in each.engine.adapters.asked if ref == TONE] for each in house.hosts]


@pytest.mark.parametrize(
    "action", [AdapterAction.PIN, AdapterAction.EVICT, AdapterAction.DELETE, AdapterAction.PRELOAD]
)
def test_an_act_reaches_every_engine(tmp_path: Path, action: AdapterAction) -> None:
    async def scenario(house: FleetHouse) -> None:
        edge = await house.edge()
        info = await edge.manage(action, TONE)
        assert (info.id, info.source) == ("team/tone", "local")
        assert asked(house) == [[action]] * 3

    run(tmp_path, 3, scenario)


def test_an_engine_that_was_away_gets_what_it_missed_and_nothing_twice(tmp_path: Path) -> None:
    async def scenario(house: FleetHouse) -> None:
        first, second = house.hosts
        listed = ListedReplicas([first.host.address])
        edge = await house.edge(listed)
        await edge.manage(AdapterAction.DELETE, TONE)
        listed.set(house.addresses)
        await until(lambda: asked(house) == [[AdapterAction.DELETE]] * 2)
        await until(lambda: not house.transports[edge]._questions._orders)  # a lost answer repeats its act
        replicas = house.transports[edge]._replicas.values()
        before = [each._writer for each in replicas]
        house.disconnect(edge)
        await until(lambda: all(each.is_open and each._writer not in before for each in replicas))
        await edge.manage(AdapterAction.PIN, AdapterRef(SourceName.LOCAL, "other"))
        assert asked(house) == [[AdapterAction.DELETE]] * 2
        assert len(second.engine.adapters.asked) == 2

    run(tmp_path, 2, scenario)


def test_an_act_that_was_refused_without_an_engine_reaches_none_later(tmp_path: Path) -> None:
    async def scenario(house: FleetHouse) -> None:
        first, _ = house.hosts
        listed = ListedReplicas([first.host.address])
        edge = await house.edge(listed)
        listed.set([])
        await until(lambda: not house.transports[edge]._replicas)
        with pytest.raises(Unavailable):
            await edge.manage(AdapterAction.DELETE, TONE)
        listed.set(house.addresses)
        await until(lambda: [each.is_open for each in house.transports[edge]._replicas.values()] == [True, True])
        await edge.manage(AdapterAction.PIN, TONE)
        await until(lambda: asked(house) == [[AdapterAction.PIN]] * 2)

    run(tmp_path, 2, scenario)


def test_an_old_deletion_takes_no_later_version(tmp_path: Path) -> None:
    async def scenario(house: FleetHouse) -> None:
        first, second = house.hosts
        listed = ListedReplicas([first.host.address])
        edge = await house.edge(listed)
        await edge.manage(AdapterAction.DELETE, TONE)
        with pytest.raises(AdapterNotFound):
            await edge.info(TONE)
        first.engine.adapters.deleted.discard(TONE)  # its source has another version
        await edge.manage(AdapterAction.PIN, TONE)
        listed.set(house.addresses)
        # Its bytes of any version go, its name stays, and the later act comes last.
        await until(lambda: asked(house)[1] == [AdapterAction.EVICT, AdapterAction.PIN])
        assert not second.engine.adapters.info(TONE).is_deleted

    run(tmp_path, 2, scenario)


def test_an_engine_gets_no_request_for_a_deleted_adapter_before_it_has_caught_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(house: FleetHouse) -> None:
        first, second = house.hosts
        listed = ListedReplicas([first.host.address])
        edge = await house.edge(listed)
        await edge.manage(AdapterAction.DELETE, TONE)
        first.engine.adapters.deleted.discard(TONE)  # its source has another version
        monkeypatch.setattr(FleetQuestions, "_catch_up_with_deletion", lambda *_: None)  # as if no engine answered
        listed.set(house.addresses)
        replicas = house.transports[edge]._replicas
        address = second.host.address
        await until(lambda: address in replicas and replicas[address].is_open)
        for prompt in ("SAY:a", "SAY:b", "SAY:c", "SAY:d"):
            assert await text_of(edge.generate(replace(request(prompt), adapter=TONE))) == prompt[-1]
        assert len(first.engine.submitted) == 4
        monkeypatch.undo()
        await until(lambda: len(asked(house)[1]) == 1)
        assert not house.transports[edge]._questions.is_behind(replicas[address], TONE)

    run(tmp_path, 2, scenario)


@pytest.mark.parametrize(
    ("action", "refusal"),
    [(AdapterAction.DELETE, AdapterCapacity("full")), (AdapterAction.EVICT, AdapterInUse("in use"))],
)
def test_the_refusal_of_one_engine_is_the_answer(
    tmp_path: Path, action: AdapterAction, refusal: AdapterCapacity | AdapterInUse
) -> None:
    def refuse(action: AdapterAction, ref: AdapterRef) -> AdapterInfo:
        raise refusal

    async def scenario(house: FleetHouse) -> None:
        edge = await house.edge()
        adapters = house.hosts[2].engine.adapters
        manage, adapters.manage = adapters.manage, refuse  # type: ignore[method-assign]
        with pytest.raises(type(refusal), match=refusal.message):
            await edge.manage(action, TONE)
        adapters.manage = manage  # type: ignore[method-assign]
        house.disconnect(edge)
        replicas = house.transports[edge]._replicas.values()
        before = [each._writer for each in replicas]
        await until(lambda: all(each.is_open and each._writer not in before for each in replicas))
        # A deletion must not be lost; its next connection repeats it.
        expected = [AdapterAction.DELETE] if action is AdapterAction.DELETE else []
        await until(lambda: asked(house)[2] == expected)

    run(tmp_path, 3, scenario)


def test_an_adapter_is_missing_only_if_every_engine_misses_it(tmp_path: Path) -> None:
    async def scenario(house: FleetHouse) -> None:
        edge = await house.edge()
        with pytest.raises(AdapterNotFound):
            await edge.manage(AdapterAction.EVICT, AdapterRef(SourceName.LOCAL, "missing"))
        assert [info.id for info in await edge.infos()] == ["team/tone"]

    run(tmp_path, 2, scenario)


def test_replicas_have_one_state_of_an_adapter() -> None:
    near = AdapterInfo(id="a", source="s3", state=AdapterState.ON_DEVICE, pins=1, hits=3, last_use_s=5.0, digest="d")
    far = replace(near, state=AdapterState.ABSENT, pins=0, hits=1, last_use_s=2.0, is_pinned=True, is_verified=False)
    other = replace(near, id="b")
    found = merged_infos([("one", [far]), ("two", [near, other])])
    places = {"one": AdapterState.ABSENT, "two": AdapterState.ON_DEVICE}
    both = replace(near, pins=1, hits=4, last_use_s=2.0, is_pinned=True, is_verified=False, replicas=places)
    assert found == (both, replace(other, replicas={"two": AdapterState.ON_DEVICE}))


def test_the_preloads_and_pins_of_an_edge_reach_every_engine_and_each_that_starts_anew(tmp_path: Path) -> None:
    wanted = [AdapterAction.PIN, AdapterAction.PRELOAD]

    async def scenario(house: FleetHouse) -> None:
        engines = ",".join(house.addresses)
        settings = {"adapters.pinned": "team/tone", "adapters.preload": "team/tone", "fleet.engines": engines}
        config = load_config(None, {name: parse_setting(name, text) for name, text in settings.items()}, {})
        own = fleet_config(tmp_path)
        edge = EngineClient(
            FleetTransport(
                replace(own, adapters=config.adapters, fleet=replace(own.fleet, engines=config.fleet.engines))
            )
        )
        house.stack.push_async_callback(edge.close)
        await edge.start()
        await until(lambda: asked(house) == [wanted] * 3)
        for replica in edge._transport._replicas.values():  # type: ignore[attr-defined]  # the transport of a fleet
            assert replica._writer is not None
            replica._writer.transport.abort()  # as at the end of its engine
        await until(lambda: asked(house) == [wanted * 2] * 3)

    run(tmp_path, 3, scenario)
