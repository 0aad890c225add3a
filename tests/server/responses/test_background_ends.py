"""Ends of responses with `background`: their cost, their conversations, and the bounds that refuse them."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from manylora.errors import ControlUnavailable, StorageLimitExceeded
from manylora.server.routes.openai.responses import background, routes
from manylora.server.storage.control_store import ControlStore
from manylora.server.storage.responses import TenantResponses
from manylora.stored.conversations import MOST_BYTES
from tests.server.batches.batch_house import BatchHouse, soon, when
from tests.server.batches.test_conversations import ROOT, make, texts
from tests.server.batches.test_responses import respond, text_of
from tests.server.batches.test_two_edges import answer_held, in_edges
from tests.server.responses.test_background import in_house, until


def test_a_lost_answer_of_the_conversation_generates_and_adds_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "FIRST_WAIT_S", 0.0)
    keep, calls = ControlStore.keep_conversation, list[str]()

    async def lossy(self: ControlStore, tenant: Any, conversation: str, data: bytes, before: str) -> None:
        await keep(self, tenant, conversation, data, before)
        calls.append(before)
        if before and len(calls) < 4:
            raise ControlUnavailable("the answer is lost")

    async def scenario(house: BatchHouse) -> None:
        conversation = await make(house)
        monkeypatch.setattr(ControlStore, "keep_conversation", lossy)
        queued = await respond(house, background=True, conversation=conversation)
        await until(house, queued["id"], "completed")
        await when(lambda: soon(len(calls) == 4))
        assert await texts(house, conversation) == ["SAY:hello", "hello"]
        assert (len(await house.shipped()), len(house.engine.submitted)) == (1, 1)

    in_house(tmp_path, scenario)


@pytest.mark.parametrize("at", ["one", "two"])
@pytest.mark.parametrize("way", ["cancel", "delete"])
def test_who_cancels_or_deletes_pays_as_one_who_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, at: str
) -> None:
    monkeypatch.setattr(background, "BEAT_S", 0.01 if at == "two" else 1e6)  # at its own server it ends at once

    async def scenario(one: BatchHouse, two: BatchHouse) -> None:
        response_id = (await respond(one, "HOLD", background=True))["id"]
        await one.runs()
        await when(lambda: soon(any(len(live.generated) > 50 for live in one.engine.live.values())))
        client = (one if at == "one" else two).client
        path = f"/v1/responses/{response_id}"
        reply = await (client.delete(path) if way == "delete" else client.post(f"{path}/cancel"))
        assert reply.status_code == 200
        await when(lambda: soon(not one.engine.live))
        records = list[Any]()

        async def is_shipped() -> bool:
            records[:] = await one.shipped()
            return bool(records)

        await when(is_shipped)
        (record,) = records
        assert record.charged_prompt_tokens == record.prompt_tokens > 0
        assert record.charged_completion_tokens > 0

    in_edges(tmp_path, scenario)


SCORED = {"include": ["message.output_text.logprobs"], "top_logprobs": 5}


def test_a_response_whose_end_may_not_fit_is_refused_before_it_runs(tmp_path: Path) -> None:
    async def scenario(house: BatchHouse) -> None:
        for more in ({}, {"max_output_tokens": 20, **SCORED}, {"max_output_tokens": 100, "stream": True}):
            reply = await house.client.post("/v1/responses", json={"input": "SAY:x", "background": True, **more})
            assert (reply.status_code, reply.json()["error"]["code"]) == (403, "storage_limit_exceeded")
            assert "`max_output_tokens`" in reply.json()["error"]["message"]
        assert house.engine.submitted == []
        assert await house.shipped() == []
        queued = await respond(house, "SAY:hello", background=True, max_output_tokens=8)
        assert text_of(await until(house, queued["id"], "completed")) == "hello"

    in_house(tmp_path, scenario, storage={"tenant_response_bytes": 4000})


@pytest.mark.long
def test_responses_under_way_hold_room_for_their_ends(tmp_path: Path) -> None:
    async def scenario(house: BatchHouse) -> None:
        body = {"input": "WAIT", "background": True, "max_output_tokens": 50}
        replies = [await house.client.post("/v1/responses", json=body) for _ in range(3)]
        assert [reply.status_code for reply in replies] == [200, 200, 429], "room comes as they end"
        refused = replies[2]
        assert (refused.json()["error"]["code"], refused.headers["retry-after"]) == ("rate_limit_exceeded", "5")
        for name in ("tenant_response_bytes", "`max_output_tokens`", "`background`"):
            assert name in refused.text
        await house.runs(2)
        answer_held(house)
        for reply in replies[:2]:
            await until(house, reply.json()["id"], "completed")
        assert (await house.client.post("/v1/responses", json=body)).status_code == 200, "an end takes its bytes alone"

    in_house(tmp_path, scenario, storage={"tenant_response_bytes": 5500})


def test_a_number_of_responses_under_way_is_lifted_by_their_ends(tmp_path: Path) -> None:
    async def scenario(house: BatchHouse) -> None:
        body = {"input": "WAIT", "background": True, "max_output_tokens": 50}
        first, second = [await house.client.post("/v1/responses", json=body) for _ in range(2)]
        assert (first.status_code, second.status_code) == (200, 429)
        assert "storage.tenant_responses" in second.text
        await house.runs()
        answer_held(house)
        await until(house, first.json()["id"], "completed")
        assert (await house.client.post("/v1/responses", json=body)).status_code == 200

    in_house(tmp_path, scenario, storage={"tenant_responses": 1})


def test_an_end_larger_than_its_room_is_kept_since_it_is_paid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "growth_of", lambda body, budget: 0)

    async def scenario(house: BatchHouse) -> None:
        await respond(house, "WAIT", background=True)
        large = await respond(house, "SAY:" + "x" * 100, background=True, **SCORED)
        ended = await until(house, large["id"], "completed")
        assert text_of(ended) == "x" * 100
        assert len(json.dumps(ended)) > 4000
        refused = await house.client.post("/v1/responses", json={"input": "x", "background": True})
        assert refused.status_code == 200, "the ended one makes room"

    in_house(tmp_path, scenario, storage={"tenant_response_bytes": 4000})


def test_a_queued_response_beyond_the_quota_is_refused(tmp_path: Path) -> None:
    async def scenario(house: BatchHouse) -> None:
        reply = await house.client.post("/v1/responses", json={"input": "x", "background": True})
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "storage_limit_exceeded")
        assert house.engine.submitted == []

    in_house(tmp_path, scenario, storage={"tenant_response_bytes": 100})


@pytest.mark.parametrize(("bound", "status"), [("tenant_background_responses", 429), ("background_responses", 503)])
def test_a_bound_holds_for_the_responses_under_way(tmp_path: Path, bound: str, status: int) -> None:
    async def scenario(house: BatchHouse) -> None:
        body = {"input": "WAIT", "background": True}
        replies = await asyncio.gather(*(house.client.post("/v1/responses", json=body) for _ in range(3)))
        assert sorted(reply.status_code for reply in replies) == [200, 200, status]
        (refused,) = [reply for reply in replies if reply.status_code == status]
        assert int(refused.headers["retry-after"]) >= 1
        assert status == 503 or bound in refused.text, "OpenAI's text of a full server is fixed"
        (first, _) = [reply.json()["id"] for reply in replies if reply.status_code == 200]
        assert (await house.client.delete(f"/v1/responses/{first}")).status_code == 200

        async def has_place() -> bool:
            return (await house.client.post("/v1/responses", json=body)).status_code == 200

        await when(has_place)

    in_house(tmp_path, scenario, server={bound: 2})


def test_a_full_conversation_refuses_before_the_run(tmp_path: Path) -> None:
    async def scenario(house: BatchHouse) -> None:
        half = {"role": "user", "content": "x" * (MOST_BYTES // 2 - 1000)}
        conversation = await make(house, items=[half, half])
        for more in ({}, {"background": True}):
            body = {"input": "x" * 3000, "conversation": conversation, **more}
            reply = await house.client.post("/v1/responses", json=body)
            assert (reply.status_code, reply.json()["error"]["code"]) == (403, "storage_limit_exceeded"), reply.text
        assert house.engine.submitted == []

    in_house(tmp_path, scenario)


@pytest.mark.parametrize("more", [{}, {"stream": True}, {"background": True}])
def test_a_failed_append_takes_no_paid_reply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    async def full(*_: Any) -> None:
        raise StorageLimitExceeded("full")

    async def scenario(house: BatchHouse) -> None:
        conversation = await make(house)
        monkeypatch.setattr(ControlStore, "keep_conversation", full)
        body = {"input": "SAY:hello", "conversation": conversation, **more}
        reply = await house.client.post("/v1/responses", json=body)
        assert reply.status_code == 200
        if "stream" in more:
            last = reply.text[reply.text.index("event: response.completed") :]
            assert '"conversation":null' in last
            assert "hello" in last
            return
        ended = reply.json()
        if "background" in more:

            async def is_told() -> bool:
                return (await until(house, ended["id"], "completed"))["conversation"] is None

            await when(is_told)
            ended = await until(house, ended["id"], "completed")
        assert (text_of(ended), ended["conversation"]) == ("hello", None)

    in_house(tmp_path, scenario)


def test_a_response_that_was_cancelled_at_its_end_is_in_no_conversation(tmp_path: Path) -> None:
    async def scenario(one: BatchHouse, two: BatchHouse) -> None:
        conversation = await make(one)
        response_id = (await respond(one, "WAIT", background=True, conversation=conversation))["id"]
        await one.runs()
        assert (await two.client.post(f"/v1/responses/{response_id}/cancel")).json()["status"] == "cancelled"
        answer_held(one)
        await when(lambda: soon(not one.engine.live))

        async def is_shipped() -> bool:
            return bool(await one.shipped())

        await when(is_shipped)
        assert (await one.client.get(f"{ROOT}/{conversation}/items")).json()["data"] == []
        assert (await until(one, response_id, "cancelled"))["output"] == []

    in_edges(tmp_path, scenario)


def test_notes_go_on_after_an_unforeseen_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "BEAT_S", 0.01)
    replace, failed = TenantResponses.replace, list[str]()

    async def failing(self: TenantResponses, tenant: Any, response_id: str, change: Any) -> Any:
        if not failed:
            failed.append(response_id)
            raise RuntimeError("unforeseen")
        return await replace(self, tenant, response_id, change)

    async def scenario(one: BatchHouse, two: BatchHouse) -> None:
        response_id = (await respond(one, "WAIT", background=True))["id"]
        await one.runs()
        monkeypatch.setattr(TenantResponses, "replace", failing)
        await when(lambda: soon(bool(failed)))
        assert (await two.client.delete(f"/v1/responses/{response_id}")).status_code == 200
        await when(lambda: soon(not one.engine.live))

    in_edges(tmp_path, scenario)
