"""An edge over calls, one replica of which is silent: the others answer, and its acts are carried out on its return."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterAction
from manylora.errors import AdapterCapacity, AdapterNotFound, Unavailable
from manylora.ids import Flow, ReplicaId
from manylora.ray_serve.edge import handle_transport
from manylora.server.engine_client.client import EngineClient
from tests.ray_serve.carried import CarriedCalls, fleet
from tests.ray_serve.edge.test_handle_transport import until
from tests.support.waiting import PATIENCE_S

TONE = AdapterRef(SourceName.LOCAL, "tone")
ACME, OTHER = Flow("acme"), Flow("other")
FIRST, SECOND = (ReplicaId(f"replica-{number}") for number in range(2))


@pytest.fixture(autouse=True)
def fast_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handle_transport, "BEAT_S", 0.001)


def run(folder: Path, scenario: Callable[[EngineClient, CarriedCalls], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), fleet(folder) as (edge, calls):
            await edge.infos()  # both have answered once
            await scenario(edge, calls)

    asyncio.run(main())


def acts(calls: CarriedCalls, name: ReplicaId) -> list[AdapterAction]:
    return [action for action, ref in calls.engines[name].adapters.asked if ref == TONE]


def orders(edge: EngineClient) -> object:
    """Return the acts without an answer yet."""
    return edge._transport._replicas._questions._orders  # type: ignore[attr-defined]  # the transport of calls


async def silenced(edge: EngineClient, calls: CarriedCalls) -> None:
    calls.silent = {SECOND}
    await until(lambda: edge.health().silent == (SECOND,))


def test_answers_name_the_replica_that_gave_none(tmp_path: Path) -> None:
    async def scenario(edge: EngineClient, calls: CarriedCalls) -> None:
        assert edge.health().silent == ()
        both = await edge.info(TONE)
        assert (sorted(both.replicas), both.silent) == ([FIRST, SECOND], ())
        await silenced(edge, calls)
        stats = await edge.stats()
        assert stats is not None
        assert stats.ranks_up == 1
        one = await edge.info(TONE)
        assert ([*one.replicas], one.silent) == ([FIRST], (SECOND,))
        assert {info.silent for info in await edge.infos()} == {(SECOND,)}
        assert (await edge.manage(AdapterAction.PRELOAD, TONE)).silent == (SECOND,)
        calls.silent = {FIRST, SECOND}
        with pytest.raises(Unavailable, match=r"no answer from replica-0, replica-1"):
            await edge.info(TONE)
        calls.silent = set()
        await until(lambda: edge.health().silent == ())
        assert sorted((await edge.info(TONE)).replicas) == [FIRST, SECOND]

    run(tmp_path, scenario)


@pytest.mark.parametrize("action", [AdapterAction.DELETE, AdapterAction.EVICT, AdapterAction.PIN])
def test_an_act_reaches_a_replica_that_was_away_once_it_answers(tmp_path: Path, action: AdapterAction) -> None:
    async def scenario(edge: EngineClient, calls: CarriedCalls) -> None:
        await silenced(edge, calls)
        assert (await edge.manage(action, TONE)).silent == (SECOND,)
        assert (acts(calls, FIRST), acts(calls, SECOND)) == ([action], [])
        calls.silent = set()
        await until(lambda: acts(calls, SECOND) == [action])
        await until(lambda: not orders(edge))  # a lost answer repeats its act
        await silenced(edge, calls)
        calls.silent = set()
        await until(lambda: edge.health().silent == ())
        await edge.infos()
        again = [action] if action is AdapterAction.PIN else []  # it ends with an engine, and has no effect twice
        await until(lambda: (acts(calls, FIRST), acts(calls, SECOND)) == ([action], [action, *again]))

    run(tmp_path, scenario)


def test_each_replica_drops_the_grammars_of_a_closed_tenant_also_one_that_was_away(tmp_path: Path) -> None:
    async def scenario(edge: EngineClient, calls: CarriedCalls) -> None:
        await edge.drop_grammars([ACME])
        assert [engine.dropped for engine in calls.engines.values()] == [[ACME], [ACME]]
        await silenced(edge, calls)
        await edge.drop_grammars([OTHER])
        assert [engine.dropped for engine in calls.engines.values()] == [[ACME, OTHER], [ACME]]
        calls.silent = set()
        await until(lambda: OTHER in calls.engines[SECOND].dropped)

    run(tmp_path, scenario)


def test_an_act_reaches_a_replica_that_falls_silent_with_it_again(tmp_path: Path) -> None:
    async def scenario(edge: EngineClient, calls: CarriedCalls) -> None:
        calls.silent = {SECOND}  # the edge does not know it yet
        assert (await edge.manage(AdapterAction.DELETE, TONE)).silent == (SECOND,)
        calls.silent = set()
        await until(lambda: acts(calls, SECOND) == [AdapterAction.DELETE])

    run(tmp_path, scenario)


def test_a_replica_that_is_new_gets_the_acts_before_its_start(tmp_path: Path) -> None:
    async def scenario(edge: EngineClient, calls: CarriedCalls) -> None:
        later = calls.replicas.pop(SECOND)
        await until(lambda: edge.health().silent == ())
        await edge.manage(AdapterAction.DELETE, TONE)
        calls.replicas[SECOND] = later
        await until(lambda: acts(calls, SECOND) == [AdapterAction.DELETE])

    run(tmp_path, scenario)


def test_an_old_deletion_takes_no_later_version(tmp_path: Path) -> None:
    async def scenario(edge: EngineClient, calls: CarriedCalls) -> None:
        await silenced(edge, calls)
        await edge.manage(AdapterAction.DELETE, TONE)
        with pytest.raises(AdapterNotFound):
            await edge.info(TONE)
        calls.engines[FIRST].adapters.deleted.discard(TONE)  # its source has another version
        calls.silent = set()
        await until(lambda: acts(calls, SECOND) == [AdapterAction.EVICT])

    run(tmp_path, scenario)


def test_a_deletion_that_a_replica_refused_is_tried_again_after_its_absence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(action: AdapterAction, ref: AdapterRef) -> None:
        raise AdapterCapacity("full")

    async def scenario(edge: EngineClient, calls: CarriedCalls) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(calls.engines[SECOND].adapters, "manage", refuse)
            with pytest.raises(AdapterCapacity, match="full"):
                await edge.manage(AdapterAction.DELETE, TONE)
        await silenced(edge, calls)
        calls.silent = set()
        await until(lambda: acts(calls, SECOND) == [AdapterAction.DELETE])

    run(tmp_path, scenario)
