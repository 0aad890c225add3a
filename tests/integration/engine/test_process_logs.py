"""Every process of a real server and of a control plane logs JSON lines, on standard error alone."""

import json
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from manylora.bench.faults.adapter_files import seeds
from manylora.bench.faults.tiny_base import write_tiny_base
from manylora.config.environment import child_environment
from tests.control.control_process import EDGE_TOKEN
from tests.support.serving import make_cache
from tests.support.waiting import wait_for

ENDLESS = "{% for i in range(99999) %}{{ ('a' * 4000000) | replace('a', 'bb') | length }}{% endfor %}"
"""A template that takes more processor time than its process may have."""
REFUSES = "http://127.0.0.1:9/adapters"
"""A store where nothing listens."""


@contextmanager
def running(folder: Path, *words: str) -> Iterator[tuple[httpx2.Client, Path, Path]]:
    """A client of a command's server, and the files of its standard output and error; it must leave on a signal."""
    printed, logged = folder / "out", folder / "err"
    with printed.open("wb") as out, logged.open("wb") as err:
        command = [sys.executable, "-m", "manylora", *words]
        process = subprocess.Popen(command, stdout=out, stderr=err, env=child_environment())
    try:
        wait_for(lambda: process.poll() is not None or " at " in printed.read_text())
        found = re.search(r"(?:served|answers) at\s+(http://[^\s;]+)", printed.read_text())
        assert found, logged.read_text()
        with httpx2.Client(base_url=found[1], timeout=60) as client:
            yield client, printed, logged
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def lines_of(logged: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in logged.read_text(encoding="ascii").splitlines()]
    for line in lines:
        assert (*line,)[:5] == ("timestamp", "level", "process", "logger", "event")
    return lines


@pytest.mark.long
def test_each_process_of_a_server_logs_json_lines(tmp_path: Path) -> None:
    adapter = tmp_path / "adapters" / "endless"
    seeds()[0].save(adapter)
    (adapter / "chat_template.jinja").write_text(ENDLESS)
    settings = {
        "model.cache_dir": make_cache(tmp_path / "cache"),
        "control.dir": tmp_path / "control",
        "metering.dir": tmp_path / "metering",
        "adapters.hub_endpoint": "",
    }
    sets = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    places = ("--adapter-root", str(adapter.parent), "--adapter-store", REFUSES)
    base = str(write_tiny_base(tmp_path / "tiny"))
    with running(tmp_path, "serve", "--base", base, "--port", "0", *places, *sets) as (client, printed, logged):
        remote = {"adapter_id": "x", "adapter_source": "https", "max_new_tokens": 1}
        assert client.post("/generate", json={"inputs": "a", "parameters": remote}).status_code == 502
        chat = {"model": "endless", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
        reply = client.post("/v1/chat/completions", json=chat, headers={"x-request-id": "the-chat"})
        assert reply.status_code == 400, reply.text
        with closing(sqlite3.connect(tmp_path / "control" / "control.db")) as database:
            database.execute("DROP TABLE ledger")
        reply = client.get("/v1/account/usage", headers={"x-request-id": "the-read"})
        assert reply.status_code == 503, reply.text
    by_process: dict[str, list[dict[str, Any]]] = {}
    for line in lines_of(logged):
        by_process.setdefault(line["process"], []).append(line)
    events = {process: {line["event"] for line in lines} for process, lines in by_process.items()}
    assert {"request.finished", "server.draining"} <= events["edge"]
    assert "adapter.packed" in events["engine"]
    assert "adapter.source_failed" in events["ingest"]
    (stopped,) = by_process["renderer"]
    assert (stopped["event"], stopped["request_id"]) == ("template.stopped", "the-chat")
    assert {(line["request_id"], line["tenant"]) for line in by_process["heavy-read"]} == {("the-read", "default")}
    assert "is served at" in printed.read_text()
    assert '"event"' not in printed.read_text()


@pytest.mark.long
def test_a_control_plane_of_its_own_logs_json_lines(tmp_path: Path) -> None:
    sets = ("--set", f"control.dir={tmp_path / 'kept'}", "--set", f"control.edge_token={EDGE_TOKEN}")
    with running(tmp_path, "control", "--port", "0", *sets) as (client, printed, logged):
        wait_for(lambda: "pb_" in printed.read_text())
        (key,) = (line for line in printed.read_text().splitlines() if line.startswith("pb_"))
        for shown in (key, "wrong"):
            client.get("/v1/account", headers={"authorization": f"Bearer {shown}", "x-request-id": shown[-4:]})
    [known, unknown] = [line for line in lines_of(logged) if line["event"] == "request.finished"]
    assert (known["tenant"], known["status"], known["request_id"]) == ("operator", 200, key[-4:])
    assert (unknown["tenant"], unknown["status"], unknown["process"]) == (None, 401, "control")
