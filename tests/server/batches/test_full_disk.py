"""A full disk below files and batches: uploads are refused whole, and results wait for room."""

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.server.batches.batch_house import COMPLETIONS, jsonl, line
from tests.server.metering.test_full_disk import SmallDisk, small_disk
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

LINES = 8


def upload(server: SmallDisk, content: bytes) -> httpx2.Response:
    form: dict[str, Any] = {"files": {"file": ("in.jsonl", content)}, "data": {"purpose": "batch"}}
    return server.client.post("/v1/files", **form)


@pytest.mark.long
def test_uploads_are_refused_whole_and_results_wait_for_room(tmp_path: Path) -> None:
    settings = ("storage.dir={disk}/storage", f"metering.dir={tmp_path}/metering", "batches.lines_at_once=1")
    gate = tmp_path / "gate"
    gate.touch()
    with small_disk(tmp_path, *settings) as server:
        file_id = upload(server, jsonl([line(str(n), "GATE SAY:" + "x" * 14) for n in range(LINES)])).json()["id"]
        body = {"input_file_id": file_id, "endpoint": COMPLETIONS, "completion_window": "24h"}
        batch_id = server.client.post("/v1/batches", json=body).json()["id"]

        def batch() -> dict[str, Any]:
            return dict(server.client.get(f"/v1/batches/{batch_id}").json())

        server.fill()
        refused = upload(server, b"x" * 100_000)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
        gate.unlink()  # no line ends before the disk is full
        wait_for(lambda: server.told("storage.unavailable") > 2 or batch()["status"] == "completed")
        assert batch()["status"] != "completed"
        assert server.ask().status_code == 200  # other requests go on
        server.free()
        wait_for(lambda: batch()["status"] == "completed")
        content = server.client.get(f"/v1/files/{batch()['output_file_id']}/content").text
        results = [json.loads(each) for each in content.splitlines()]
        assert sorted(each["custom_id"] for each in results) == sorted(map(str, range(LINES)))
        parts = list((server.folder / "storage").rglob("*.part"))
        assert parts == []
