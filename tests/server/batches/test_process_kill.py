"""A server process that is killed in the middle of a batch, with a ledger of its own: `kill -9` and a second start."""

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.server.app.test_server_process import forked_server
from tests.server.batches.batch_house import COMPLETIONS, jsonl, line
from tests.support.waiting import PATIENCE_S, wait_for

pytestmark = pytest.mark.slow

LINES = 60


def counts(client: httpx2.Client, batch_id: str) -> dict[str, Any]:
    return dict(client.get(f"/v1/batches/{batch_id}").json())


@pytest.mark.long
def test_a_killed_server_loses_no_line_and_charges_none_twice(tmp_path: Path) -> None:
    settings = ("batches.lines_at_once=4", "metering.ship_s=0.05", "batches.lease_s=2", "batches.check_s=0.1")
    with forked_server(tmp_path, *settings) as (process, client):
        form: dict[str, Any] = {
            "files": {"file": ("in.jsonl", jsonl([line(str(number), f"SAY:{number}") for number in range(LINES)]))},
            "data": {"purpose": "batch"},
        }
        file_id = client.post("/v1/files", **form).json()["id"]
        body = {"input_file_id": file_id, "endpoint": COMPLETIONS, "completion_window": "24h"}
        batch_id = client.post("/v1/batches", json=body).json()["id"]
        wait_for(lambda: counts(client, batch_id)["request_counts"]["completed"] >= 10)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_S)
    with forked_server(tmp_path, *settings) as (_, client):
        wait_for(lambda: counts(client, batch_id)["status"] == "completed")
        content = client.get(f"/v1/files/{counts(client, batch_id)['output_file_id']}/content").text
        results = [json.loads(each) for each in content.splitlines()]
        texts = {each["custom_id"]: each["response"]["body"]["choices"][0]["text"] for each in results}
        assert texts == {str(number): str(number) for number in range(LINES)}
        assert len(results) == LINES

        def charged() -> Counter[str]:
            rows = client.get("/admin/ledger?limit=1000").json()["rows"]
            return Counter(row["request_id"] for row in rows if row["charged_completion_tokens"])

        wait_for(lambda: sum(charged().values()) >= LINES)
        assert charged() == Counter(each["response"]["request_id"] for each in results)
