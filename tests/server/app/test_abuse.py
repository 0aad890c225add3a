"""Callers that read nothing, wait for nothing, or send strange bytes: clear errors, and the others are served."""

import gzip
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import httpx2
import psutil
import pytest

from tests.server.app.test_connections import said
from tests.server.app.test_server_process import forked_server
from tests.support.waiting import PATIENCE_S, wait_for

JSON = b"Content-Type: application/json\r\n"
WHOLE = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
NUM_IDLE = 1000


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[psutil.Process, httpx2.Client]]:
    with forked_server(tmp_path_factory.mktemp("abused"), "server.max_connections=2000") as (process, client):
        yield psutil.Process(process.pid), client


def connect(client: httpx2.Client, *, buffer: int | None = None) -> socket.socket:
    connection = socket.socket()
    connection.settimeout(PATIENCE_S)
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.connect((client.base_url.host, client.base_url.port or 0))
    return connection


def post(path: str, body: bytes, more: bytes = b"") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n".encode()
    return head + JSON + more + b"\r\n" + body


def assert_others_are_served(client: httpx2.Client) -> None:
    reply = client.post("/generate", json={"inputs": "SAY:hi"})
    assert (reply.status_code, reply.json()["generated_text"]) == (200, "hi")


def memory(process: psutil.Process) -> int:
    found = 0
    for each in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):  # it has ended meanwhile
            found += each.memory_info().rss
    return found


def test_a_thousand_idle_connections_cost_little_and_nothing_afterwards(
    served: tuple[psutil.Process, httpx2.Client],
) -> None:
    process, client = served
    assert_others_are_served(client)
    before, num_open = memory(process), process.num_fds()
    with ExitStack() as held:
        for _ in range(NUM_IDLE):
            held.enter_context(connect(client))
        wait_for(lambda: process.num_fds() >= num_open + NUM_IDLE)
        assert_others_are_served(client)
        assert memory(process) - before < 48 << 20
    wait_for(lambda: process.num_fds() <= num_open + 2)
    wait_for(lambda: memory(process) - before < 24 << 20)


def test_callers_that_do_not_read_their_streams_hold_up_no_other(served: tuple[psutil.Process, httpx2.Client]) -> None:
    process, client = served
    before, num_open = memory(process), process.num_fds()
    body = json.dumps({"inputs": "SAY:" + "x" * 400, "parameters": {"max_new_tokens": 400}}).encode()
    with ExitStack() as held:
        for _ in range(32):
            held.enter_context(connect(client, buffer=2048)).sendall(post("/generate_stream", body))
        for _ in range(5):
            assert_others_are_served(client)
        assert memory(process) - before < 48 << 20
    wait_for(lambda: process.num_fds() <= num_open + 2)
    assert_others_are_served(client)
    wait_for(lambda: memory(process) - before < 24 << 20)


def test_a_body_in_single_bytes_is_read_and_holds_up_no_other(served: tuple[psutil.Process, httpx2.Client]) -> None:
    _, client = served
    with connect(client) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request = post("/generate", b'{"inputs": "SAY:slow"}', b"Connection: close\r\n")
        for index in range(len(request)):
            connection.sendall(request[index : index + 1])
            if index == len(request) // 2:
                assert_others_are_served(client)
        assert b'"generated_text":"slow"' in said(connection)


@pytest.mark.parametrize(
    "sent", [WHOLE, WHOLE[:20], post("/generate", b'{"inputs": "SAY:hi"}'), post("/generate", b"{")[:-1]]
)
def test_a_connection_that_is_half_closed_ends(served: tuple[psutil.Process, httpx2.Client], sent: bytes) -> None:
    _, client = served
    with connect(client) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        said(connection)  # a reply or none; the connection ends within the socket's timeout
    assert_others_are_served(client)


def test_requests_behind_an_error_are_answered_in_their_order(served: tuple[psutil.Process, httpx2.Client]) -> None:
    _, client = served
    good = post("/generate", b'{"inputs": "SAY:third"}', b"Connection: close\r\n")
    requests = (post("/generate", b"[{"), post("/nowhere", b"{}"), good)
    with connect(client) as connection:
        connection.sendall(b"".join(requests))
        reply = said(connection)
    assert [part[:3] for part in reply.split(b"HTTP/1.1 ")[1:]] == [b"400", b"404", b"200"]
    assert b"third" in reply


DEEP = 200_000
BODIES: list[tuple[bytes, dict[str, str], int, str]] = [
    (b"[" * DEEP, {}, 400, "not valid JSON"),
    (b'{"inputs":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}", {}, 0, ""),
    (b'{"inputs": "x", "parameters": ' + b"[" * DEEP + b"]" * DEEP + b"}", {}, 0, ""),
    (b'{"inputs": ' + b"9" * 1_000_000 + b"}", {}, 0, ""),
    (b'{"inputs": "x", "' + b"k" * 1_000_000 + b'": 1}', {}, 0, ""),
    (b'{"inputs": "' + b"x" * (3 << 20) + b'"}', {}, 413, "2097152 bytes"),
    (gzip.compress(b'{"inputs": "x"}'), {"content-encoding": "gzip"}, 415, "`Content-Encoding: gzip`"),
    (b'{"inputs": "x"}', {"content-encoding": "gzip, br"}, 415, "`Content-Encoding: gzip, br`"),
    (b'{"inputs": "x"}', {"content-type": "text/plain"}, 415, "application/json"),
    (b'{"inputs": "x"}', {"content-type": "multipart/form-data; boundary=x"}, 415, "application/json"),
    ('{"inputs": "x"}'.encode("utf-16"), {}, 400, "not valid JSON"),
    (b"\xef\xbb\xbf" + b'{"inputs": "x"}', {}, 400, "not valid JSON"),
    (b'{"inputs": "\xff\xfe"}', {}, 400, "not valid JSON"),
    (b'{"inputs": "\\ud800"}', {}, 400, "not valid JSON"),
    (b"null", {}, 0, "must be a JSON object"),
    (b"", {}, 400, "not valid JSON"),
]


PATHS = [
    "/generate",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/conversations",
    "/v1/batches",
]


@pytest.mark.parametrize("path", PATHS)
def test_each_strange_body_has_a_clear_error(served: tuple[psutil.Process, httpx2.Client], path: str) -> None:
    process, client = served
    before = memory(process)
    for body, headers, status, words in BODIES:
        reply = client.post(path, content=body, headers={"content-type": "application/json", **headers})
        found: Any = reply.json()["error"]
        message = found["message"] if isinstance(found, dict) else found
        assert reply.status_code in ({status} if status else {400, 422}), (body[:40], reply.text[:300])
        assert words in message, (body[:40], reply.text[:300])
        assert len(reply.content) < 2_000
    assert_others_are_served(client)
    assert memory(process) - before < 48 << 20


FORM = {"content-type": "multipart/form-data; boundary=cut"}
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "SAY:hi", "model": ""}}


def form_of(content: bytes, *, name: bytes = b"lines.jsonl", purpose: bytes = b"batch") -> bytes:
    """Return a form with a file, whose boundary is that of `FORM`."""
    head = b'--cut\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    file = head % (b"file", b'; filename="%s"' % name, content)
    return head % (b"purpose", b"", purpose) + file + b"--cut--\r\n"


WHOLE_FORM = form_of(json.dumps(LINE).encode())
FORMS: list[tuple[bytes, dict[str, str], int, str]] = [
    (WHOLE_FORM, {"content-type": "application/json"}, 415, "multipart/form-data"),
    (WHOLE_FORM, {"content-type": "multipart/form-data"}, 415, "boundary"),
    (WHOLE_FORM, {"content-type": "multipart/form-data; boundary=" + "x" * 1000}, 415, "boundary"),
    (WHOLE_FORM, {"content-type": "multipart/form-data; boundary=cut" + "; a=b" * 1000}, 415, "boundary"),
    (WHOLE_FORM, {"content-encoding": "gzip"}, 415, "`Content-Encoding: gzip`"),
    (gzip.compress(WHOLE_FORM), {"content-encoding": "gzip"}, 415, "`Content-Encoding: gzip`"),
    (gzip.compress(WHOLE_FORM), {}, 400, "the form ends before its last boundary"),
    (WHOLE_FORM[:-9], {}, 400, "the form ends before its last boundary"),
    (b"", {}, 400, "the form ends before its last boundary"),
    (b"[" * DEEP, {}, 400, "the form ends before its last boundary"),
    (b"--cut\r\n" * 1000, {}, 400, "form"),
    (form_of(b"", name=b"x" * 10_000), {}, 400, "8192 bytes"),
    (form_of(b"", name=b"\xff\xfe"), {}, 400, "UTF-8"),
    (form_of(b"", purpose=b"x" * 100_000), {}, 400, "`purpose` may have at most 65536 bytes"),
    (form_of(b"", purpose=b"\xff"), {}, 400, "`purpose` must be UTF-8"),
]


def test_each_strange_form_has_a_clear_error(served: tuple[psutil.Process, httpx2.Client]) -> None:
    process, client = served
    before = memory(process)
    for body, headers, status, words in FORMS:
        reply = client.post("/v1/files", content=body, headers={**FORM, **headers})
        assert (reply.status_code, words in reply.text) == (status, True), (body[:40], headers, reply.text[:300])
        assert len(reply.content) < 2_000
    assert client.get("/v1/files").json()["data"] == []
    assert_others_are_served(client)
    assert memory(process) - before < 48 << 20


ENDED = ("failed", "completed", "expired")


def end_of(client: httpx2.Client, batch_id: str) -> dict[str, Any]:
    """Return a batch at its end."""
    batch = dict[str, Any]()

    def is_over() -> bool:
        batch.update(client.get(f"/v1/batches/{batch_id}").json())
        return batch["status"] in ENDED

    wait_for(is_over)
    return batch


def bodied(body: bytes) -> bytes:
    """Return a line of a batch with these bytes as its body."""
    return json.dumps(LINE).encode().replace(json.dumps(LINE["body"]).encode(), body)


LINES: list[tuple[bytes, str]] = [
    (b"[" * DEEP, "the line is no JSON object"),
    (b'{"custom_id":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}", ""),
    (bodied(b"[" * DEEP + b"]" * DEEP), ""),
    (bodied(b'"' + b"x" * (3 << 20) + b'"'), "2097152 bytes"),
    (json.dumps(LINE).encode("utf-16"), "the line is no JSON object"),
    (b"\xef\xbb\xbf" + json.dumps(LINE).encode(), "the line is no JSON object"),
    (bodied(b'{"prompt": "\xff\xfe"}'), "not valid JSON"),
    (bodied(b'{"prompt": "\\ud800"}'), "the line is no JSON object"),
    (gzip.compress(json.dumps(LINE).encode()), "the line is no JSON object"),
    (b"\x00" * 1_000_000, "the line is no JSON object"),
]


def test_each_strange_line_of_a_batch_is_an_error_of_its_batch(served: tuple[psutil.Process, httpx2.Client]) -> None:
    """A file has any content; its batch ends as failed, or with an error for the line."""
    process, client = served
    before = memory(process)
    for content, words in LINES:
        made = client.post("/v1/files", content=form_of(content), headers=FORM).json()
        asked = {"input_file_id": made["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
        batch = client.post("/v1/batches", json=asked).json()
        ended = end_of(client, batch["id"])
        assert ended["status"] != "expired", content[:60]
        if ended["status"] == "failed":
            told = json.dumps(ended["errors"])
        else:
            assert ended["request_counts"] == {"total": 1, "completed": 0, "failed": 1}, content[:60]
            told = client.get(f"/v1/files/{ended['error_file_id']}/content").text
        assert words in told, (content[:60], told[:300])
        assert len(told) < 4_000
        client.delete(f"/v1/files/{made['id']}")
    assert_others_are_served(client)
    assert memory(process) - before < 48 << 20
