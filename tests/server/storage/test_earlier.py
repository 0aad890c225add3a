"""The control plane takes over what an earlier version kept in a server's folder, under the same ids."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from manylora.clock import ManualClock
from manylora.config.groups.storage import StorageConfig
from manylora.errors import ConfigInvalid
from manylora.server.access.control_client import HttpControlClient
from manylora.server.batches.lines import LineResponse, LineResult, result_line
from manylora.server.storage.storage import open_storage, plane_mark
from tests.server.batches.batch_house import COMPLETIONS, batch_house, jsonl, line

INPUT, ENDED_OUTPUT, LIVE_OUTPUT = "file-" + "a" * 32, "file-" + "b" * 32, "file-" + "c" * 32
ENDED, LIVE, RESPONSE = "batch_" + "d" * 32, "batch_" + "e" * 32, "resp_" + "f" * 32


def result_of(name: str) -> bytes:
    body = msgspec.Raw(b'{"choices":[]}')
    response = LineResponse(status_code=200, request_id=f"batch_req_{name}", body=body)
    return result_line(LineResult(id="batch_req_x", custom_id=name, response=response))


def write_earlier(folder: Path, created_ms: int) -> None:
    """A file, its ended batch with an output, a batch under way with a torn result, and a response."""
    for kind in ("files", "batches", "responses"):
        (folder / kind).mkdir(parents=True)
    content, output = jsonl([line("a"), line("b")]), result_of("a") + result_of("b")
    for file_id, data, purpose in ((INPUT, content, "batch"), (ENDED_OUTPUT, output, "batch_output")):
        facts = {"id": file_id, "size": len(data), "created_ms": created_ms, "expires_ms": created_ms + 10**9}
        (folder / "files" / f"{file_id}.data").write_bytes(data)
        named = json.dumps({**facts, "name": "in.jsonl", "purpose": purpose})
        (folder / "files" / f"{file_id}.json").write_text(named)
    (folder / "files" / f"{LIVE_OUTPUT}.data").write_bytes(result_of("a") + result_of("b")[:40])
    for batch_id, status, output_id in ((ENDED, "completed", ENDED_OUTPUT), (LIVE, "in_progress", LIVE_OUTPUT)):
        facts_of_batch: dict[str, Any] = {
            "id": batch_id,
            "tenant": "default",
            "key": None,
            "origin": None,
            "endpoint": COMPLETIONS,
            "input_id": INPUT,
            "output_id": output_id,
            "error_id": "file-" + batch_id[-32:],
            "created_ms": created_ms,
            "metadata": {"a": "b"},
            "status": status,
            "moments": {"validating": created_ms // 1000, status: created_ms // 1000},
            "total": 2,
            "completed": 2 if status == "completed" else 1,
            "failed": 0,
            "has_output": status == "completed",
            "has_errors": False,
            "errors": [],
            "output_lifetime_s": None,
        }
        (folder / "batches" / f"{batch_id}.json").write_text(json.dumps(facts_of_batch))
    kept = {"id": RESPONSE, "created_ms": created_ms, "reply": {"id": RESPONSE}, "messages": []}
    (folder / "responses" / f"{RESPONSE}.json").write_text(json.dumps(kept))


def test_files_batches_and_responses_of_an_earlier_version_are_taken_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batch_house(tmp_path):
            pass
        created_ms = 1000 * int((tmp_path / "storage").stat().st_mtime)
        for number in ("0", "3"):  # the server's own folder, and one of a server that is gone
            write_earlier(tmp_path / "storage" / number / "default", created_ms)
        async with batch_house(tmp_path) as house:
            file = (await house.client.get(f"/v1/files/{INPUT}")).json()
            assert (file["filename"], file["created_at"]) == ("in.jsonl", created_ms // 1000)
            content = (await house.client.get(f"/v1/files/{INPUT}/content")).content
            assert content == jsonl([line("a"), line("b")])
            ended = await house.batch(ENDED)
            assert (ended["status"], ended["metadata"]) == ("completed", {"a": "b"})
            assert sorted(await house.results(ended["output_file_id"])) == ["a", "b"]
            live = await house.until(LIVE)
            assert (live["status"], len(house.engine.submitted)) == ("completed", 1)
            assert sorted(await house.results(live["output_file_id"])) == ["a", "b"]
            assert (await house.client.get(f"/v1/responses/{RESPONSE}")).json() == {"id": RESPONSE}
            left = {path.name for path in (tmp_path / "storage").rglob("*") if path.is_file()}
            assert left == {"lock", "control-plane"}

    asyncio.run(scenario())


def test_a_folder_of_another_control_planes_servers_is_refused_and_not_taken_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batch_house(tmp_path):
            pass
        write_earlier(tmp_path / "storage" / "3" / "default", 1)
        client, clock = HttpControlClient("", app=None), ManualClock()
        marks = [plane_mark("5e" * 32), plane_mark("a5" * 32)]
        assert len(set(marks)) == 2
        with pytest.raises(ConfigInvalid, match=f"'0123456789abcdef'.*control-plane.*'{marks[0]}'"):
            open_storage(tmp_path / "storage", client, clock, StorageConfig(), plane=marks[0])
        assert (tmp_path / "storage" / "3" / "default" / "files" / f"{INPUT}.data").exists()
        (tmp_path / "storage" / "control-plane").unlink()
        open_storage(tmp_path / "storage", client, clock, StorageConfig(), plane=marks[0]).close()
        assert (tmp_path / "storage" / "control-plane").read_text() == marks[0]
        shutil.rmtree(tmp_path / "storage" / "3")
        for mark in reversed(marks):  # without objects it has nothing of a control plane
            open_storage(tmp_path / "storage", client, clock, StorageConfig(), plane=mark).close()
            assert (tmp_path / "storage" / "control-plane").read_text() == mark
        await client.close()

    asyncio.run(scenario())
