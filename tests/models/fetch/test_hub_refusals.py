"""A hub that refuses: the error names repository, licence, the token's place and the remedy, never the token."""

import logging
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from manylora.config.environment import child_environment
from manylora.errors import ModelNotFound
from manylora.models.fetch.pull import pull
from tests.forks import forks
from tests.models.fetch.fake_hub import FakeHub, Refusal, running_hub

GATED = "meta-llama/Llama-2-7b-chat-hf"
GATE = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}
REFUSALS: dict[str | None, Refusal] = {
    None: (401, GATE),
    "hf_outsider": (403, GATE),
    "hf_expired": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "hf_narrow": (403, {"X-Error-Message": "Please enable access to public gated repositories in your token settings"}),
}
"""The answers to requests for a gated repository's files, by the token."""


@pytest.fixture(scope="module")
def hub(base: Path) -> Iterator[FakeHub]:
    """A hub with one gated repository: its files are for the token `hf_member`, its description is for all."""
    with running_hub(GATED, {file.name: file.read_bytes() for file in base.iterdir()}) as hub:
        hub.refusals, hub.expired = REFUSALS, frozenset({"hf_expired"})
        yield hub


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
    token: str | None, said: str, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


def test_the_command_ends_with_1_and_one_line_at_the_gate_of_a_licence(hub: FakeHub, tmp_path: Path) -> None:
    own = {"HF_ENDPOINT": hub.url, "MANYLORA_MODEL_CACHE_DIR": str(tmp_path), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment = {**child_environment(), **own}
    ended = forks().run(["pull", "llama-2-7b-chat"], folder=tmp_path, own_environment=environment)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "Traceback" not in ended.stderr
    line = ended.stderr.strip().splitlines()[-1]
    assert f"manylora: {GATED} asks for its licence (Llama 2 Community) to be accepted" in line
    assert "set HF_TOKEN" in line
    assert not list((tmp_path / "bases").glob("Llama*"))


def test_a_token_of_the_hubs_login_is_named_as_such(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_outsider\n")
    with pytest.raises(ModelNotFound, match="the token in `hf auth login` has no access"):
        pull("llama-2-7b-chat", tmp_path, endpoint=hub.url)


def test_a_member_gets_the_base_and_reads_what_is_fetched(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
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
def test_a_base_that_the_hub_does_not_show_is_named(name: str, said: str, hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=said):
        pull(name, tmp_path, endpoint=hub.url)
