"""`manylora control` as a process: its start, its refusals, its signals, and the operator's key."""

import socket
from pathlib import Path

import httpx2
import pytest
from typer.testing import CliRunner

from manylora.cli import app
from manylora.errors import ConfigInvalid
from tests.control import patient_control
from tests.control.control_process import EDGE_TOKEN, running_control
from tests.support.waiting import PATIENCE_S, wait_for


def is_listening(url: str) -> bool:
    try:
        httpx2.get(f"{url}/health", timeout=PATIENCE_S)
    except httpx2.TransportError:
        return False
    return True


def account(url: str, key: str) -> int:
    return httpx2.get(f"{url}/v1/account", headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE_S).status_code


def test_it_prints_the_operators_key_at_its_first_start_only_and_leaves_on_a_signal(tmp_path: Path) -> None:
    with running_control(tmp_path / "kept", makes_tables=True) as first:
        assert account(first.url, first.admin_key) == 200
        assert f"its console is {first.url}/console;" in first.printed.read_text(encoding="utf-8")
        assert httpx2.get(f"{first.url}/console/sign-in", timeout=PATIENCE_S).status_code == 200
        edge = {"authorization": f"Bearer {EDGE_TOKEN}"}
        assert httpx2.get(f"{first.url}/internal/snapshot?since=-1", headers=edge, timeout=PATIENCE_S).json()[
            "is_whole"
        ]
        assert first.stop() == 0
    with running_control(tmp_path / "kept", is_first=False) as second:
        assert account(second.url, first.admin_key) == 200
        assert (second.stop(), second.admin_key) == (0, "")


def test_a_lost_key_is_replaced_on_the_machine_itself(tmp_path: Path) -> None:
    folder = ["--set", f"control.dir={tmp_path / 'kept'}"]
    keys = [CliRunner().invoke(app, ["control", "admin-key", *folder]).stdout.strip() for _ in range(2)]
    with running_control(tmp_path / "kept", is_first=False) as plane:
        assert [account(plane.url, key) for key in keys] == [200, 200]
        assert (plane.stop(), plane.admin_key) == (0, "")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), "control.edge_token"),
        (("--set", "control.edge_token=short"), "control.edge_token"),
        (("--host", "0.0.0.0", "--set", "server.auth=off"), "server.allow_open"),
        (("--host", "203.0.113.77"), "control.host"),
    ],
)
def test_it_refuses_to_start_with_settings_that_do_not_fit(words: tuple[str, ...], named: str, tmp_path: Path) -> None:
    token = () if named == "control.edge_token" else ("--set", f"control.edge_token={EDGE_TOKEN}")
    result = CliRunner().invoke(app, ["control", "--set", f"control.dir={tmp_path}", *token, *words])
    assert isinstance(result.exception, ConfigInvalid)
    assert named in result.exception.message
    assert not list(tmp_path.iterdir())


def test_a_taken_port_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = ["control", "--port", port, "--set", f"control.dir={tmp_path}"]
        result = CliRunner().invoke(app, [*words, "--set", f"control.edge_token={EDGE_TOKEN}"])
        assert isinstance(result.exception, ConfigInvalid)
        assert f"port {port} on 127.0.0.1 is taken" in result.exception.message


def test_a_second_signal_waits_for_no_request(tmp_path: Path) -> None:
    with running_control(tmp_path / "kept", module=patient_control.MODULE) as plane:
        host, _, port = plane.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                b"POST /v1/signup HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
                b"content-length: 100\r\n\r\n{"
            )
            assert account(plane.url, plane.admin_key) == 200  # so the request above is under way, too
            plane.process.terminate()
            wait_for(lambda: not is_listening(plane.url))
            assert plane.process.poll() is None
            plane.process.terminate()
            assert plane.process.wait(timeout=PATIENCE_S) == 0
