"""Streams of responses with `background`: they outlive their caller, and go on at any server from any event."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from manylora.clock import ManualClock
from manylora.server.routes.openai.responses import background, followers
from manylora.server.routes.openai.responses.events import CHUNK_EVENTS, EventLog
from tests.server.batches.batch_house import BatchHouse, soon, when
from tests.server.batches.test_responses import respond, text_of
from tests.server.batches.test_two_edges import answer_held, in_edges
from tests.server.responses.test_background import found, in_house, until

ASKED = {"input": "SAY:one two three", "background": True, "stream": True}
Event = dict[str, Any]


def events_in(text: str) -> list[Event]:
    """The events of a stream, each with the type that its line `event:` names."""
    found = []
    for block in filter(None, text.split("\n\n")):
        if block == ":":
            continue
        kind, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert kind == f"event: {found[-1]['type']}"
    return found


async def streamed(house: BatchHouse, **more: Any) -> list[Event]:
    reply = await house.client.post("/v1/responses", json={**ASKED, **more})
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "text/event-stream"
    return events_in(reply.text)


async def rejoined(house: BatchHouse, response_id: str, after: int | None = None) -> list[Event]:
    query = "" if after is None else f"&starting_after={after}"
    reply = await house.client.get(f"/v1/responses/{response_id}?stream=true{query}")
    assert reply.status_code == 200, reply.text
    return events_in(reply.text)


def background_ids(house: BatchHouse) -> list[str]:
    """The ids of the responses that a server runs."""
    assert house.app._response_routes is not None
    return [response_id for _, response_id in house.app._response_routes._background._held]


def test_each_event_has_its_number_and_the_last_one_the_response(tmp_path: Path) -> None:
    async def scenario(house: BatchHouse) -> None:
        events = await streamed(house)
        kinds = [event["type"] for event in events]
        assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"]
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert [event["response"]["status"] for event in events[:3]] == ["queued", "queued", "in_progress"]
        last = events[-1]["response"]
        assert (kinds[-1], last["status"], text_of(last)) == ("response.completed", "completed", "one two three")
        assert last == await found(house, last["id"])
        assert "".join(event.get("delta", "") for event in events) == "one two three"
        for after in (0, 3, len(events) - 2):
            assert await rejoined(house, last["id"], after) == events[after + 1 :]
        assert await rejoined(house, last["id"]) == events
        assert await rejoined(house, last["id"], 10**6) == events[-1:], "a reader learns the end in any case"

    in_house(tmp_path, scenario)


def test_a_stream_outlives_its_caller_and_goes_on_at_either_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "BEAT_S", 0.01)
    monkeypatch.setattr(followers, "FOLLOW_S", 0.01)

    async def scenario(one: BatchHouse, two: BatchHouse) -> None:
        left = asyncio.create_task(one.client.post("/v1/responses", json={**ASKED, "input": "WAIT"}))
        await one.runs()
        (response_id,) = background_ids(one)
        left.cancel()
        followed = [asyncio.create_task(rejoined(house, response_id, 0)) for house in (one, two)]
        await until(two, response_id, "in_progress")
        assert one.engine.live
        answer_held(one)
        here, there = await asyncio.gather(*followed)
        assert here == there == (await rejoined(two, response_id))[1:]
        assert here[-1]["response"] == await found(two, response_id)
        assert len(await one.shipped()) == 1

    in_edges(tmp_path, scenario)


def test_a_failure_is_the_last_event(tmp_path: Path) -> None:
    async def scenario(house: BatchHouse) -> None:
        events = await streamed(house, input="x" * 100_000)
        assert [event["type"] for event in events] == ["response.created", "response.queued", "response.failed"]
        last = events[-1]
        assert (last["sequence_number"], last["response"]["status"]) == (2, "failed")
        assert last["response"] == await found(house, last["response"]["id"])
        assert await rejoined(house, last["response"]["id"]) == events

    in_house(tmp_path, scenario)


@pytest.mark.parametrize("way", ["cancel", "delete"])
def test_a_cancelled_stream_ends_without_a_further_event(tmp_path: Path, way: str) -> None:
    async def scenario(house: BatchHouse) -> None:
        asked = asyncio.create_task(streamed(house, input="WAIT"))
        await house.runs()
        (response_id,) = background_ids(house)
        path = f"/v1/responses/{response_id}"
        client = house.client
        reply = await (client.delete(path) if way == "delete" else client.post(f"{path}/cancel"))
        assert reply.status_code == 200
        assert [event["type"] for event in await asked] == ["response.created", "response.queued"]
        await when(lambda: soon(not house.engine.live))
        if way == "cancel":
            assert [event["type"] for event in await rejoined(house, response_id, 0)] == ["response.queued"]

    in_house(tmp_path, scenario)


def test_the_stream_of_a_lost_server_ends_with_its_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "STOP_S", 0.0)
    clock, told = ManualClock(), list[str]()

    async def killed(house: BatchHouse) -> None:
        asked = asyncio.create_task(streamed(house, input="WAIT"))
        await house.runs()
        told.extend(background_ids(house))
        await until(house, told[0], "in_progress")
        house.plane.is_away = True
        asked.cancel()

    async def restarted(house: BatchHouse) -> None:
        house.plane.is_away = False
        clock.advance(61)
        for after in (None, 0, 500):
            assert (await rejoined(house, told[0], after))[-1]["type"] == "response.failed"

    in_house(tmp_path, killed, clock=clock, is_killed=True)
    in_house(tmp_path, restarted, clock=clock)


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("stream=true", "stream"),
        ("stream=1", "stream"),
        ("starting_after=1", "starting_after"),
        ("stream=true&starting_after=-1", "starting_after"),
        ("stream=true&starting_after=1e3", "starting_after"),
        ("stream=true&include_obfuscation=true", "include_obfuscation"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(tmp_path: Path, query: str, parameter: str) -> None:
    async def scenario(house: BatchHouse) -> None:
        response_id = (await respond(house))["id"]
        reply = await house.client.get(f"/v1/responses/{response_id}?{query}")
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, parameter)

    in_house(tmp_path, scenario)


def test_a_log_has_its_events_again_from_its_packed_form() -> None:
    log = EventLog()
    for number in range(3 * CHUNK_EVENTS + 5):
        log.add([("response.output_text.delta", {"delta": f"word {number}\n\n"})])
    assert len(log.packed()) == 4
    for copy in (log, EventLog(log.packed())):
        number, events = 0, list[bytes]()
        while some := copy.since(number):
            events += some
            number += len(some)
        assert [event["sequence_number"] for event in events_in(b"".join(events).decode())] == list(range(copy.count))
    more = EventLog(log.packed([("response.completed", {})]))
    assert (more.count, log.ending, more.ending is None) == (log.count + 1, None, False)
    assert sum(map(len, log.packed())) < 40 * log.count
