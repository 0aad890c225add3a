"""Two server processes on one control plane: `kill -9` of the one that runs a batch, and the other finishes it."""

import json
import os
import signal
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.control.control_process import EDGE_TOKEN, running_control
from tests.server.app.test_remote_control import make_price
from tests.server.app.test_server_process import forked_server
from tests.server.batches.batch_house import COMPLETIONS, jsonl, line
from tests.support.waiting import PATIENCE_S, wait_for

pytestmark = pytest.mark.long

LINES, BEFORE = 40, 12
"""The lines of the batch, and those that the first edge can answer: its engine holds the others."""


def test_the_other_edge_finishes_the_batch_of_a_killed_one_and_each_result_is_charged_once(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    make_price(kept)
    with ExitStack() as stack:
        plane = stack.enter_context(running_control(kept, "batches.lease_s=1", "batches.check_s=0.1"))
        operator = {"authorization": f"Bearer {plane.admin_key}"}
        headers = {"authorization": f"Bearer {new_key(plane.url, operator)}"}
        edges = {"authorization": f"Bearer {EDGE_TOKEN}"}

        def edge(name: str) -> tuple[Any, httpx2.Client]:
            (tmp_path / name).mkdir(exist_ok=True)
            settings = (
                f"control.url={plane.url}",
                f"control.edge_token={EDGE_TOKEN}",
                "control.poll_s=0.1",
                "metering.ship_s=0.05",
                "server.auth=on",
                "batches.lease_s=1",
                "batches.check_s=0.1",
                "batches.lines_at_once=2",
            )
            process, client = stack.enter_context(forked_server(tmp_path / name, *settings))
            client.headers.update(headers)
            return process, client

        (tmp_path / "one").mkdir()
        (tmp_path / "one" / "gate").touch()
        first, one = edge("one")
        lines = [line(str(number), f"{'GATE ' * (number >= BEFORE)}SAY:{number}") for number in range(LINES)]
        form: dict[str, Any] = {"files": {"file": ("in.jsonl", jsonl(lines))}, "data": {"purpose": "batch"}}
        file_id = one.post("/v1/files", **form).json()["id"]
        body = {"input_file_id": file_id, "endpoint": COMPLETIONS, "completion_window": "24h"}
        batch_id = one.post("/v1/batches", json=body).json()["id"]
        wait_for(lambda: one.get(f"/v1/batches/{batch_id}").json()["request_counts"]["completed"] == BEFORE)
        os.kill(first.pid, signal.SIGKILL)
        first.wait(PATIENCE_S)
        left = httpx2.get(
            f"{plane.url}/internal/stored/acme/batches/{batch_id}", headers=edges, timeout=PATIENCE_S
        ).json()
        assert (left["status"], left["completed"]) == ("in_progress", BEFORE)
        _, two = edge("two")
        wait_for(lambda: two.get(f"/v1/batches/{batch_id}").json()["status"] == "completed")
        edge("one")  # what the killed edge had not shipped is on its disk
        output = two.get(f"/v1/batches/{batch_id}").json()["output_file_id"]
        results = [json.loads(each) for each in two.get(f"/v1/files/{output}/content").text.splitlines()]
        texts = {each["custom_id"]: each["response"]["body"]["choices"][0]["text"] for each in results}
        assert texts == {str(number): str(number) for number in range(LINES)}
        assert len(results) == LINES

        def charged() -> Counter[str]:
            rows = httpx2.get(f"{plane.url}/admin/ledger?limit=1000", headers=operator, timeout=PATIENCE_S).json()[
                "rows"
            ]
            return Counter(row["request_id"] for row in rows if row["charged_completion_tokens"])

        wait_for(lambda: sum(charged().values()) >= LINES)
        assert charged() == Counter(each["response"]["request_id"] for each in results)
        assert (
            httpx2.post(f"{plane.url}/admin/tenants/acme/close", headers=operator, timeout=PATIENCE_S).status_code
            == 200
        )
        wait_for(lambda: not list((kept / "storage" / "blobs").glob("*/*/*")))


def new_key(url: str, operator: dict[str, str]) -> str:
    terms = {"id": "acme", "credit_nanousd": 10**12}
    made = httpx2.post(f"{url}/admin/tenants", json=terms, headers=operator, timeout=PATIENCE_S)
    assert made.status_code == 201, made.text
    return str(made.json()["key"]["key"])
