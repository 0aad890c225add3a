"""Local adapters: found by name below a root, never outside it, and nothing but their two files is opened."""

import os
from pathlib import Path

import pytest

from manylora import errors
from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapters.ingest.process import InlineIngest
from manylora.adapters.jobs import IngestFailure, IngestSettings, LocateJob
from manylora.adapters.sources.local import LocalSource
from tests.adapters.adapter_files import TINY, local, save_adapter

MAX_BYTES = 1 << 24


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def test_adapters_are_listed_by_their_path(root: Path) -> None:
    for name in ("b", "team/one", "team/deep/two"):
        save_adapter(root / name)
    (root / "empty").mkdir()
    (root / "bad name").mkdir()
    (root / "bad name" / "adapter_config.json").write_text("{}")
    assert LocalSource((root,)).list() == ["b", "team/deep/two", "team/one"]


def test_the_first_root_that_has_an_adapter_is_taken(root: Path, tmp_path: Path) -> None:
    save_adapter(root / "one", seed=1)
    save_adapter(tmp_path / "more" / "one", seed=2)
    save_adapter(tmp_path / "more" / "two")
    source = LocalSource((root, tmp_path / "more"))
    stamp = source.locate(local("one")).stamp
    files = source.fetch(local("one"), stamp, MAX_BYTES)
    assert bytes(files.weights) == (root / "one" / "adapter_model.safetensors").read_bytes()
    assert source.locate(local("two")).weights_bytes == files.weights.nbytes
    assert source.list() == ["one", "two"]


def test_new_content_has_a_new_stamp(root: Path) -> None:
    source = LocalSource((root,))
    save_adapter(root / "a", seed=1)
    first = source.locate(local("a"))
    assert source.locate(local("a")) == first
    save_adapter(root / "a", seed=2)
    assert source.locate(local("a")).stamp != first.stamp
    with pytest.raises(errors.AdapterSourceUnavailable, match="replaced"):
        source.fetch(local("a"), first.stamp, MAX_BYTES)


@pytest.mark.parametrize("name", ["missing", "..", "../root/a", "a/../a", "/etc", "", ".", "a\0b", "a/b/c"])
def test_what_is_not_below_the_root_is_not_found(name: str, root: Path) -> None:
    save_adapter(root / "a")
    with pytest.raises(errors.AdapterNotFound) as refusal:
        LocalSource((root,)).locate(local(name))
    assert refusal.value.message == f"Adapter '{name}' was not found in source 'local'"


def test_links_may_not_lead_out_of_the_root(root: Path, tmp_path: Path) -> None:
    outside = save_adapter(tmp_path / "outside")
    (root / "folder").symlink_to(outside)
    (root / "parent").symlink_to(tmp_path)
    (root / "file").mkdir()
    (root / "file" / "adapter_config.json").symlink_to(outside / "adapter_config.json")
    (root / "file" / "adapter_model.safetensors").symlink_to(outside / "adapter_model.safetensors")
    source = LocalSource((root,))
    for name in ("folder", "parent/outside", "file"):
        for _ in range(2):
            with pytest.raises(errors.AdapterNotFound):
                source.locate(local(name))


def test_a_link_that_begins_to_lead_out_is_seen(root: Path, tmp_path: Path) -> None:
    inside, outside = save_adapter(root / "inside"), save_adapter(tmp_path / "outside")
    (root / "link").symlink_to(inside)
    source = LocalSource((root,))
    stamp = source.locate(local("link")).stamp
    assert source.fetch(local("link"), stamp, MAX_BYTES).weights.nbytes > 0
    (root / "link").unlink()
    (root / "link").symlink_to(outside)
    with pytest.raises(errors.AdapterNotFound):
        source.locate(local("link"))


def test_the_ways_a_folder_can_be_incomplete(root: Path) -> None:
    source = LocalSource((root,))
    folder = save_adapter(root / "a")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(errors.AdapterUnsafeFormat, match=r"has no safetensors weights .*convert"):
        source.locate(local("a"))
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(errors.AdapterCorrupt, match=r"adapter_model\.safetensors is missing"):
        source.locate(local("a"))
    (folder / "adapter_config.json").unlink()
    with pytest.raises(errors.AdapterNotFound):
        source.locate(local("a"))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(errors.AdapterCorrupt, match=r"adapter_config\.json is missing"):
        source.locate(local("a"))


def test_pipes_and_folders_are_not_read(root: Path) -> None:
    folder = save_adapter(root / "pipe")
    (folder / "adapter_model.safetensors").unlink()
    os.mkfifo(folder / "adapter_model.safetensors")
    other = save_adapter(root / "folder")
    (other / "adapter_config.json").unlink()
    (other / "adapter_config.json").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(errors.AdapterCorrupt, match="is not a file"):
            LocalSource((root,)).locate(local(name))


def test_bytes_over_the_limit_are_not_read(root: Path) -> None:
    save_adapter(root / "a")
    source = LocalSource((root,))
    with pytest.raises(errors.AdapterTooLarge, match="the limit is 100"):
        source.fetch(local("a"), source.locate(local("a")).stamp, 100)


def test_a_source_that_is_switched_off_is_refused_by_name() -> None:
    settings = IngestSettings(shape=TINY, folder="", dtype="float32", max_rank=8, max_bytes=1, parallel_loads=1)
    ingest = InlineIngest(settings)
    ingest.submit(LocateJob(0, AdapterRef(SourceName.S3, "a")))
    [outcome] = ingest.poll()
    ingest.close()
    assert isinstance(outcome, IngestFailure)
    assert isinstance(outcome.error, errors.AdapterReferenceInvalid)
    assert "Given: s3" in outcome.error.message
