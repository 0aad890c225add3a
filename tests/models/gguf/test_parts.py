"""A model in several GGUF files: the tensors of the `gguf` package, and parts that are missing or disagree."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from manylora.errors import ManyloraError, ModelNotFound, ModelUnsupported
from manylora.models.checkpoint_files import checked_entries, fingerprint
from manylora.models.checkpoints.stored import widened
from manylora.models.fetch.catalog import resolve, served_name
from manylora.models.fetch.pull import pull
from manylora.models.gguf.parts import read_model
from manylora.models.spec import read_spec
from tests.models.gguf.test_model import random_model, save
from tests.models.test_llama import TOKENS, load, run_in_chunks

NAMES = [f"big model-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model in one file, and one with the same model in three parts."""
    folder = tmp_path_factory.mktemp("written")
    for name, most in (("whole", 0), ("parts", 9)):
        (folder / name).mkdir()
        save(folder / name / "big model.gguf", random_model(), kind="Q8_0", part_tensors=most)
    assert sorted(file.name for file in (folder / "parts").iterdir()) == NAMES
    return folder


@pytest.fixture
def parts(written: Path, tmp_path: Path) -> Path:
    """A copy of the three parts."""
    return shutil.copytree(written / "parts", tmp_path / "parts")


@pytest.mark.parametrize("given", ["", *NAMES])
def test_parts_give_the_logits_of_the_whole(given: str, written: Path, tmp_path: Path) -> None:
    directory = pull(str(written / "parts" / given), tmp_path)
    whole = load(resolve(str(written / "whole"), tmp_path))
    expected = run_in_chunks(whole, TOKENS, [len(TOKENS)])
    assert torch.equal(run_in_chunks(load(directory), TOKENS, [len(TOKENS)]), expected)
    assert served_name(str(written / "parts" / given), directory) == ("big model" if given else "parts")


def test_the_tensors_are_those_of_the_gguf_package(written: Path) -> None:
    found = {tensor.name: tensor for tensor in read_model(written / "parts" / NAMES[1]).tensors}
    expected: dict[str, Any] = {}
    for name in NAMES:
        expected |= {tensor.name: tensor for tensor in gguf.GGUFReader(written / "parts" / name).tensors}
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        values = gguf.dequantize(expected[name].data, expected[name].tensor_type)
        assert np.array_equal(widened(tensor.rows(0, tensor.shape[0])), values)


def test_a_folder_of_links_into_a_hubs_cache_is_a_model(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    for name in NAMES:
        (tmp_path / "snapshot" / name).symlink_to((parts / name).rename(parts / str(NAMES.index(name))))
    directory = resolve(str(tmp_path / "snapshot"), tmp_path / "cache")
    assert len(checked_entries(directory, read_spec(directory))) == 21


@pytest.mark.parametrize("name", NAMES)
def test_the_fingerprint_depends_on_each_part(name: str, parts: Path, tmp_path: Path) -> None:
    before = resolve(str(parts), tmp_path / "cache")
    known = fingerprint(before, read_spec(before))
    data = (parts / name).read_bytes()
    (parts / name).write_bytes(data[:-100] + bytes(100))
    after = resolve(str(parts), tmp_path / "cache")
    assert after != before
    assert fingerprint(after, read_spec(after)) != known


# ── parts that are refused ───────────────────────────────────────────────────────────────────────────────────────────


def number_after(key: str, value: int, size: int) -> Callable[[bytes], bytes]:
    """A change of the metadata's number `key`, which follows its name and type."""

    def change(data: bytes) -> bytes:
        at = data.index(key.encode()) + len(key) + 4
        return data[:at] + value.to_bytes(size, "little") + data[at + size :]

    return change


def with_field(key: str, entry: bytes) -> Callable[[bytes], bytes]:
    """A change that adds an entry of the metadata, of a size that keeps the data's alignment."""
    added = len(key).to_bytes(8, "little") + key.encode() + entry
    assert len(added) % 32 == 0
    return lambda data: data[:16] + (data[16] + 1).to_bytes(8, "little") + added + data[24:]


UINT32, STRING = (4).to_bytes(4, "little"), (8).to_bytes(4, "little")
CHANGES: dict[str, tuple[int, Callable[[bytes], bytes], list[str]]] = {
    "another number": (1, number_after("split.no", 2, 2), [NAMES[1], "split.no = 2, but its name means 1"]),
    "another count in the first": (0, number_after("split.count", 4, 2), ["split.count = 4", "says 3 parts"]),
    "another count": (2, number_after("split.count", 4, 2), [NAMES[2], "split.count = 4", f"{NAMES[0]} has 3"]),
    "another number of tensors": (2, number_after("split.tensors.count", 20, 4), ["split.tensors.count = 20"]),
    "a negative number of tensors": (0, number_after("split.tensors.count", 2**32 - 1, 4), ["= -1 must be a number"]),
    "no number": (1, lambda data: data.replace(b"split.no", b"split.xx"), [NAMES[1], "split.no = None"]),
    "a field of another model": (1, with_field("llama.vocab_size", UINT32 + bytes(4)), ["llama.vocab_size differs"]),
    "another architecture": (
        1,
        with_field("general.architecture", STRING + (24).to_bytes(8, "little") + b"a" * 24),
        [NAMES[1], "general.architecture differs"],
    ),
    "a tensor of another part": (
        1,
        lambda data: data.replace(b"blk.1.attn_q.weight", b"blk.0.attn_q.weight"),
        ["blk.0.attn_q.weight is in", NAMES[0], NAMES[1]],
    ),
    "cut short": (2, lambda data: data[:-100], [NAMES[2], "ends at byte", "fetch it again"]),
    "no GGUF file": (1, lambda data: b"", [NAMES[1], "cannot be read as GGUF"]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_part_that_disagrees_is_refused_with_file_and_value(name: str, parts: Path, tmp_path: Path) -> None:
    part, change, said = CHANGES[name]
    (parts / NAMES[part]).write_bytes(change((parts / NAMES[part]).read_bytes()))
    with pytest.raises(ModelUnsupported) as caught:
        resolve(str(parts), tmp_path / "cache")
    assert [text for text in said if text not in caught.value.message] == [], caught.value.message


def test_a_number_of_tensors_that_the_parts_do_not_have_is_refused(parts: Path, tmp_path: Path) -> None:
    for name in NAMES:
        (parts / name).write_bytes(number_after("split.tensors.count", 22, 4)((parts / name).read_bytes()))
    with pytest.raises(ModelUnsupported, match=r"split\.tensors\.count = 22, but its 3 parts have 21 tensors"):
        resolve(str(parts), tmp_path / "cache")


@pytest.mark.parametrize("gone", [0, 1, 2])
@pytest.mark.parametrize("given", ["", *NAMES])
def test_a_missing_part_is_named(gone: int, given: str, parts: Path, tmp_path: Path) -> None:
    (parts / NAMES[gone]).unlink()
    said = "there is no file" if given == NAMES[gone] else "of 3 parts; fetch the model again"
    with pytest.raises(ModelNotFound, match=said) as caught:
        pull(str(parts / given), tmp_path / "cache")
    assert NAMES[gone] in caught.value.message


def test_a_part_that_goes_after_the_check_is_named_at_the_load(parts: Path, tmp_path: Path) -> None:
    directory = resolve(str(parts), tmp_path / "cache")
    spec = read_spec(directory)
    (parts / NAMES[2]).unlink()
    with pytest.raises(ModelNotFound, match=NAMES[2]):
        checked_entries(directory, spec)


def test_parts_of_two_models_in_a_folder_are_refused(parts: Path, tmp_path: Path) -> None:
    shutil.copy(parts / NAMES[0], parts / "other-00001-of-00003.gguf")
    with pytest.raises(ModelUnsupported, match=r"several GGUF files .*other-00001-of-00003\.gguf"):
        resolve(str(parts), tmp_path / "cache")


def test_a_part_of_another_name_is_refused_with_the_name_that_it_needs(parts: Path, tmp_path: Path) -> None:
    file = (parts / NAMES[0]).rename(tmp_path / "first.gguf")
    with pytest.raises(ModelUnsupported, match=r"first-00001-of-00003\.gguf"):
        resolve(str(file), tmp_path / "cache")


def test_changed_bytes_of_parts_are_read_or_refused(parts: Path) -> None:
    data = (parts / NAMES[1]).read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(100):
        mutant = bytearray(data)
        mutant[draw.randrange(len(data) // 4)] = draw.randrange(256)
        (parts / NAMES[1]).write_bytes(mutant)
        try:
            read_model(parts / NAMES[0], keeps_texts=False)
        except ManyloraError:
            refused += 1
    assert refused > 0
