"""A pulled base that is damaged afterwards is mended, or named; a directory of the user is never changed."""

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from manylora.config.environment import child_environment
from manylora.errors import ManyloraError, ModelNotFound, ModelUnsupported
from manylora.models.fetch import checksums
from manylora.models.fetch import pull as pulling
from manylora.models.fetch.catalog import pulled_dir
from manylora.models.fetch.known_bases import DEFAULT
from manylora.models.fetch.pull import pull
from tests.conftest import thinned
from tests.forks import forks
from tests.models.fetch.fake_hub import FakeHub, copy_base

SHARD = "model-00002-of-00002.safetensors"
Change = Callable[[Path], object]


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def put_zeros(file: Path) -> None:
    """Zeros inside the weights, with size and time of change as before."""
    before = file.stat()
    data = bytearray(file.read_bytes())
    data[-4096:-1024] = bytes(3072)
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def put_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, tuple[str, Change]] = {
    "weights cut short": (SHARD, cut),
    "weights with zeros inside": (SHARD, put_zeros),
    "weights without a byte": (SHARD, lambda file: file.write_bytes(b"")),
    "weights gone": (SHARD, Path.unlink),
    "a folder in their place": (SHARD, put_a_folder),
    "another config": ("config.json", lambda file: file.write_bytes(file.read_bytes().replace(b"4", b"5", 1))),
    "no config": ("config.json", Path.unlink),
    "a config that is no JSON": ("config.json", lambda file: file.write_text("{")),
    "a generation config cut short": ("generation_config.json", cut),
    "a tokenizer cut short": ("tokenizer.json", cut),
    "a tokenizer gone": ("tokenizer.json", Path.unlink),
    "the settings of the tokenizer": ("tokenizer_config.json", lambda file: file.write_bytes(b"\xff\xfe")),
    "the index": ("model.safetensors.index.json", cut),
}


@pytest.mark.parametrize("damage", thinned(DAMAGES, 3))
def test_a_damaged_file_is_fetched_anew_and_no_other(
    damage: str, hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = pull("org/model", tmp_path, endpoint=hub.url)
    pull("org/model", tmp_path, endpoint=hub.url)  # read whole, and noted
    before = contents(directory)
    hub.fetched.clear()
    name, change = DAMAGES[damage]
    change(directory / name)
    with caplog.at_level(logging.INFO):
        assert pull("org/model", tmp_path, endpoint=hub.url) == directory
    assert contents(directory) == before
    if damage != "no config":  # nothing tells then which files are whole
        assert hub.fetched == [name]
        (line,) = [message for message in caplog.messages if "damaged" in message]
        assert str(directory / name) in line
    assert not [path.name for path in directory.parent.iterdir() if path.name.startswith((".partial", ".damaged"))]


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"format": 1, "files": {"../x": {"bytes": 1, "sha256": ""}}}'])
def test_checksums_that_are_lost_are_made_again_from_what_is_whole(
    content: bytes | None, hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = pull("org/model", tmp_path, endpoint=hub.url)
    file = directory / checksums.FILE_NAME
    file.unlink() if content is None else file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        pull("org/model", tmp_path, endpoint=hub.url)
    assert any("only its structure could be checked" in message for message in caplog.messages)
    before = contents(directory)
    put_zeros(directory / SHARD)
    pull("org/model", tmp_path, endpoint=hub.url)
    assert {**contents(directory), file.name: b""} == {**before, file.name: b""}


def test_without_a_hub_a_damaged_base_is_named_with_the_remedy_and_stays(hub: FakeHub, tmp_path: Path) -> None:
    directory = pull("org/model", tmp_path, endpoint=hub.url)
    put_zeros(directory / SHARD)
    before = contents(directory)
    with pytest.raises(ModelNotFound) as caught:
        pull("org/model", tmp_path, endpoint="http://127.0.0.1:9")
    assert str(directory / SHARD) in caught.value.message
    assert "manylora pull org/model" in caught.value.message
    assert contents(directory) == before


def test_weights_are_read_whole_once_and_again_when_they_change(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = pull("org/model", tmp_path, endpoint=hub.url)
    read: list[str] = []
    true_chunks = checksums._chunks

    def chunks(file: Path) -> Iterator[bytes]:
        read.append(file.name)
        return true_chunks(file)

    monkeypatch.setattr(checksums, "_chunks", chunks)
    weights = {file.name for file in directory.glob("*.safetensors")}

    def read_by(*, is_thorough: bool = False) -> set[str]:
        read.clear()
        pull("org/model", tmp_path, endpoint=hub.url, is_thorough=is_thorough)
        return {name for name in read if name.endswith(".safetensors")}

    assert read_by() == weights
    assert read_by() == set()
    (directory / SHARD).touch()
    assert read_by() == {SHARD}
    assert read_by(is_thorough=True) == weights
    (directory.parent / ".verified-org--model").write_text("[1")
    assert read_by() == weights


def test_a_whole_base_that_cannot_be_served_is_not_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    directory = pull("org/model", tmp_path, endpoint=hub.url)
    (directory / "config.json").write_text('{"architectures": ["GemmaForCausalLM"]}')
    checksums.write_checksums(directory, lambda stage, done, total: None)
    hub.fetched.clear()
    with pytest.raises(ModelUnsupported, match="GemmaForCausalLM"):
        pull("org/model", tmp_path, endpoint=hub.url)
    assert hub.fetched == []


def test_what_a_hub_says_is_compared_with_what_came(hub: FakeHub, tmp_path: Path) -> None:
    hub.sha256 = {SHARD: "0" * 64}
    with pytest.raises(ModelNotFound, match="came twice with another content"):
        pull("org/model", tmp_path, endpoint=hub.url)
    assert not pulled_dir("org/model", tmp_path).exists()


def test_a_file_that_an_unfinished_pull_left_damaged_is_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    whole = contents(pull("org/model", tmp_path / "other", endpoint=hub.url))
    partial = tmp_path / "bases" / ".partial-org--model"
    copy_base(pulled_dir("org/model", tmp_path / "other"), partial)
    put_zeros(partial / SHARD)
    directory = pull("org/model", tmp_path, endpoint=hub.url)
    assert (directory / SHARD).read_bytes() == whole[SHARD]


# ── directories of the user's ────────────────────────────────────────────────────────────────────────────────────


def test_a_damaged_directory_of_the_users_is_named_and_never_changed(hub: FakeHub, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(pull("org/model", tmp_path / "cache", endpoint=hub.url), own)
    assert pull(str(own), tmp_path / "cache") == own
    put_zeros(own / SHARD)
    before = contents(own)
    with pytest.raises(ModelUnsupported) as caught:
        pull(str(own), tmp_path / "cache")
    assert str(own / SHARD) in caught.value.message
    assert "Copy it anew" in caught.value.message
    assert contents(own) == before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", SHARD])
def test_a_directory_without_checksums_is_checked_by_its_structure(name: str, base: Path, tmp_path: Path) -> None:
    copy_base(base, tmp_path / "own")
    (tmp_path / "own" / name).write_bytes(b"{")
    before = contents(tmp_path / "own")
    with pytest.raises(ManyloraError) as caught:
        pull(str(tmp_path / "own"), tmp_path / "cache", is_thorough=True)
    assert str(tmp_path / "own") in caught.value.message
    assert contents(tmp_path / "own") == before


# ── the embedded base ────────────────────────────────────────────────────────────────────────────────────────────


def test_an_embedded_base_of_an_earlier_version_is_proved_by_its_weights(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no checksums: those of the weights are known, and everything else is converted again."""
    single = tmp_path / "single"
    single.mkdir()
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.models.test_llama import SMALL, save_random
    from tests.models.tiny_tokenizers import save_byte_level

    save_random(single, LlamaForCausalLM(LlamaConfig(**SMALL)))
    save_byte_level(single)
    checksums.write_checksums(single, lambda stage, done, total: None)
    sums = json.loads((single / checksums.FILE_NAME).read_text())["files"]
    (single / checksums.FILE_NAME).unlink()
    monkeypatch.setattr(pulling, "_WEIGHTS_SHA256", sums["model.safetensors"]["sha256"])
    fetched: list[Path] = []

    def fetch(partial: Path, report: pulling.Progress) -> None:
        fetched.append(partial)
        copy_base(single, partial)

    monkeypatch.setattr(pulling, "_fetch_default", fetch)
    directory = pulled_dir(DEFAULT.name, tmp_path)
    copy_base(single, directory)
    pull(DEFAULT.name, tmp_path)
    assert fetched == []
    (directory / checksums.FILE_NAME).unlink()
    put_zeros(directory / "model.safetensors")
    pull(DEFAULT.name, tmp_path)
    assert len(fetched) == 1
    assert (directory / "model.safetensors").read_bytes() == (single / "model.safetensors").read_bytes()


# ── a cache that cannot be written ───────────────────────────────────────────────────────────────────────────────


def test_a_whole_base_in_a_cache_that_cannot_be_written_is_used(hub: FakeHub, tmp_path: Path) -> None:
    directory = pull("org/model", tmp_path, endpoint=hub.url)
    lock = tmp_path / "bases" / ".lock-org--model"
    lock.unlink()
    lock.mkdir()
    assert pull("org/model", tmp_path, endpoint=hub.url) == directory
    cut(directory / SHARD)
    with pytest.raises(ModelNotFound) as caught:
        pull("org/model", tmp_path, endpoint=hub.url)
    assert str(directory / SHARD) in caught.value.message
    assert str(lock) in caught.value.message


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_mends_a_base_and_says_so(hub: FakeHub, tmp_path: Path) -> None:
    own = {"HF_ENDPOINT": hub.url, "MANYLORA_MODEL_CACHE_DIR": str(tmp_path), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        environment = {**child_environment(), **own}
        return forks().run(["pull", "org/model", *words], folder=tmp_path, own_environment=environment)

    directory = pull("org/model", tmp_path, endpoint=hub.url)
    whole = contents(directory)
    put_zeros(directory / SHARD)
    mended = run("--verify")
    assert mended.returncode == 0, mended.stderr
    assert mended.stdout == f"{directory}\n"
    assert f"{directory / SHARD} is damaged" in mended.stderr
    assert contents(directory) == whole
    put_zeros(directory / SHARD)
    del hub.files[SHARD]
    refused = run()
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert str(directory / SHARD) in refused.stderr
