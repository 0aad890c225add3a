"""Folders in the temporary directory: those of killed servers go, those of others stay."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from manylora.clock import ManualClock, SystemClock
from manylora.errors import StartupError
from manylora.server.engine_client.process import runtime_folder
from manylora.server.engine_client.process.runtime_folder import RuntimeFolder


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The temporary directory, with a short name: it is part of a socket's."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def hold_in_a_process(parent: Path) -> "tuple[subprocess.Popen[str], Path]":
    code = (
        "import sys; from manylora.clock import SystemClock; "
        "from manylora.server.engine_client.process.runtime_folder import RuntimeFolder; "
        "print(RuntimeFolder(SystemClock()).path, flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "TMPDIR": str(parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def end(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_the_folder_of_a_killed_server_goes_at_the_next_start(parent: Path) -> None:
    killed, left = hold_in_a_process(parent)
    living, kept = hold_in_a_process(parent)
    end(killed)
    assert left.is_dir()
    own = RuntimeFolder(SystemClock())
    assert sorted(parent.iterdir()) == sorted([kept, own.path])
    end(living)
    own.remove()
    assert list(parent.iterdir()) == [kept]


def test_a_folder_of_an_earlier_version_goes_once_it_is_old_and_silent(parent: Path) -> None:
    for name, is_listening in (("manylora-aaaaaaaa", False), ("manylora-bbbbbbbb", True)):
        (parent / name).mkdir()
        with socket.socket(socket.AF_UNIX) as engine:
            engine.bind(str(parent / name / "engine"))
            if is_listening:
                living = engine.dup()
                living.listen()
    clock = ManualClock(SystemClock().wall_s() - 1_700_000_000)
    with living:
        RuntimeFolder(clock).remove()
        assert len(list(parent.iterdir())) == 2
        clock.advance(61)
        RuntimeFolder(clock).remove()
        assert [path.name for path in parent.iterdir()] == ["manylora-bbbbbbbb"]


def test_a_start_leaves_the_folder_of_another_start_at_every_moment(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, seen = fcntl.flock, list[Path]()

    def with_another_start(descriptor: int, operation: int) -> None:
        if not seen:
            seen.extend(parent.iterdir())
            RuntimeFolder(SystemClock()).remove()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", with_another_start)
    folder = RuntimeFolder(SystemClock())
    assert seen == list(parent.iterdir()) == [folder.path]
    folder.remove()


def test_what_no_server_made_stays(parent: Path) -> None:
    (parent / "manylora-my-notes").mkdir()
    (parent / "manylora-notes123").mkdir()
    (parent / "manylora-notes123" / "a").touch()
    (parent / "elsewhere").mkdir()
    (parent / "manylora-linklink").symlink_to("elsewhere")
    names = {path.name for path in parent.iterdir()}
    clock = ManualClock(SystemClock().wall_s() - 1_700_000_000 + 1_000)
    RuntimeFolder(clock).remove()
    assert {path.name for path in parent.iterdir()} == names


@pytest.mark.parametrize("name", ["x" * 100, "not-text-\udcff"])
def test_a_temporary_directory_that_a_socket_cannot_be_in_is_passed_over(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfit = tmp_path / name
    unfit.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(unfit))
    folder = RuntimeFolder(SystemClock())
    try:
        assert not folder.path.is_relative_to(unfit)
        assert len(os.fsencode(folder.address.removeprefix("ipc://"))) < 108
    finally:
        folder.remove()
    assert list(unfit.iterdir()) == []


def test_without_any_directory_for_a_socket_the_start_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    monkeypatch.setattr(runtime_folder, "_SHORT_PLACES", (str(tmp_path / "nor" / "here"),))
    with pytest.raises(StartupError, match="let TMPDIR name one"):
        RuntimeFolder(SystemClock())
