"""Local folders that are hostile: pipes, devices, links, archives, and folders swapped while they are read."""

import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from manylora import errors
from manylora.adapters.ingest.client import ProcessIngest
from manylora.adapters.jobs import Found, Ingested, IngestFailure, IngestJob, IngestSettings
from manylora.adapters.sources.local import LocalSource
from manylora.adapters.tiers.image_folder import job_file
from tests.adapters.adapter_files import TINY, local, save_adapter
from tests.conftest import long
from tests.support.waiting import wait_for

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
MAX_BYTES = 1 << 24


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def ingest(root: Path, tmp_path: Path) -> Iterator[ProcessIngest]:
    (tmp_path / "disk").mkdir()
    settings = IngestSettings(
        shape=TINY,
        roots=(str(root),),
        folder=str(tmp_path / "disk"),
        dtype="bfloat16",
        max_rank=64,
        max_bytes=MAX_BYTES,
        parallel_loads=2,
    )
    process = ProcessIngest(settings)
    yield process
    process.close()


def ended(ingest: ProcessIngest, job: IngestJob) -> Ingested | IngestFailure:
    (Path(ingest._settings.folder) / job_file(job.number)).touch()  # as the disk tier makes it
    ingest.submit(job)
    outcomes: list[Ingested | IngestFailure] = []

    def has_ended() -> bool:
        outcomes.extend(outcome for outcome in ingest.poll() if not isinstance(outcome, Found))
        return bool(outcomes)

    wait_for(has_ended)
    return outcomes[0]


def put_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def put_device(path: Path) -> None:
    path.unlink()
    try:
        os.mknod(path, 0o666 | 0o020000, os.makedev(1, 5))  # /dev/zero, which never ends
    except PermissionError:
        pytest.skip("making a device needs a right that this user lacks")


def put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def put_link_to_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def put_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def put_link_outside(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


REPLACEMENTS = [put_pipe, put_device, put_folder, put_link_to_device, put_link_to_itself, put_link_outside]


@pytest.mark.parametrize("file", [CONFIG, *long(WEIGHTS)])
@pytest.mark.parametrize("put", REPLACEMENTS)
def test_what_is_no_file_is_refused_and_holds_up_nobody(
    root: Path, ingest: ProcessIngest, put: Callable[[Path], None], file: str
) -> None:
    """It was a file when it was found; the process meets the other thing, and goes on to the next adapter."""
    source = LocalSource((root,))
    stamps = {name: source.locate(local(save_adapter(root / name).name)).stamp for name in ("bad", "good")}
    put(root / "bad" / file)
    with pytest.raises(errors.AdapterError):
        source.locate(local("bad"))
    failed = ended(ingest, IngestJob(1, local("bad"), stamps["bad"], "name1"))
    assert isinstance(failed, IngestFailure)
    assert isinstance(failed.error, errors.AdapterError)
    assert "/etc" not in failed.error.message
    assert isinstance(ended(ingest, IngestJob(2, local("good"), stamps["good"], "name2")), Ingested)
    assert ingest.restarts == 0


@pytest.mark.parametrize("put", REPLACEMENTS)
def test_what_is_swapped_between_look_and_open_is_seen(
    root: Path, monkeypatch: pytest.MonkeyPatch, put: Callable[[Path], None]
) -> None:
    """The attacker wins both races: the file is another thing at the moment it is opened, and itself again after it."""
    source = LocalSource((root,))
    stamp = source.locate(local(save_adapter(root / "a").name)).stamp
    really_open = os.open

    def swap_and_open(path: Path, flags: int) -> int:
        if path.name != WEIGHTS:
            return really_open(path, flags)
        path.rename(root / "kept")
        path.write_bytes(b"")
        put(path)
        try:
            return really_open(path, flags)
        finally:
            path.rmdir() if path.is_dir() else path.unlink()
            (root / "kept").rename(path)

    monkeypatch.setattr(os, "open", swap_and_open)
    with pytest.raises((errors.AdapterCorrupt, errors.AdapterNotFound, errors.AdapterSourceUnavailable)):
        source.fetch(local("a"), stamp, MAX_BYTES)
    assert source.locate(local("a")).stamp != stamp  # though size, inode and modification time are as before


def test_a_folder_swapped_for_a_link_between_look_and_open_is_seen(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = save_adapter(tmp_path / "outside", seed=1)
    source = LocalSource((root,))
    stamp = source.locate(local(save_adapter(root / "a").name)).stamp
    really_open = os.open

    def swap_and_open(path: Path, flags: int) -> int:
        (root / "a").rename(root / "kept")
        (root / "a").symlink_to(outside)
        try:
            return really_open(path, flags)
        finally:
            (root / "a").unlink()
            (root / "kept").rename(root / "a")

    monkeypatch.setattr(os, "open", swap_and_open)
    with pytest.raises(errors.AdapterNotFound):
        source.fetch(local("a"), stamp, MAX_BYTES)


def test_a_file_that_grows_or_shrinks_while_it_is_read_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = LocalSource((root,))
    really_read = os.preadv

    for change in (lambda size: size - 100, lambda size: size + 100):
        stamp = source.locate(local(save_adapter(root / "a").name)).stamp
        path = root / "a" / WEIGHTS

        def change_and_read(
            file: int, buffers: list[memoryview], at: int, *, path: Path = path, change: Callable[[int], int] = change
        ) -> int:
            size = os.fstat(file).st_size
            if os.path.samestat(os.fstat(file), path.stat()):
                os.truncate(path, change(size))
            return really_read(file, buffers, at)

        monkeypatch.setattr(os, "preadv", change_and_read)
        with pytest.raises(errors.AdapterSourceUnavailable):
            source.fetch(local("a"), stamp, MAX_BYTES)
        monkeypatch.setattr(os, "preadv", really_read)


def test_an_archive_is_never_unpacked(root: Path, ingest: ProcessIngest, tmp_path: Path) -> None:
    """Not beside the files, not in their place, whatever it would unpack to."""
    made = save_adapter(tmp_path / "made")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../outside", b"x")
        archive.writestr("bomb", bytes(64 << 20))
        archive.write(made / WEIGHTS, WEIGHTS)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(made / WEIGHTS, WEIGHTS)
    for name in ("a.zip", "a.tar"):
        folder = root / name.replace(".", "-")
        folder.mkdir()
        shutil.copy(tmp_path / name, folder / name)
        with pytest.raises(errors.AdapterNotFound):
            LocalSource((root,)).locate(local(folder.name))
        shutil.copy(made / CONFIG, folder / CONFIG)
        shutil.copy(tmp_path / name, folder / WEIGHTS)
        stamp = LocalSource((root,)).locate(local(folder.name)).stamp
        failed = ended(ingest, IngestJob(name == "a.zip", local(folder.name), stamp, "name"))
        assert isinstance(failed, IngestFailure)
        assert isinstance(failed.error, errors.AdapterUnsafeFormat | errors.AdapterCorrupt)
    assert not (tmp_path / "outside").exists()
    assert not (root / "bomb").exists()
