"""Data that a newer version has written are refused by their version, in one line, and left as they are."""

import asyncio
import hashlib
import logging
import shutil
import struct
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from sqlalchemy import URL, create_engine, text

from manylora import __version__
from manylora.adapters.tiers.disk import DiskTier
from manylora.cli import main
from manylora.clock import SystemClock
from manylora.config.environment import environment
from manylora.control.storage.database import database_url, migrate
from manylora.errors import DataTooNew
from manylora.server.metering import spool
from manylora.server.metering.append_log import FramedFile, read_entries
from manylora.server.metering.journal import Delivery
from manylora.server.metering.meter import Meter
from manylora.server.metering.spool import Dropped, Opened, Recorded, hold_folders
from manylora.usage import UsageRecord
from tests.control.control_process import EDGE_TOKEN
from tests.forks import forks
from tests.upgrades.data_directory import VERSION_0_1, copy_to

NEWER = "9999"

Command = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a verb of the command line that has to end with one line; returns it."""

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["manylora", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


def make_newer(url: URL) -> None:
    migrate(url)
    engine = create_engine(url.set(drivername="sqlite") if url.get_backend_name() == "sqlite" else url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :newer"), {"newer": NEWER})
    engine.dispose()


def settings(folder: Path, url: URL | None = None) -> list[str]:
    given = {"control.dir": str(folder), "control.edge_token": EDGE_TOKEN}
    if url is not None:
        given["control.database_url"] = url.render_as_string(hide_password=False)
    return [word for name, value in given.items() for word in ("--set", f"{name}={value}")]


def assert_names_versions_and_remedy(line: str, version: str = NEWER) -> None:
    for named in (version, f"manylora {__version__}", "restore a backup", "docs/upgrading.md"):
        assert named in line, line
    assert "Traceback" not in line


# ── the control plane's database ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("verb", [("control", "--port", "0"), ("control", "admin-key")])
def test_the_control_plane_refuses_a_newer_database(
    empty_url: URL, tmp_path: Path, refused: Command, verb: tuple[str, ...]
) -> None:
    make_newer(empty_url)
    line = refused(*verb, *settings(tmp_path, empty_url))
    assert_names_versions_and_remedy(line)
    assert str(empty_url.database) in line


def test_a_server_refuses_a_newer_database_and_leaves_it(empty_url: URL, tmp_path: Path) -> None:
    file = copy_to(tmp_path / "0.1")
    is_sqlite = empty_url.get_backend_name() == "sqlite"
    url = database_url("", tmp_path / "0.1" / "control") if is_sqlite else empty_url
    make_newer(url)
    mark_format(tmp_path / "0.1" / "metering" / "0")
    before = contents(tmp_path / "0.1")
    given = [] if is_sqlite else settings(tmp_path / "0.1" / "control", url)
    line = serve_refused(file, *given)
    assert_names_versions_and_remedy(line)
    assert contents(tmp_path / "0.1") == before


def mark_format(folder: Path) -> None:
    """Mark a folder of usage as today's version does."""
    (folder / spool.FORMAT_FILE).write_text(f"{spool.FORMAT}\n")


def serve_refused(file: Path, *words: str) -> str:
    """Start a server that has to end with one line of its own; returns it."""
    command = ["serve", "--port", "0", "--config", str(file), *words]
    with TemporaryDirectory() as folder:
        ended = forks().run(command, folder=Path(folder), own_environment=environment())
    assert ended.returncode == 1, ended
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("manylora: "))
    assert "Traceback" not in ended.stderr
    return line


def contents(folder: Path) -> dict[str, str]:
    """A digest of every file that is more than a name: what counts among the data."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for kept in ("control/uploads", "metering", "cache/adapters")
        for path in (folder / kept).rglob("*")
        if path.is_file() and path.stat().st_size
    }


def test_a_newer_database_makes_no_backup(tmp_path: Path, refused: Command) -> None:
    folder = tmp_path / "kept"
    shutil.copytree(VERSION_0_1 / "control", folder)
    make_newer(database_url("", folder))
    assert_names_versions_and_remedy(refused("control", "backup", str(tmp_path / "backup.tar"), *settings(folder)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]


def test_a_backup_of_a_newer_database_is_not_restored(tmp_path: Path, refused: Command) -> None:
    folder, archive = tmp_path / "kept", tmp_path / "backup.tar"
    shutil.copytree(VERSION_0_1 / "control", folder)
    make_newer(database_url("", folder))
    with tarfile.open(archive, "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    line = refused("control", "restore", str(archive), *settings(tmp_path / "new"))
    assert_names_versions_and_remedy(line)
    assert str(archive) in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.tar", "kept"]


# ── usage that is not shipped yet ────────────────────────────────────────────────────────────────────────────────────


def append(pattern: str, entry: object) -> Callable[[Path], str]:
    """Put an entry of another form behind those of a file; returns the file's name."""

    def change(folder: Path) -> str:
        (path, *_) = sorted(folder.glob(pattern))
        file = FramedFile(path)
        file.append(msgspec.msgpack.encode(entry))
        file.close()
        return path.name

    return change


def change_every_journal(folder: Path) -> str:
    for path in folder.glob("engine-*.journal"):
        append(path.name, {"later": 1})(folder)
    return "journal"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(append("spool-*.log", {"type": "Forgotten", "id": "x"}), id="an-entry-of-another-kind"),
        pytest.param(append("spool-*.log", {"type": "Finished", "record": 5}), id="an-entry-of-another-form"),
        pytest.param(change_every_journal, id="a-journal-of-another-form"),
    ],
)
def test_usage_of_a_newer_form_is_refused_and_left(tmp_path: Path, change: Callable[[Path], str]) -> None:
    copy_to(tmp_path / "0.1")
    folder = tmp_path / "0.1" / "metering"
    said = change(folder / "0")
    mark_format(folder / "0")
    before = contents(tmp_path / "0.1")

    async def start() -> None:
        for _ in range(2):  # the folder is free again at once
            with pytest.raises(DataTooNew) as refused:
                Meter(folder, clock=SystemClock(), ship_s=1.0)
            assert said in refused.value.message
            assert_names_versions_and_remedy(refused.value.message, str(folder / "0"))

    asyncio.run(start())
    assert contents(tmp_path / "0.1") == before


def test_a_server_refuses_usage_of_a_newer_format_and_leaves_it(tmp_path: Path) -> None:
    file = copy_to(tmp_path / "0.1")
    folder = tmp_path / "0.1" / "metering" / "0"
    newer = spool.FORMAT + 1
    (folder / "format").write_text(f"{newer}\n")
    before = contents(tmp_path / "0.1")
    line = serve_refused(file)
    assert_names_versions_and_remedy(line, f"format {newer}")
    assert str(folder) in line
    assert contents(tmp_path / "0.1") == before


def test_a_version_with_another_format_marks_the_folders_it_writes_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(VERSION_0_1 / "metering", tmp_path / "metering")
    with monkeypatch.context() as later:
        later.setattr(spool, "FORMAT", spool.FORMAT + 1)
        for _ in range(2):
            for folder in hold_folders(tmp_path / "metering"):
                folder.release()
    with pytest.raises(DataTooNew, match=f"format {spool.FORMAT + 1}"):
        hold_folders(tmp_path / "metering")
    (tmp_path / "metering" / "0" / "format").unlink()
    for folder in hold_folders(tmp_path / "metering"):
        folder.release()


OPENED = (
    *("id", "tenant", "key", "request_id", "base", "adapter", "adapter_source", "adapter_owner"),
    *("opened_ms", "is_streamed", "life", "requests"),
)
RECORD = (
    *("id", "tenant", "key", "request_id", "edge", "base", "adapter", "adapter_source", "adapter_owner"),
    *("adapter_digest", "opened_ms", "prompt_tokens", "cached_tokens", "completion_tokens"),
    *("charged_prompt_tokens", "charged_completion_tokens", "num_sequences", "finish_reason", "tier"),
    *("queue_ms", "load_ms", "first_token_ms", "total_ms"),
)
ENTRY = ("number", "opened", "tokens", "ended")
FORMS: dict[int, dict[str, tuple[str, ...]]] = {
    1: {
        "Opened": OPENED,
        "Dropped": ("id",),
        "Finished": ("record",),
        "UsageRecord": RECORD,
        "Entry": ENTRY,
    },
    2: {
        "Opened": OPENED,
        "Dropped": ("id",),
        "Finished": ("record",),
        "UsageRecord": (*RECORD, "charged_cached_tokens"),
        "Entry": (*ENTRY, "cut", "cached"),
    },
    3: {
        "Opened": OPENED,
        "Dropped": ("id",),
        "Finished": ("record",),
        "UsageRecord": (*RECORD, "charged_cached_tokens"),
        "Delivery": ("opened", "tokens", "cached", "ended"),
    },
    4: {
        "Opened": (*OPENED, "is_batch"),
        "Dropped": ("id",),
        "Finished": ("record",),
        "UsageRecord": (*RECORD, "charged_cached_tokens", "is_batch"),
        "Delivery": ("opened", "tokens", "cached", "ended"),
    },
    5: {
        "Opened": (*OPENED, "is_batch"),
        "Dropped": ("id",),
        "Finished": ("record",),
        "UsageRecord": (*RECORD, "charged_cached_tokens", "is_batch"),
        "Delivery": ("opened", "tokens", "cached", "ended", "links"),
    },
    6: {
        "Opened": (*OPENED, "is_batch", "alias", "is_shadow"),
        "Dropped": ("id",),
        "Finished": ("record",),
        "UsageRecord": (*RECORD, "charged_cached_tokens", "is_batch", "alias", "is_shadow"),
        "Delivery": ("opened", "tokens", "cached", "ended", "links"),
    },
    7: {
        "Opened": (*OPENED, "is_batch", "alias", "is_shadow", "deployment"),
        "Dropped": ("id",),
        "Finished": ("record",),
        "UsageRecord": (*RECORD, "charged_cached_tokens", "is_batch", "alias", "is_shadow", "deployment"),
        "Delivery": ("opened", "tokens", "cached", "ended", "links"),
    },
}
"""The fields of every entry, by `spool.FORMAT`."""


def test_an_entry_of_another_form_has_another_format() -> None:
    kinds = (Opened, Dropped, UsageRecord, Delivery)
    found = {kind.__name__: tuple(kind.__annotations__) for kind in kinds}
    found["Finished"] = tuple(Recorded.__annotations__)  # its name in the files
    assert found == FORMS[spool.FORMAT], (
        "raise spool.FORMAT and note the new form here: an older version would misread the entries"
    )


# ── packed adapters ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_packed_adapter_of_another_version_is_named_and_packed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy_to(tmp_path / "0.1")
    folder = tmp_path / "0.1" / "cache" / "adapters" / "0"
    changed, *others = sorted(folder.glob("*.img"))
    data = bytearray(changed.read_bytes())
    struct.pack_into("<I", data, 8, 7)
    changed.write_bytes(data)
    with caplog.at_level(logging.INFO):
        tier = DiskTier(folder.parent, 1 << 30, dtype="bfloat16", base_fingerprint="")
    tier.close()
    assert sorted(folder.glob("*.img")) == others
    assert f"name={changed.name} why=a packed image of version 7" in caplog.text


def test_what_a_kill_has_torn_is_no_newer_format(tmp_path: Path) -> None:
    """Bytes without their checksum are the end of a file, and not an entry."""
    shutil.copytree(VERSION_0_1 / "metering", tmp_path / "metering")
    (path,) = (tmp_path / "metering" / "0").glob("spool-*.log")
    whole = list(read_entries(path))
    with path.open("ab") as stream:
        stream.write(b"\x05\x00\x00\x00\x00\x00\x00\x00later")
    assert list(read_entries(path)) == whole
    assert len(list(spool.read_segment(path))) == len(whole)
