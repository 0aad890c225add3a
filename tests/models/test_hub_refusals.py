"""A hub that refuses: the error names repository, licence, the token's place and the remedy, never the token."""

import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from manylora.errors import ModelNotFound
from manylora.models.fetch.pull import pull
from tests.models.test_llama import SMALL, save_random
from tests.models.tiny_tokenizers import save_byte_level

GATED = "meta-llama/Llama-2-7b-chat-hf"
COMMIT = "b" * 40
GATE = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}
REFUSALS: dict[str | None, tuple[int, dict[str, str]]] = {
    None: (401, GATE),
    "hf_outsider": (403, GATE),
    "hf_expired": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "hf_narrow": (403, {"X-Error-Message": "Please enable access to public gated repositories in your token settings"}),
}
"""The answers to requests for a gated repository's files, by the token."""


class GatedHub(ThreadingHTTPServer):
    """A hub with one gated repository: its files are for the token `hf_member`, its description is for all."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.files = files

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: GatedHub

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        path = self.path.partition("?")[0]
        if token == "hf_expired":
            self._answer(b"{}", *REFUSALS[token])
        elif path == f"/api/models/{GATED}":
            siblings = [
                {
                    "rfilename": name,
                    "size": len(body),
                    "blobId": hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest(),
                }
                for name, body in self.server.files.items()
            ]
            self._answer(json.dumps({"id": GATED, "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith(f"/{GATED}/resolve/{COMMIT}/"):
            if token in REFUSALS:
                self._answer(b"{}", *REFUSALS[token])
            else:
                self._answer(self.server.files[path.rpartition("/")[2]])
        else:
            self._answer(b"{}", 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

    def _answer(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        common = {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, "ETag": etag}
        for name, value in (common | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatedHub]:
    directory = tmp_path_factory.mktemp("base")
    save_random(directory, LlamaForCausalLM(LlamaConfig(**SMALL)))
    save_byte_level(directory)
    server = GatedHub({file.name: file.read_bytes() for file in directory.iterdir()})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def _no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (None, "no token was sent: accept it at https://huggingface.co/meta-llama/Llama-2-7b-chat-hf and set HF_TOKEN"),
        ("hf_outsider", "the account of the token in HF_TOKEN has no access: accept it at"),
        ("hf_expired", "the hub refuses the token in HF_TOKEN for meta-llama/Llama-2-7b-chat-hf (HTTP 401): it is"),
        ("hf_narrow", "(HTTP 403): it may not read this repository"),
    ],
)
def test_a_gated_base_says_what_the_hub_refuses(
    token: str | None, said: str, hub: GatedHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ModelNotFound) as caught:
        pull("llama-2-7b-chat", tmp_path, endpoint=hub.url)
    assert said in caught.value.message
    assert GATED in caught.value.message
    if REFUSALS[token][1] is GATE:
        assert "its licence (Llama 2 Community)" in caught.value.message
    assert token is None or token not in caught.value.message


def test_a_token_of_the_hubs_login_is_named_as_such(hub: GatedHub, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_outsider\n")
    with pytest.raises(ModelNotFound, match="the token in `hf auth login` has no access"):
        pull("llama-2-7b-chat", tmp_path, endpoint=hub.url)


def test_a_member_gets_the_base_and_reads_what_is_fetched(
    hub: GatedHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_member")
    with caplog.at_level(logging.INFO, "manylora"):
        folder = pull("LLAMA-2-7B-CHAT", tmp_path, endpoint=hub.url)
    assert folder == tmp_path / "bases" / "Llama-2-7b-chat"
    announced = (
        f"Llama-2-7b-chat is {GATED} (Llama 2 Community, given to accounts that accepted it on the hub), "
        "fetched with the token in HF_TOKEN"
    )
    assert announced in caplog.messages
    assert "hf_member" not in caplog.text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("zephyr-7b-beta", "the hub does not show HuggingFaceH4/zephyr-7b-beta, .*: no token was sent"),
        ("org/unknown", r"knows no model org/unknown, or it is private \(no token was sent\)"),
    ],
)
def test_a_base_that_the_hub_does_not_show_is_named(name: str, said: str, hub: GatedHub, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=said):
        pull(name, tmp_path, endpoint=hub.url)
