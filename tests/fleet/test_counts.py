"""Counts of tokens that no edge has recorded: kept over kills of hosts and edges, handed over, and recorded once."""

import asyncio
import os
from pathlib import Path

import pytest

from manylora.charging import Charge
from manylora.clock import SystemClock
from manylora.engine.events import FinishReason
from manylora.fleet.host import counts as counts_module
from manylora.fleet.host.counts import CountKeeper, KeptFrame
from manylora.ids import PROBE_FLOW, RequestId, TenantId, UsageId
from manylora.server.engine_client.messages import UndeliveredCount
from manylora.server.metering.append_log import FramedFile
from manylora.server.metering.journal import DeliveryJournal
from manylora.server.metering.meter import Meter, Payer
from manylora.server.metering.records import NO_TIMINGS, Timings
from manylora.server.metering.spool import Recorded, read_segment, segments_in
from tests.fleet.fleet_house import end_of, fleet_house, request, until


def facts(name: str) -> UndeliveredCount:
    return UndeliveredCount(UsageId(""), TenantId("t"), RequestId(name), "tiny", None, None, None, 7, 0)


def frame(number: int, tokens: dict[str, int], link: str = "host-edge-1") -> KeptFrame:
    return KeptFrame(link, number, [(facts(name), count) for name, count in tokens.items()])


def tokens_of(keeper: CountKeeper) -> dict[str, int]:
    return {count.request_id: count.tokens for count in keeper.orphans}


def again(keeper: CountKeeper, folder: Path, *, is_killed: bool) -> CountKeeper:
    if not is_killed:
        keeper.close()
    return CountKeeper(folder)


@pytest.mark.parametrize("is_killed", [False, True])
def test_frames_without_an_acknowledgement_outlive_their_host(tmp_path: Path, is_killed: bool) -> None:
    keeper = CountKeeper(tmp_path)
    keeper.keep([frame(1, {"a": 2}), frame(1, {"c": 1}, "host-other-2")])
    keeper.take("host-edge-1", 1)
    keeper.keep([frame(2, {"a": 1, "b": 1})])
    keeper.keep([frame(3, {"a": 1})])
    keeper = again(keeper, tmp_path, is_killed=is_killed)
    assert sorted(keeper.links) == ["host-edge-1", "host-other-2"]
    keeper.take("host-edge-1", 2)
    keeper.give_up("host-edge-1")
    assert tokens_of(keeper) == {"a": 1}
    first = keeper.orphans
    keeper = again(keeper, tmp_path, is_killed=is_killed)
    assert keeper.orphans == first
    assert keeper.links == ["host-other-2"]
    keeper.settle([first[0].id])
    keeper = again(keeper, tmp_path, is_killed=is_killed)
    assert (keeper.orphans, keeper.links) == ([], ["host-other-2"])


def test_a_next_part_has_all_that_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts_module, "PART_BYTES", 200)
    keeper = CountKeeper(tmp_path)
    for number in range(1, 40):
        keeper.keep([frame(number, {"long": 1, str(number): 2})])
        keeper.forget(RequestId(str(number)))
        keeper.take("host-edge-1", number - 2)
    assert len(list(tmp_path.glob("counts-*.journal"))) == 1
    keeper = again(keeper, tmp_path, is_killed=False)
    keeper.give_up("host-edge-1")
    assert tokens_of(keeper) == {"long": 2, "38": 2, "39": 2}


@pytest.mark.parametrize("begun", [b"", b"\x40\0\0\0\1\2\3\4torn"], ids=["empty", "torn"])
def test_a_part_without_a_whole_entry_replaces_none(tmp_path: Path, begun: bytes) -> None:
    keeper = CountKeeper(tmp_path)
    keeper.keep([frame(1, {"a": 2}), frame(1, {"b": 1}, "host-gone-1")])
    keeper.give_up("host-gone-1")
    (tmp_path / "counts-000001.journal").write_bytes(begun)
    keeper = again(keeper, tmp_path, is_killed=True)
    assert (keeper.links, tokens_of(keeper)) == (["host-edge-1"], {"b": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["counts-000002.journal"]


@pytest.mark.parametrize("moment", ["append", "rename"])
def test_a_kill_while_a_part_begins_loses_no_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    keeper = CountKeeper(tmp_path)
    keeper.keep([frame(1, {"a": 2})])

    def die(*words: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(counts_module, "PART_BYTES", 1)
        patch.setattr(FramedFile, moment, die)
        with pytest.raises(KeyboardInterrupt):
            keeper.keep([frame(2, {"a": 1})])
    assert [path.name for path in tmp_path.glob("counts-*")] == ["counts-000000.journal"]
    keeper = again(keeper, tmp_path, is_killed=True)
    keeper.give_up("host-edge-1")
    assert tokens_of(keeper) == {"a": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["counts-000001.journal"]


def test_a_part_that_begins_with_nothing_replaces_the_one_before(tmp_path: Path) -> None:
    keeper = CountKeeper(tmp_path)
    keeper.keep([frame(1, {"a": 2})])
    before = tmp_path / "counts-000000.journal"
    data = before.read_bytes()
    keeper.take("host-edge-1", 1)
    keeper = again(keeper, tmp_path, is_killed=False)
    before.write_bytes(data)  # as if a kill had come before its end
    assert again(keeper, tmp_path, is_killed=True).links == []


class Owner:
    def timings(self) -> Timings:
        return NO_TIMINGS

    def note_charge(self, charge: Charge) -> None:
        pass


def records_in(folder: Path) -> dict[str, int]:
    """The completion tokens of all durable records, by the id of the engine's request or the caller's."""
    found: dict[str, int] = {}
    ids = set()
    for place in (folder / "metering").iterdir():
        for _, path in segments_in(place):
            for entry in read_segment(path):
                if isinstance(entry, Recorded) and entry.record.id not in ids:
                    ids.add(entry.record.id)
                    name = entry.record.request_id
                    found[name] = found.get(name, 0) + entry.record.completion_tokens
    return found


def open_meter(folder: Path) -> Meter:
    return Meter(folder / "metering", clock=SystemClock(), ship_s=60, keeps_journals=True)


@pytest.mark.parametrize("end", ["edge", "connection", "edge and its disk"])
def test_every_committed_token_is_recorded_once(tmp_path: Path, end: str) -> None:
    """The edge stops to acknowledge, as if it hung; then it or its connection ends, and an edge takes the rest over."""

    async def main() -> None:
        async with fleet_house(tmp_path) as house:
            hosted = await house.host(fleet__edge_gone_s=0.1 if end == "edge and its disk" else 3600.0)
            meter = open_meter(tmp_path)
            edge = await house.edge(record=meter.journal)
            edge.watch(meter.note)
            sent = request("HOLD")
            payer = Payer(tenant=TenantId("t"), key=None, request_id=sent.id)
            meter.open(payer, [(sent, 0)], base="tiny", is_streamed=True, owner=Owner())
            stream = edge.generate(sent)
            await until(lambda: stream.num_tokens >= 3)
            house.silence(edge)
            await until(lambda: len(hosted.engine.live[sent.id].generated) > stream.num_tokens + 5)
            live = hosted.engine.live[sent.id]
            place = tmp_path
            if end == "connection":
                house.disconnect(edge)
                assert (await end_of(stream)).reason is FinishReason.ENGINE_FAILURE
            else:
                house.kill(edge)
                meter._release_folders()
                place = tmp_path / "elsewhere" if end == "edge and its disk" else tmp_path
                place.mkdir(exist_ok=True)
                meter = open_meter(place)
                await meter.recovered()
                await house.edge(record=meter.journal)
            await until(lambda: sent.id not in hosted.engine.live)
            await until(lambda: not (hosted.host._counts.orphans or hosted.host._counts.links))
            committed = len(live.generated)
            if end == "edge and its disk":  # all that the lost edge has not acknowledged
                assert committed - stream.num_tokens <= records_in(place)[sent.id] <= committed
            else:
                await until(lambda: records_in(place).get(sent.id, 0) >= committed)
                assert records_in(place)[sent.id] == committed

    asyncio.run(main())


def fill(journal: DeliveryJournal) -> None:
    """Let the disk below the present part of a journal be full."""
    assert journal._file is not None
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, journal._file._descriptor)
    os.close(full)


@pytest.mark.parametrize(("prompt", "before"), [("HOLD", 3), ("SAY:x", 0)], ids=["goes on", "ends in the frame"])
def test_a_frame_that_its_edge_cannot_record_is_counted_once(tmp_path: Path, prompt: str, before: int) -> None:
    async def main() -> None:
        async with fleet_house(tmp_path, 1) as house:
            (hosted,) = house.hosts
            meter = open_meter(tmp_path)
            edge = await house.edge(record=meter.journal)
            edge.watch(meter.note)
            sent = request(prompt, max_new_tokens=1)  # `HOLD` never ends
            payer = Payer(tenant=TenantId("t"), key=None, request_id=sent.id)
            meter.open(payer, [(sent, 0)], base="tiny", is_streamed=True, owner=Owner())
            stream = edge.generate(sent)
            await until(lambda: stream.num_tokens >= before)
            live = hosted.engine.live.get(sent.id)
            fill(meter.journal)
            end = await end_of(stream)
            assert (end.reason, end.failure and end.failure.error) == (FinishReason.ENGINE_FAILURE, "UsageUnrecorded")
            await until(lambda: sent.id not in hosted.engine.live)
            committed = len(live.generated) if live is not None else 1
            await until(lambda: records_in(tmp_path).get(sent.id, 0) >= committed)
            await until(lambda: not (hosted.host._counts.orphans or hosted.host._counts.links))
            assert records_in(tmp_path)[sent.id] == committed

    asyncio.run(main())


def test_probes_are_not_counted(tmp_path: Path) -> None:
    async def main() -> None:
        async with fleet_house(tmp_path, 1) as house:
            edge = await house.edge()
            stream = edge.generate(request("HOLD", flow=PROBE_FLOW))
            await stream.ready()
            house.silence(edge)
            house.kill(edge)
            (hosted,) = house.hosts
            await until(lambda: not hosted.engine.live)
            assert not hosted.host._counts.links

    asyncio.run(main())
