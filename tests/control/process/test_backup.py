"""Backup and restore: taken while it serves, complete, in nobody's way, and refused where it would overwrite."""

import asyncio
import json
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import BinaryIO

import httpx2
import pytest
from typer.testing import CliRunner, Result

from manylora.adapters.sources.upload_folders import Registry
from manylora.cli import app
from manylora.config.settings import Config, load_config
from manylora.control.billing.ledger import insert_records
from manylora.control.control import Control
from manylora.control.process.backup import back_up, restore
from manylora.control.process.first_start import ensure_first_start
from manylora.control.process.opening import open_control
from manylora.control.tenants.keys import issue_key
from manylora.control.tenants.tenants import create_tenant
from manylora.errors import ConfigInvalid
from tests.conftest import missing
from tests.control.control_process import running_control
from tests.control.plane import record
from tests.control.postgres_server import PostgresServer, find_postgres
from tests.support.waiting import PATIENCE_S


def settings(folder: Path, **more: str) -> Config:
    flags = {"control.dir": str(folder)} | {name.replace("__", "."): value for name, value in more.items()}
    return load_config(flags=dict(flags), environ={})


def filled(config: Config, numbers: range = range(3)) -> tuple[str, list[str]]:
    """Open a control plane, put a tenant and records into it, and return a key's text and the ledger."""

    async def fill(control: Control) -> str:
        await ensure_first_start(control)
        async with control.database.write() as connection:
            await create_tenant(connection, "acme", now_ms=1)
            _, text = await issue_key(connection, control.pepper, "acme", now_ms=1)
        await insert_records(control, [record(number, opened_ms=1) for number in numbers])
        return text

    control = open_control(config, is_key_needed=True)
    text = closing(control, fill)
    return text, ledger_of(config)


def closing(control: Control, work: Callable[[Control], Awaitable[str]]) -> str:
    async def main() -> str:
        try:
            return await work(control)
        finally:
            await control.database.close()

    return asyncio.run(main())


def ledger_of(config: Config) -> list[str]:
    async def read(control: Control) -> str:
        async with control.database.read() as connection:
            rows = await connection.exec_driver_sql("SELECT id, cost_nanousd FROM ledger ORDER BY id")
            return json.dumps([list(row) for row in rows.all()])

    return [str(row) for row in json.loads(closing(open_control(config, is_key_needed=True), read))]


@pytest.mark.long
def test_a_backup_restores_tenants_keys_ledger_and_uploads(tmp_path: Path) -> None:
    config = settings(tmp_path / "old")
    key, ledger = filled(config)
    upload = tmp_path / "old" / "uploads" / "acme" / "triage" / "1" / "adapter_model.safetensors"
    upload.parent.mkdir(parents=True)
    upload.write_bytes(b"weights")
    (tmp_path / "old" / "uploads" / ".incoming-1").mkdir()
    back_up(config, tmp_path / "backup.tar")
    new = settings(tmp_path / "new")
    restore(new, tmp_path / "backup.tar")
    assert ledger_of(new) == ledger
    assert len(ledger) == 3
    assert (tmp_path / "new" / "uploads/acme/triage/1/adapter_model.safetensors").read_bytes() == b"weights"
    assert not (tmp_path / "new" / "uploads" / ".incoming-1").exists()
    with running_control(tmp_path / "new", is_first=False) as plane:
        reply = httpx2.get(f"{plane.url}/v1/account", headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE_S)
        assert (reply.status_code, reply.json()["id"]) == (200, "acme")


def test_only_its_owner_reads_a_backup_and_its_pepper(tmp_path: Path) -> None:
    config = settings(tmp_path / "old")
    filled(config)
    back_up(config, tmp_path / "backup.tar")
    assert stat.S_IMODE((tmp_path / "backup.tar").stat().st_mode) == 0o600
    restore(settings(tmp_path / "new"), tmp_path / "backup.tar")
    modes = [stat.S_IMODE((tmp_path / "new" / name).stat().st_mode) for name in (".", "pepper", "control.db")]
    assert modes == [0o700, 0o600, 0o600]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.tar", "new", "old"]


def test_a_backup_is_taken_while_records_come_in(tmp_path: Path) -> None:
    with running_control(tmp_path / "old") as plane:

        def run(*words: str) -> Result:
            return CliRunner(env={"MANYLORA_KEY": plane.admin_key}).invoke(app, list(words))

        for number in range(10):
            assert run("tenants", "create", f"acme-{number}", "--url", plane.url).exit_code == 0
            if number == 5:
                where = ["--set", f"control.dir={tmp_path / 'old'}"]
                assert run("control", "backup", str(tmp_path / "backup.tar"), *where).exit_code == 0
    assert (
        run("control", "restore", str(tmp_path / "backup.tar"), "--set", f"control.dir={tmp_path / 'new'}").exit_code
        == 0
    )
    with running_control(tmp_path / "new", is_first=False) as restored:
        page = httpx2.get(
            f"{restored.url}/admin/tenants", headers={"authorization": f"Bearer {plane.admin_key}"}, timeout=PATIENCE_S
        ).json()
        assert [tenant["id"] for tenant in page["tenants"]] == [
            *(f"acme-{number}" for number in range(6)),
            *("default", "operator"),
        ]
        [act] = httpx2.get(
            f"{restored.url}/admin/audit?verb=restore",
            headers={"authorization": f"Bearer {plane.admin_key}"},
            timeout=PATIENCE_S,
        ).json()["audit"]
        assert (act["name"], act["by_tenant"], act["address"]) == ("backup.tar", "operator", "on the machine")


@pytest.mark.long  # twenty backups
def test_a_backup_is_taken_while_uploads_come_and_go(tmp_path: Path) -> None:
    """Versions are published and deleted, in their own folders and whole repositories, as fast as it goes."""
    config = settings(tmp_path / "old")
    filled(config)
    uploads = Registry(tmp_path / "old" / "uploads")
    lasting = [uploads.add("acme", f"kept-{number}", b"{}", b"weights" * 100) for number in range(50)]
    is_over = Event()

    def come_and_go(tenant: str) -> None:
        while not is_over.is_set():
            for repo in ("one", "two"):
                uploads.remove(tenant, repo, uploads.add(tenant, repo, b"{}", b"w" * 10_000))
            shutil.rmtree(uploads.root / tenant)

    with ThreadPoolExecutor() as threads:
        others = [threads.submit(come_and_go, f"a-{number}") for number in range(3)]
        try:
            for number in range(20):
                back_up(config, tmp_path / f"backup-{number}.tar")
        finally:
            is_over.set()
    for other in others:
        other.result()
    restore(settings(tmp_path / "new"), tmp_path / "backup-19.tar")
    restored = Registry(tmp_path / "new" / "uploads")
    assert lasting == [1] * 50
    for number in range(50):
        assert [file.read_bytes() for file in restored.files("acme", f"kept-{number}", 1)] == [b"{}", b"weights" * 100]


def test_a_file_that_ends_early_makes_no_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(tmp_path / "old")
    filled(config)
    Registry(tmp_path / "old" / "uploads").add("acme", "triage", b"{}", b"weights" * 100)
    add = tarfile.TarFile.addfile

    def shortened(archive: tarfile.TarFile, entry: tarfile.TarInfo, stream: BinaryIO | None = None) -> None:
        if entry.name.endswith(".safetensors"):
            os.truncate(tmp_path / "old" / entry.name, 100)
        add(archive, entry, stream)

    monkeypatch.setattr(tarfile.TarFile, "addfile", shortened)
    with pytest.raises(ConfigInvalid, match="safetensors: unexpected end"):
        back_up(config, tmp_path / "backup.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]


def test_uploads_behind_a_link_are_backed_up(tmp_path: Path) -> None:
    config = settings(tmp_path / "old")
    filled(config)
    Registry(tmp_path / ".disk").add("acme", "triage", b"{}", b"weights")
    (tmp_path / "old" / "uploads").symlink_to(tmp_path / ".disk")
    back_up(config, tmp_path / "backup.tar")
    restore(settings(tmp_path / "new"), tmp_path / "backup.tar")
    assert (tmp_path / "new" / "uploads/acme/triage/1/adapter_model.safetensors").read_bytes() == b"weights"


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    config = settings(tmp_path / "old")
    filled(config)
    back_up(config, tmp_path / "backup.tar")
    with pytest.raises(ConfigInvalid, match="overwrites nothing"):
        back_up(config, tmp_path / "backup.tar")
    with pytest.raises(ConfigInvalid, match="is not empty"):
        restore(config, tmp_path / "backup.tar")
    assert len(ledger_of(config)) == 3


def test_a_database_and_uploads_kept_elsewhere_return_to_their_places(tmp_path: Path) -> None:
    def config(place: str) -> Config:
        (tmp_path / place).mkdir(exist_ok=True)
        url, uploads = f"sqlite:///{tmp_path}/{place}/money.db", str(tmp_path / place / "registry")
        return settings(tmp_path / place / "kept", control__database_url=url, adapters__registry_dir=uploads)

    _, ledger = filled(config("old"))
    (tmp_path / "old" / "registry" / "acme").mkdir(parents=True)
    (tmp_path / "old" / "registry" / "acme" / "weights").write_bytes(b"w")
    back_up(config("old"), tmp_path / "backup.tar")
    restore(config("new"), tmp_path / "backup.tar")
    assert ledger_of(config("new")) == ledger
    assert (tmp_path / "new" / "registry" / "acme" / "weights").read_bytes() == b"w"
    assert sorted(path.name for path in (tmp_path / "new" / "kept").iterdir()) == ["pepper"]


def test_a_file_that_is_no_backup_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no archive")
    with tarfile.open(tmp_path / "other.tar", "w") as archive:
        archive.add(tmp_path / "text", "pepper")
    for name, said in (("text", "cannot be restored"), ("other.tar", "control.db"), ("absent", "cannot be restored")):
        with pytest.raises(ConfigInvalid, match=said):
            restore(settings(tmp_path / "new"), tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.tar", "text"]


def test_an_archive_reaches_nothing_outside_the_folder(tmp_path: Path) -> None:
    config = settings(tmp_path / "old")
    filled(config)
    back_up(config, tmp_path / "backup.tar")
    with tarfile.open(tmp_path / "backup.tar", "a") as archive:
        archive.add(tmp_path / "old" / "pepper", "../outside")
    with pytest.raises(ConfigInvalid, match="cannot be restored"):
        restore(settings(tmp_path / "new"), tmp_path / "backup.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.tar", "old"]


def test_postgresql_is_backed_up_by_its_own_tools_and_the_rest_by_ours(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    """The commands of docs/control-plane.md."""
    binaries = find_postgres()
    if binaries is None:
        missing("no PostgreSQL tools here: apt-get install postgresql")
        return
    old, new = postgres.new_database(), postgres.new_database()

    def config(place: str) -> Config:
        url = (old if place == "old" else new).render_as_string(hide_password=False)
        return settings(tmp_path / place, control__database_url=url)

    key, ledger = filled(config("old"))
    with pytest.raises(ConfigInvalid, match="pg_dump --format=custom"):
        back_up(config("old"), tmp_path / "backup.tar")
    back_up(config("old"), tmp_path / "backup.tar", has_database=False)
    where = ["--host", str(postgres.folder), "--username", "postgres"]
    dump = str(tmp_path / "control.dump")
    tools: list[list[str | Path]] = [
        [binaries / "pg_dump", *where, "--format=custom", f"--file={dump}", str(old.database)],
        [binaries / "pg_restore", *where, "--no-owner", f"--dbname={new.database}", dump],
    ]
    for tool in tools:
        subprocess.run(tool, check=True)
    with pytest.raises(ConfigInvalid, match="pg_restore"):
        restore(config("new"), tmp_path / "backup.tar")
    restore(config("new"), tmp_path / "backup.tar", has_database=False)
    assert ledger_of(config("new")) == ledger
    url = str(config("new").control.database_url)
    with running_control(tmp_path / "new", f"control.database_url={url}", is_first=False) as plane:
        reply = httpx2.get(f"{plane.url}/v1/account", headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE_S)
        assert reply.status_code == 200
