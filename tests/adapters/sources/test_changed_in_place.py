"""New content under an old name is seen, whatever of the old file's marks it keeps; equal content keeps its image."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from manylora.adapters.ingest.process import InlineIngest
from manylora.adapters.jobs import Ingested, IngestJob, IngestSettings
from manylora.adapters.sources.change_times import ChangeTimes
from manylora.adapters.sources.local import LocalSource
from manylora.adapters.sources.upload_folders import RegistrySource
from tests.adapters.adapter_files import TINY, local, save_adapter
from tests.adapters.store_folder import House

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_BYTES = 1 << 24
FUSE = "21 1 0:50 / / rw - ext4 /dev/vda rw\n22 21 0:51 / {} rw - fuse.bucket bucket rw\n"


def copy_over(source: Path, target: Path) -> None:
    """`cp -p` over a file: the inode stays, and the old times are set again."""
    before = target.stat()
    assert before.st_size == source.stat().st_size
    with target.open("r+b") as file:
        file.write(source.read_bytes())
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by(source: Path, target: Path) -> None:
    """`rsync --times`: another file takes the place, with the old times."""
    before = target.stat()
    fresh = target.with_name(".fresh")
    fresh.write_bytes(source.read_bytes())
    os.utime(fresh, ns=(before.st_atime_ns, before.st_mtime_ns))
    fresh.replace(target)


@pytest.mark.parametrize("change", [copy_over, replace_by])
@pytest.mark.parametrize("file", [WEIGHTS, CONFIG])
def test_content_changed_in_place_is_served_after_a_restart(
    tmp_path: Path, change: Callable[[Path, Path], None], file: str
) -> None:
    house = House(tmp_path)
    folder, other = save_adapter(house.root / "a", seed=1), save_adapter(tmp_path / "other", seed=2)
    if file == CONFIG:
        text = (folder / CONFIG).read_text()
        changed = text.replace('"lora_alpha": 8', '"lora_alpha": 4').replace('"lora_alpha":8', '"lora_alpha":4')
        (other / CONFIG).write_text(changed)
        assert changed != text
    first = house.placed("a")
    assert first is not None
    house.store.close()
    change(other / file, folder / file)
    again = House(tmp_path)
    second = again.placed("a")
    assert second is not None
    assert second.digest != first.digest
    again.store.close()


def test_equal_content_keeps_the_packed_image_though_its_stamp_is_new_or_of_an_older_form(tmp_path: Path) -> None:
    house = House(tmp_path)
    folder = save_adapter(house.root / "a", seed=1)
    first = house.placed("a")
    assert first is not None
    image = house.disk.path(first.digest)
    inode = image.stat().st_ino
    house.store.close()
    facts = [(folder / name).stat() for name in (CONFIG, WEIGHTS)]
    old_form = " ".join(f"{fact.st_mtime_ns}.{fact.st_size}.{fact.st_dev}.{fact.st_ino}" for fact in facts)
    [name_file] = image.parent.glob("*.name")
    name_file.rename(image.parent / f"{house.disk.name_key(local('a'), old_form)}.name")
    again = House(tmp_path)
    second = again.placed("a")
    assert second is not None
    assert (second.digest, again.disk.path(second.digest).stat().st_ino) == (first.digest, inode)
    again.store.close()


def test_two_changes_within_one_tick_of_the_clock_are_two_versions(tmp_path: Path) -> None:
    other = save_adapter(tmp_path / "other", seed=2)
    source = LocalSource((tmp_path / "root",))
    for number in range(20):
        folder = save_adapter(tmp_path / "root" / f"a{number}", seed=1)
        stamp = source.locate(local(folder.name)).stamp
        read = source.fetch(local(folder.name), stamp, MAX_BYTES)
        copy_over(other / WEIGHTS, folder / WEIGHTS)
        assert source.locate(local(folder.name)).stamp != stamp
        assert bytes(read.weights) != (folder / WEIGHTS).read_bytes()


def test_where_change_times_tell_nothing_a_restart_reads_the_content_again(tmp_path: Path) -> None:
    """On such a file system the marks of both versions may be one; the stamp then has the process's session."""
    mounts = tmp_path / "mountinfo"
    root = tmp_path / "with blank"
    mounts.write_text(FUSE.format(str(root).replace(" ", "\\040")))
    folder = save_adapter(root / "a", seed=1)
    sources = [LocalSource((root,), change_times=ChangeTimes(mounts)) for _ in range(2)]
    stamps = [source.locate(local("a")).stamp for source in sources]
    assert stamps[0] != stamps[1]
    assert [source.locate(local("a")).stamp for source in sources] == stamps
    settings = IngestSettings(
        shape=TINY,
        roots=(str(root),),
        folder=str(tmp_path),
        dtype="bfloat16",
        max_rank=8,
        max_bytes=MAX_BYTES,
        parallel_loads=1,
    )
    ingest = InlineIngest(settings)
    (tmp_path / "0.tmp").touch()
    ingest.submit(IngestJob(0, local("a"), stamps[0], "name"))  # its process has a session of its own
    assert isinstance(ingest.poll()[0], Ingested)
    ingest.close()
    assert (folder / WEIGHTS).is_file()


def test_change_times_are_relied_on_by_the_deepest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(FUSE.format(tmp_path / "bucket"))
    times = ChangeTimes(mounts)
    assert times.is_reliable(1, 5, str(tmp_path / "root" / "a"))
    assert not times.is_reliable(2, 5, str(tmp_path / "bucket" / "a"))
    assert not ChangeTimes(tmp_path / "none").is_reliable(1, 5, str(tmp_path))


def test_fixed_times_of_an_images_files_are_not_relied_on(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text("21 1 0:50 / / rw - overlay overlay rw,lowerdir=/l,upperdir=/u\n")
    times = ChangeTimes(mounts)
    assert times.is_reliable(1, 1_700_000_000_123_456_789, str(tmp_path))
    assert not times.is_reliable(1, 1_700_000_000_000_000_000, str(tmp_path))


def test_a_version_of_the_registry_whose_files_change_is_another_version(tmp_path: Path) -> None:
    from tests.adapters.sources.test_upload_folders import ref

    folder = save_adapter(tmp_path / "acme" / "triage" / "1", seed=1)
    other = save_adapter(tmp_path / "other", seed=2)
    source = RegistrySource(tmp_path)
    first = source.locate(ref("triage"))
    source.fetch(ref("triage"), first.stamp, MAX_BYTES)
    copy_over(other / WEIGHTS, folder / WEIGHTS)
    assert source.locate(ref("triage")).stamp != first.stamp
