"""One rule for local adapters: what is listed is what is served, whatever links lie in a root."""

import os
from pathlib import Path

import pytest

from manylora import errors
from manylora.adapter_ref import SourceName, parse_adapter_ref
from manylora.adapters.sources.local import LocalSource
from tests.adapters.adapter_files import local, save_adapter

MAX_BYTES = 1 << 24
PARTS = ("adapter_config.json", "adapter_model.safetensors")


def is_served(source: LocalSource, name: str) -> bool:
    try:
        ref = parse_adapter_ref(name, None, frozenset({SourceName.LOCAL}))
        source.fetch(ref, source.locate(ref).stamp, MAX_BYTES)
    except errors.ManyloraError:
        return False
    return True


def lay_out(root: Path, outside: Path) -> dict[str, bool]:
    """Folders and links of every kind; returns each name with whether it is to be listed and served."""
    save_adapter(root / "plain")
    save_adapter(root / "team" / "tone")
    save_adapter(outside / "elsewhere")
    (root / "link").symlink_to("plain")  # relative, inside
    (root / "to-team").symlink_to(root / "team")
    (root / "out").symlink_to(outside / "elsewhere")
    (root / "up").symlink_to("..")
    (root / "to-root").symlink_to(root)
    (root / "team" / "again").symlink_to(root / "team")
    (root / "broken").symlink_to("nowhere")
    (root / "files-in").mkdir()
    (root / "files-out").mkdir()
    (root / "half-out").mkdir()
    for part in PARTS:
        (root / "files-in" / part).symlink_to(f"../plain/{part}")
        (root / "files-out" / part).symlink_to(outside / "elsewhere" / part)
    (root / "half-out" / PARTS[0]).symlink_to(f"../plain/{PARTS[0]}")
    (root / "half-out" / PARTS[1]).symlink_to(outside / "elsewhere" / PARTS[1])
    snapshot = root / "models--org--x" / "snapshots" / "abc"  # as a hub's own cache lays it out
    (root / "models--org--x" / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, part in enumerate(PARTS):
        (root / "models--org--x" / "blobs" / f"b{number}").write_bytes((root / "plain" / part).read_bytes())
        (snapshot / part).symlink_to(f"../../blobs/b{number}")
    save_adapter(root / "pickled")
    (root / "pickled" / PARTS[1]).rename(root / "pickled" / "adapter_model.bin")
    save_adapter(root / "piped")
    (root / "piped" / PARTS[1]).unlink()
    os.mkfifo(root / "piped" / PARTS[1])
    save_adapter(root / ".hidden")
    save_adapter(root / "_odd" / "x")
    good = ("plain", "team/tone", "link", "to-team/tone", "files-in", "models--org--x/snapshots/abc")
    bad = ("out", "up/root/plain", "up/plain", "to-root/plain", "to-root/to-root/plain", "team/again/tone", "broken")
    worse = ("files-out", "half-out", "pickled", "piped", ".hidden", "_odd/x", "to-team/again/tone")
    return dict.fromkeys(good, True) | dict.fromkeys(bad + worse, False)


def test_what_is_listed_is_what_is_served(tmp_path: Path) -> None:
    root = tmp_path / "root"
    expected = lay_out(root, tmp_path / "outside")
    source = LocalSource((root,))
    assert {name: is_served(source, name) for name in expected} == expected
    assert source.list() == sorted(name for name, is_good in expected.items() if is_good)


def test_a_root_that_is_a_link_is_the_folder_it_points_at(tmp_path: Path) -> None:
    save_adapter(tmp_path / "real" / "a")
    (tmp_path / "root").symlink_to("real")
    source = LocalSource((tmp_path / "root",))
    assert (source.list(), is_served(source, "a")) == (["a"], True)


def test_what_one_root_cannot_serve_another_does(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for name in ("half", "out"):
        save_adapter(second / name)
    (first / "half").mkdir(parents=True)
    (first / "half" / PARTS[0]).write_text("{}")
    (first / "out").symlink_to(tmp_path)
    source = LocalSource((first, second))
    assert source.list() == ["half", "out"]
    assert all(is_served(source, name) for name in ("half", "out"))


def test_what_no_root_can_serve_keeps_the_first_ones_fault(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / PARTS[0]).write_text("{}")
    with pytest.raises(errors.AdapterCorrupt, match="missing"):
        LocalSource((tmp_path, tmp_path / "none")).locate(local("half"))


@pytest.mark.parametrize("name", ["loop", "loop/below", "plain/loop", "a" * 256])
def test_a_name_that_no_file_can_have_is_not_found(tmp_path: Path, name: str) -> None:
    save_adapter(tmp_path / "plain")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "plain" / "loop").symlink_to("loop")
    with pytest.raises(errors.AdapterNotFound):
        LocalSource((tmp_path,)).locate(parse_adapter_ref(name, None, frozenset({SourceName.LOCAL})))
