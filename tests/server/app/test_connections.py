"""Connections that send nothing, half a head, half a body, or too many at once, against a server on a real socket."""

import contextlib
import json
import socket
from collections.abc import Iterator

import httpx2
import pytest

from manylora.http.connections import ConnectionLimits
from tests.server.app.test_server_process import forked_server, is_answered
from tests.support.waiting import PATIENCE_S, wait_for

MOST = 8
HALF_A_HEAD = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
HALF_A_BODY = (
    b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
)
CLOSE = b"\r\nConnection: close\r\n\r\n"
WHOLE = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


SETTINGS = (f"server.max_connections={MOST}", "control.signup_open=true", "server.auth=on", "control.free_bases=tiny")


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """The client of a server that ends a connection soon for its silence."""
    own = ("server.head_timeout_s=1", "server.body_idle_s=1")
    with forked_server(tmp_path_factory.mktemp("hasty"), *own, *SETTINGS) as (_, client):
        yield client


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """The client of a server that ends no connection for its silence while a test is slow."""
    own = ("server.head_timeout_s=60", "server.body_idle_s=60")
    with forked_server(tmp_path_factory.mktemp("patient"), *own, *SETTINGS) as (_, client):
        yield client


def connect(client: httpx2.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=PATIENCE_S)


def said(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    parts: list[bytes] = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def answer_to(client: httpx2.Client, sent: bytes) -> bytes:
    """Send bytes on a connection of its own; return everything until the server closes it."""
    with connect(client) as connection:
        connection.sendall(sent)
        return said(connection)


HEADS = {
    "nothing": b"",
    "half a head": HALF_A_HEAD,
    "half a second head": WHOLE + HALF_A_HEAD,
    "an empty line": b"\r\n",
}


@pytest.fixture(scope="module")
def silent(hasty: httpx2.Client) -> Iterator[dict[str, socket.socket]]:
    """A connection for each of `HEADS` that has sent it; their times run side by side."""
    with contextlib.ExitStack() as stack:
        connections = {name: stack.enter_context(connect(hasty)) for name in HEADS}
        for name, connection in connections.items():
            connection.sendall(HEADS[name])
        yield connections


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_does_not_come_ends_its_connection(silent: dict[str, socket.socket], name: str) -> None:
    *_, head, body = said(silent[name]).split(b"\r\n\r\n")
    assert b"HTTP/1.1 408 Request Timeout" in head
    assert json.loads(body)["code"] == "request_timeout"
    assert "server.head_timeout_s" in json.loads(body)["error"]


def test_a_body_that_stands_still_ends_its_connection(hasty: httpx2.Client) -> None:
    made: list[httpx2.Response] = []

    def is_made() -> bool:  # the body of this request may be late, too
        made.append(hasty.post("/v1/signup", json={"id": "slow"}))
        return made[-1].status_code == 201

    wait_for(is_made)
    key = made[-1].json()["key"]["key"]
    sent = HALF_A_BODY.replace(b"Content-Type", f"Authorization: Bearer {key}\r\nContent-Type".encode())

    def is_ended_for_its_body() -> bool:  # on a busy machine the head may be late, too
        answered = answer_to(hasty, sent)
        assert answered.startswith(b"HTTP/1.1 408 Request Timeout")
        return b"server.body_idle_s" in answered

    wait_for(is_ended_for_its_body)


def test_a_body_that_stands_still_after_its_answer_ends_its_connection(hasty: httpx2.Client) -> None:
    def is_refused() -> bool:  # as above
        answered = answer_to(hasty, HALF_A_BODY)  # without a key
        assert answered.count(b"HTTP/1.1") == 1
        return answered.startswith(b"HTTP/1.1 401 Unauthorized")

    wait_for(is_refused)


def test_a_head_without_end_is_refused(patient: httpx2.Client) -> None:
    with connect(patient) as connection:
        connection.sendall(HALF_A_HEAD + b"a" * 70_000)
        assert said(connection).startswith(b"HTTP/1.1 431 Request Header Fields Too Large")


@pytest.mark.parametrize("endless", [b"X-One: ", b";extension="], ids=["trailer", "chunk extension"])
def test_trailers_without_end_are_refused(patient: httpx2.Client, endless: bytes) -> None:
    key = patient.post("/v1/signup", json={"id": f"trailing-{len(endless)}"}).json()["key"]["key"]
    head = HALF_A_BODY.replace(b"Content-Length: 99\r\n\r\n{", b"Transfer-Encoding: chunked\r\n")
    begun = b"0\r\n" if endless.startswith(b"X") else b"5"
    with connect(patient) as connection:
        named = f"Authorization: Bearer {key}\r\nExpect: 100-continue\r\n\r\n".encode()
        connection.sendall(head + named + b"2\r\n{}\r\n" + begun + endless)
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"a" * 70_000)
        assert said(connection).startswith(b"HTTP/1.1 431 Request Header Fields Too Large")


def test_a_trailer_changes_nothing_of_the_head(patient: httpx2.Client) -> None:
    chunked = b"POST /v1/signup HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(patient) as connection:
        trailers = b"0\r\nContent-Type: application/json\r\n\r\n"
        connection.sendall(chunked + b'f\r\n{"id": "afoot"}\r\n' + trailers + WHOLE.replace(b"\r\n\r\n", CLOSE))
        answered = said(connection)
    assert answered.startswith(b"HTTP/1.1 415 ")
    assert answered.count(b"HTTP/1.1 200") == 1


@pytest.mark.parametrize(
    "sent",
    [b"\x16\x03\x01\x02\x00\x01", b"BREW /health HTTP/1.1\r\n\r\n", b"GET http://127.0.0.1?a HTTP/1.1\r\n\r\n"],
    ids=["TLS", "unknown method", "no path"],
)
def test_what_is_no_http_gets_an_error_of_the_usual_form(patient: httpx2.Client, sent: bytes) -> None:
    with connect(patient) as connection:
        connection.sendall(sent)
        head, body = said(connection).split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request")
    assert b"content-type: application/json" in head
    assert json.loads(body)["code"] == "invalid_http"


def test_connections_beyond_the_limit_are_closed_and_room_comes_back(patient: httpx2.Client) -> None:
    held = [connect(patient) for _ in range(MOST)]  # the client's own may count, too
    with connect(patient) as one_more:
        one_more.settimeout(PATIENCE_S)
        with contextlib.suppress(ConnectionResetError):
            assert one_more.recv(1) == b""
    for connection in held:
        connection.close()
    wait_for(lambda: is_answered(patient))


def test_a_loopback_caller_s_word_for_its_address_counts_for_nothing(patient: httpx2.Client) -> None:
    """As a process: uvicorn itself would believe what comes from 127.0.0.1."""
    codes = [
        patient.post("/v1/signup", json={"id": f"lie-{n}"}, headers={"x-forwarded-for": f"198.51.100.{n}"}).status_code
        for n in range(8)
    ]
    assert codes[-1] == 429


def test_one_address_has_half_of_the_connections_at_most() -> None:
    limits = ConnectionLimits(head_timeout_s=1, body_idle_s=1, most=4, is_exempt=lambda address: address == "proxy")
    assert [limits.enter("a") for _ in range(3)] == [True, True, False]
    assert [limits.enter("proxy") for _ in range(3)] == [True, True, False]
    limits.leave("a")
    assert limits.enter("b")
    for address in ("a", "b", "proxy", "proxy"):
        limits.leave(address)
    assert not limits.open


def test_the_limit_follows_the_open_files_of_the_process() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert 0 < ConnectionLimits(head_timeout_s=1, body_idle_s=1).most < hard
