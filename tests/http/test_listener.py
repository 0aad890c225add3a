"""Listeners: their addresses in messages and URLs."""

import socket

import pytest

from manylora.errors import ConfigInvalid
from manylora.http.listener import listen, url_of


def test_a_taken_port_is_named_with_its_settings_and_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigInvalid, match=rf"port {port} on 127.0.0.1 is taken .*\(control.host, control.port\)"):
            listen("127.0.0.1", port, group="control")


def test_an_address_of_another_machine_is_named_with_its_settings() -> None:
    with pytest.raises(ConfigInvalid, match=r"203\.0\.113\.77:0 \(server.host, server.port\)"):
        listen("203.0.113.77", 0, group="server")


@pytest.mark.parametrize(
    ("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "[::1]"), ("::", "[::1]")]
)
def test_the_url_of_a_listener_is_one_that_this_machine_reaches(host: str, shown: str) -> None:
    with listen(host, 0, group="server") as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://{shown}:{port}"
        with socket.create_connection((shown.strip("[]"), port)):
            pass
