"""Three server processes on one control plane: they share a limit, and go on without the control plane."""

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from tests.control.control_process import EDGE_TOKEN, running_control
from tests.server.app.test_remote_control import make_price
from tests.server.app.test_server_process import forked_server
from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.long

LIMIT = 60


def test_three_servers_share_a_limit_and_one_is_killed_and_the_control_plane_too(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    make_price(kept)
    with ExitStack() as stack:
        plane = stack.enter_context(running_control(kept))
        terms = {"id": "acme", "credit_nanousd": 10**12, "limits": {"requests_per_minute": LIMIT}}
        operator = {"authorization": f"Bearer {plane.admin_key}"}
        made = httpx2.post(f"{plane.url}/admin/tenants", json=terms, headers=operator, timeout=PATIENCE_S)
        headers = {"authorization": f"Bearer {made.json()['key']['key']}"}
        settings = (f"control.url={plane.url}", f"control.edge_token={EDGE_TOKEN}", "server.auth=on")
        processes, clients = [], []
        for name in ("one", "two", "three"):
            (tmp_path / name).mkdir()
            process, client = stack.enter_context(forked_server(tmp_path / name, *settings))
            client.headers.update(headers)
            processes.append(process)
            clients.append(client)

        def ask(client: httpx2.Client) -> int:
            return client.post("/v1/completions", json={"prompt": "SAY:a", "max_tokens": 1}).status_code

        begun_s = time.monotonic()
        statuses = [ask(client) for _ in range(40) for client in clients]
        most = LIMIT * (1 + (time.monotonic() - begun_s) / 60)
        assert set(statuses) == {200, 429}
        assert 0.9 * LIMIT <= statuses.count(200) <= most
        os.kill(processes[0].pid, signal.SIGKILL)
        processes[0].wait(PATIENCE_S)
        os.kill(plane.process.pid, signal.SIGKILL)
        statuses += [ask(client) for _ in range(40) for client in clients[1:]]
        assert set(statuses) == {200, 429}
        assert statuses.count(200) <= LIMIT * (1 + (time.monotonic() - begun_s) / 60)
