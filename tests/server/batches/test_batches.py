"""Batches from their creation to their results, over HTTP."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from manylora.clock import ManualClock
from manylora.engine.request import Priority
from manylora.server.batches import job as jobs
from manylora.server.batches import lines as batch_lines
from manylora.server.batches.lines import BatchLine, LineResult
from manylora.server.storage.control_store import ControlStore, ResultClaim
from manylora.stored.batches import WINDOW_S
from manylora.stored.files import GrownFile
from tests.conftest import thinned
from tests.server.batches.batch_house import CHAT, COMPLETIONS, batch_house, jsonl, line


def test_a_batch_runs_each_line_as_a_request_of_low_priority(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batch_house(tmp_path) as house:
            lines = [line("a", "SAY:one"), line("b", "SAY:two", n=2), line("bad", temperature=-1)]
            batch = await house.until(await house.create(lines, metadata={"job": "7"}))
            assert batch["status"] == "completed"
            assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
            assert batch["metadata"] == {"job": "7"}
            assert batch["expires_at"] - batch["created_at"] == WINDOW_S
            assert all(batch[f"{state}_at"] for state in ("in_progress", "finalizing", "completed"))
            good = await house.results(batch["output_file_id"])
            assert {each: len(good[each]["response"]["body"]["choices"]) for each in good} == {"a": 1, "b": 2}
            assert good["a"]["response"]["body"]["choices"][0]["text"] == "one"
            assert good["a"]["error"] is None
            bad = (await house.results(batch["error_file_id"]))["bad"]["response"]
            assert (bad["status_code"], bad["body"]["error"]["param"]) == (400, "temperature")
            assert {request.priority for request in house.engine.submitted} == {Priority.BATCH}
            records = await house.shipped()
            assert sorted(record.num_sequences for record in records) == [1, 2]
            assert all(record.is_batch for record in records)
            assert {record.request_id for record in records} == {
                each["response"]["request_id"] for each in good.values()
            }

    asyncio.run(scenario())


@pytest.mark.parametrize("lines_at_once", [1, 4])
def test_a_line_whose_error_cannot_be_written_fails_its_batch_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines_at_once: int
) -> None:
    def broken(wrong: BatchLine, error: BaseException) -> LineResult:
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr(jobs, "failed_result", broken)

    async def scenario() -> None:
        async with batch_house(tmp_path, batches={"lines_at_once": lines_at_once}) as house:
            lines = [line("good", "SAY:one"), line("bad", temperature=-1), *(line(str(each)) for each in range(20))]
            batch = await house.until(await house.create(lines))
            assert batch["status"] == "failed"
            assert [each["code"] for each in batch["errors"]["data"]] == ["internal_error"]
            good = await house.results(batch["output_file_id"])
            assert batch["request_counts"] == {"total": 22, "completed": len(good), "failed": 0}
            assert "good" in good or lines_at_once > 1, "what has a result keeps it"
            assert batch["error_file_id"] is None
            after = await house.until(await house.create([line("a")]))
            assert after["status"] == "completed", "other batches go on"

    asyncio.run(scenario())


def test_a_batch_of_conversations(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batch_house(tmp_path) as house:
            batch = await house.until(await house.create([line("a", url=CHAT)], url=CHAT))
            (result,) = (await house.results(batch["output_file_id"])).values()
            assert result["response"]["body"]["object"] == "chat.completion"
            assert batch["error_file_id"] is None

    asyncio.run(scenario())


def test_a_batch_of_embeddings(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batch_house(tmp_path) as house:
            asked = {**line("a"), "url": "/v1/embeddings", "body": {"model": "", "input": ["Hi", "Hello"]}}
            batch = await house.until(await house.create([asked], url="/v1/embeddings"))
            (result,) = (await house.results(batch["output_file_id"])).values()
            assert [len(each["embedding"]) for each in result["response"]["body"]["data"]] == [4, 4]
            (record,) = await house.shipped()
            assert (record.is_batch, record.charged_prompt_tokens, record.charged_completion_tokens) == (True, 7, 0)
            assert {request.priority for request in house.engine.submitted} == {Priority.BATCH}

    asyncio.run(scenario())


REFUSED: list[tuple[bytes, str, int | None]] = [
    (b"", "empty_file", None),
    (b"\n  \n", "empty_file", None),
    (b"{not json}\n", "invalid_json_line", 1),
    (b"\xff\xfe\n", "invalid_json_line", 1),
    (b"[1]\n", "invalid_json_line", 1),
    (b"[" * 1_900 + b"\n", "invalid_json_line", 1),
    (jsonl([line("a"), line("a")]), "duplicate_custom_id", 2),
    (jsonl([{"custom_id": "a", "method": "POST", "url": COMPLETIONS}]), "missing_required_parameter", 1),
    (jsonl([{**line("a"), "priority": 1}]), "unknown_field", 1),
    (jsonl([{**line("a"), "custom_id": 7}]), "invalid_type", 1),
    (jsonl([line("")]), "invalid_custom_id", 1),
    (jsonl([line("x" * 513)]), "invalid_custom_id", 1),
    (jsonl([{**line("a"), "method": "GET"}]), "invalid_method", 1),
    (jsonl([{**line("a"), "url": CHAT}]), "invalid_url", 1),
    (jsonl([{**line("a"), "body": []}]), "invalid_type", 1),
    (jsonl([line("a", stream=True)]), "invalid_stream", 1),
    (jsonl([line("a"), line("b", "x" * 3_000)]), "line_too_large", 2),
    (jsonl([line(str(number)) for number in range(6)]), "too_many_lines", None),
]


@pytest.mark.parametrize(("content", "code", "number"), thinned(REFUSED, 2), ids=[f"{code}" for _, code, _ in REFUSED])
def test_a_malformed_input_fails_the_batch_with_the_line(
    tmp_path: Path, content: bytes, code: str, number: int | None
) -> None:
    async def scenario() -> None:
        async with batch_house(tmp_path, batches={"max_lines": 5}, server={"max_body_bytes": 2_000}) as house:
            body = {"input_file_id": await house.upload(content), "endpoint": COMPLETIONS, "completion_window": "24h"}
            batch = await house.until((await house.client.post("/v1/batches", json=body)).json()["id"])
            assert batch["status"] == "failed"
            (error,) = batch["errors"]["data"]
            assert (error["code"], error["line"]) == (code, number)
            assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
            assert batch["output_file_id"] is batch["error_file_id"] is None
            assert not house.engine.submitted

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("body", "status", "parameter"),
    [
        ({"endpoint": "/v1/moderations"}, 400, "endpoint"),
        ({"endpoint": None}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"input_file_id": "file-none"}, 404, "input_file_id"),
        ({"metadata": {"a": 1}}, 400, "metadata.a"),
        ({"metadata": {str(number): "" for number in range(17)}}, 400, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, 400, "seconds"),
        ({"windows": "24h"}, 400, "windows"),
    ],
)
def test_a_wrong_order_of_a_batch_is_refused(tmp_path: Path, body: dict[str, Any], status: int, parameter: str) -> None:
    async def scenario() -> None:
        async with batch_house(tmp_path) as house:
            good = {"input_file_id": await house.upload(jsonl([line("a")])), "endpoint": COMPLETIONS}
            reply = await house.client.post("/v1/batches", json={**good, "completion_window": "24h", **body})
            assert reply.status_code == status
            assert reply.json()["error"]["param"] == parameter

    asyncio.run(scenario())


def test_a_cancelled_batch_lets_lines_under_way_end_and_begins_no_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batch_house(tmp_path, batches={"lines_at_once": 1}) as house:
            batch_id = await house.create([line(str(number), "SAY:" + "x" * 60) for number in range(50)])
            await house.runs()
            reply = await house.client.post(f"/v1/batches/{batch_id}/cancel")
            assert reply.json()["status"] == "cancelling"
            batch = await house.until(batch_id)
            assert batch["status"] == "cancelled"
            good = await house.results(batch["output_file_id"])
            assert len(good) == batch["request_counts"]["completed"] == len(await house.shipped()) < 50
            again = await house.client.post(f"/v1/batches/{batch_id}/cancel")
            assert again.status_code == 400

    asyncio.run(scenario())


def test_lines_that_did_not_run_within_the_window_are_errors(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        async with batch_house(tmp_path, clock=clock, batches={"lines_at_once": 2}) as house:
            batch_id = await house.create([line("a"), line("held", "WAIT"), line("b"), line("held too", "WAIT")])
            await house.until(batch_id, "in_progress")
            await house.has_results(batch_id, 2)
            await house.runs(2)
            clock.advance(WINDOW_S)
            batch = await house.until(batch_id)
            assert batch["status"] == "expired"
            assert batch["request_counts"] == {"total": 4, "completed": 2, "failed": 2}
            assert set(await house.results(batch["output_file_id"])) == {"a", "b"}
            errors = await house.results(batch["error_file_id"])
            assert {each: errors[each]["error"]["code"] for each in errors} == dict.fromkeys(
                ("held", "held too"), "batch_expired"
            )
            charged = [record.charged_completion_tokens for record in await house.shipped()]
            assert sorted(tokens > 0 for tokens in charged) == [False, False, True, True]

    asyncio.run(scenario())


def test_an_error_that_is_being_written_at_the_end_of_the_window_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        clock, written, may_go = ManualClock(), asyncio.Event(), asyncio.Event()

        async def append(store: ControlStore, *arguments: Any) -> GrownFile:
            grown = await really_append(store, *arguments)
            if isinstance(arguments[-1], ResultClaim) and not written.is_set():
                written.set()
                await may_go.wait()
            return grown

        monkeypatch.setattr(ControlStore, "append", append)
        async with batch_house(tmp_path, clock=clock) as house:
            batch_id = await house.create([line("bad", temperature=-1), line("held", "WAIT")])
            await written.wait()
            await house.runs(1)
            clock.advance(WINDOW_S)
            house.runner._jobs[batch_id].abort()
            may_go.set()
            batch = await house.until(batch_id)
            assert batch["status"] == "expired"
            errors = await house.results(batch["error_file_id"])
            assert errors["bad"]["response"]["status_code"] == 400
            assert errors["held"]["error"]["code"] == "batch_expired"

    really_append = ControlStore.append
    asyncio.run(scenario())


def test_the_input_is_read_beside_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an input of 100 MB with many results, the first look for a line without one would stall all streams."""
    readers: list[threading.Thread] = []

    def read_line(*arguments: Any) -> batch_lines.BatchLine:
        readers.append(threading.current_thread())
        return read(*arguments)

    async def scenario() -> None:
        clock = ManualClock()
        async with batch_house(tmp_path, clock=clock) as house:
            batch_id = await house.create([line("a"), line("held", "WAIT")])
            await house.has_results(batch_id, 1)
            await house.runs(1)
            clock.advance(WINDOW_S)
            assert (await house.until(batch_id))["status"] == "expired"

    read = batch_lines.read_line
    monkeypatch.setattr(batch_lines, "read_line", read_line)
    asyncio.run(scenario())
    assert len(readers) == 6, "the check, the run and the end read both lines"
    assert threading.main_thread() not in readers


def test_batches_are_listed_by_pages_the_newest_first(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        async with batch_house(tmp_path, clock=clock) as house:
            made = []
            for _ in range(3):
                made.append(await house.create([line("a")]))
                clock.advance(1)
            first = (await house.client.get("/v1/batches?limit=2")).json()
            assert [each["id"] for each in first["data"]] == made[:0:-1]
            assert (first["has_more"], first["last_id"]) == (True, made[1])
            rest = (await house.client.get(f"/v1/batches?limit=2&after={first['last_id']}")).json()
            assert ([each["id"] for each in rest["data"]], rest["has_more"]) == ([made[0]], False)
            for query in ("limit=0", "limit=101", "limit=x", "after=batch_none"):
                assert (await house.client.get(f"/v1/batches?{query}")).status_code == 400

    asyncio.run(scenario())
