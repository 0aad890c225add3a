"""Keys' hashes, ledgers, uploads and usage are their owner's alone, whatever umask a process inherits."""

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from manylora.adapters.sources.upload_folders import Registry
from manylora.cli.settings import with_registry
from manylora.config.settings import Config, load_config
from manylora.control.process.backup import back_up, restore
from manylora.control.process.opening import open_control
from manylora.system.private_files import tighten
from tests.server.app.test_server_process import running


@pytest.fixture(params=[0o000, 0o022], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def open_to_others(*places: Path) -> list[str]:
    found = [path for place in places for path in (place, *place.rglob("*"))]
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in found if not path.is_symlink()}
    return [f"{path} {mode:o}" for path, mode in modes.items() if mode & 0o077]


def config_of(folder: Path) -> Config:
    return load_config(flags={"control.dir": str(folder)}, environ={})


def test_a_new_control_plane_s_files_are_private(tmp_path: Path, umask: int) -> None:
    folder = tmp_path / "control"
    control = open_control(config_of(folder), is_key_needed=True)
    Registry(control.registry_dir).add("acme", "triage", b"{}", b"weights")
    assert (folder / "control.db").stat().st_size
    assert open_to_others(folder) == []
    back_up(config_of(folder), tmp_path / "backup.tar")
    restore(config_of(tmp_path / "again"), tmp_path / "backup.tar")
    assert open_to_others(tmp_path / "backup.tar", tmp_path / "again") == []


def test_a_database_elsewhere_is_private_too(tmp_path: Path, umask: int) -> None:
    file = tmp_path / "books.sqlite"
    flags = {"control.dir": str(tmp_path / "control"), "control.database_url": f"sqlite:///{file}"}
    open_control(load_config(flags=flags, environ={}), is_key_needed=True)
    assert open_to_others(file) == []


def test_files_of_an_older_release_are_tightened_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, outside = tmp_path / "control", tmp_path / "outside"
    open_control(config_of(folder), is_key_needed=True)
    outside.write_text("not ours")
    outside.chmod(0o644)
    (folder / "link").symlink_to(outside)
    for path in (folder / "control.db", folder / "pepper"):
        path.chmod(0o644)
    folder.chmod(0o755)
    open_control(config_of(folder), is_key_needed=True)
    assert open_to_others(folder) == []
    assert stat.S_IMODE(outside.stat().st_mode) == 0o644
    assert [message for message in caplog.messages if "tightened" in message] == [
        f"files.tightened place={folder} number=3: only their owner may read them now"
    ]
    caplog.clear()
    open_control(config_of(folder), is_key_needed=True)
    assert caplog.messages == []


def test_the_folders_of_a_first_start_need_no_tightening(tmp_path: Path) -> None:
    config = with_registry(config_of(tmp_path / "new" / "control"))
    assert open_to_others(tmp_path / "new" / "control") == []
    assert Path(config.adapters.registry_dir).is_dir()


def test_what_cannot_be_tightened_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(Path, "chmod", refuse)
    file = tmp_path / "foreign"
    os.close(os.open(file, os.O_CREAT | os.O_WRONLY))
    os.chmod(file, 0o644)  # noqa: PTH101  `Path.chmod` refuses here
    with caplog.at_level(logging.WARNING):
        tighten(file, tmp_path / "missing")
    assert caplog.messages == [f"files.not_tightened place={file} number=1: they belong to another user"]


@pytest.mark.long
def test_all_that_a_server_writes_is_private(tmp_path: Path) -> None:
    old = tmp_path / "metering" / "0"
    old.mkdir(parents=True)
    (old / "kept.journal").write_bytes(b"")
    (old / "kept.journal").chmod(0o644)
    temporary, before = tmp_path / "tmp", os.umask(0)
    temporary.mkdir()
    os.environ["TMPDIR"] = str(temporary)
    try:
        with running(tmp_path / "served", f"metering.dir={tmp_path / 'metering'}") as (_, client):
            assert client.post("/generate", json={"inputs": "Hi"}).status_code == 200
            assert list(temporary.rglob("*"))
            for place in (tmp_path / "served" / "control", tmp_path / "metering", *temporary.iterdir()):
                assert open_to_others(place) == []
    finally:
        os.umask(before)
        del os.environ["TMPDIR"]
