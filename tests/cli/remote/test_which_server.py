"""Which server a verb talks to, and that no other than a manylora server is shown the key."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner, Result

from manylora.cli import app
from manylora.config.settings import load_config
from manylora.errors import ConfigInvalid

KEY = "pb_00000000_" + "0" * 43
CREDITS: dict[str, object] = {"credits": [], "before": None}


class Listening(ThreadingHTTPServer):
    """Answers `replies[path]`, else 404, and keeps the path and the key of each request."""

    is_manylora = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: dict[str, tuple[int, dict[str, str], object]] = {}
        self.seen: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # a name of the standard library's
        assert isinstance(self.server, Listening)
        self.server.seen.append((self.path.partition("?")[0], self.headers.get("authorization")))
        status, headers, body = self.server.replies.get(self.path.partition("?")[0], (404, {}, {}))
        text = json.dumps(body).encode()
        self.send_response(status)
        own = {"x-manylora-version": "0.1.0"} if self.server.is_manylora else {}
        for name, value in {**own, "content-length": str(len(text)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Listening]:
    with Listening() as listening:
        listening.replies["/v1/account/credits"] = (200, {}, CREDITS)
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield listening
        listening.shutdown()
        thread.join()


def run(*words: str, url: str = "", key: str | None = KEY) -> Result:
    environment = {"MANYLORA_KEY": key, "MANYLORA_URL": url}
    return CliRunner(env=environment).invoke(app, ["tenants", "credits", *words])


def test_the_server_comes_from_the_environment_and_the_flag_goes_before_it(server: Listening) -> None:
    assert run(url=server.url).exit_code == 0
    assert run("--url", server.url, url="http://127.0.0.1:1").exit_code == 0
    assert server.seen == 2 * [("/ready", None), ("/v1/account/credits", f"Bearer {KEY}")]
    assert "no server answers at http://127.0.0.1:1 " in run(url="http://127.0.0.1:1").stderr


@pytest.mark.parametrize("wrong", ["127.0.0.1:8080", "ftp://host", "https://"])
def test_what_is_no_address_is_told_with_where_it_comes_from(wrong: str) -> None:
    told = f"must be a server's address such as http://127.0.0.1:8080. Given: '{wrong}'\n"
    assert run(url=wrong).stderr == f"manylora: MANYLORA_URL {told}"
    assert run("--url", wrong).stderr == f"manylora: --url {told}"


def test_no_other_server_is_shown_the_key(server: Listening) -> None:
    server.is_manylora = False
    server.replies["/ready"] = (200, {}, {"status": "ok"})
    for words, url in (((), server.url), (("--url", server.url, "--key", KEY), "")):
        result = run(*words, url=url)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == (
            f"manylora: {server.url} is no manylora server, so the key was not sent; name the server with --url or "
            "MANYLORA_URL\n"
        )
    assert {key for _, key in server.seen} == {None}


@pytest.mark.parametrize("path", ["/ready", "/v1/account/credits"])
def test_no_redirect_is_followed(path: str, server: Listening) -> None:
    with Listening() as other:
        server.replies[path] = (307, {"location": other.url}, {})
        result = run(url=server.url)
        assert result.exit_code == 1
        assert f"redirects to {other.url}" in result.stderr
        assert other.seen == []
    assert (path, None) in server.seen or path != "/ready"


def test_without_a_key_nothing_is_asked_first(server: Listening) -> None:
    server.is_manylora = False
    assert run(url=server.url, key=None).exit_code == 0
    assert server.seen == [("/v1/account/credits", None)]


def test_a_server_that_is_loading_is_one(server: Listening) -> None:
    server.replies["/ready"] = (503, {}, {"error": "unhealthy"})
    server.replies["/v1/account/credits"] = (503, {}, {"error": {"message": "the server is loading its model"}})
    assert run(url=server.url).stderr == "manylora: the server is loading its model\n"


def test_a_key_that_travels_unencrypted_is_warned_of(server: Listening) -> None:
    result = run(url=f"http://0.0.0.0:{server.server_port}")  # this machine, by an address that is not its own alone
    assert result.exit_code == 0
    assert result.stderr.startswith(f"manylora: warning: http://0.0.0.0:{server.server_port} is not encrypted")
    assert run(url=server.url).stderr == ""


def test_the_two_variables_are_no_settings_and_others_are_refused() -> None:
    load_config(environ={"MANYLORA_URL": "https://models.example", "MANYLORA_KEY": KEY})
    with pytest.raises(ConfigInvalid, match="unknown setting in the environment: MANYLORA_URI"):
        load_config(environ={"MANYLORA_URI": "https://models.example"})
