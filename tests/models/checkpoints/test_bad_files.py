"""Files of a base that are damaged or contradict each other: one clear error with file and value, nothing loaded."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from manylora.errors import ManyloraError, ModelUnsupported
from manylora.models.checkpoint_files import checked_entries
from manylora.models.checkpoints.safetensors_file import read_safetensors
from manylora.models.spec import read_spec
from tests.models.test_llama import SMALL, save_random

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
NORM = "model.norm.weight"
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    save_random(directory, LlamaForCausalLM(LlamaConfig(**SMALL)), max_shard_size="150KB")
    assert sorted(file.name for file in directory.glob("*.safetensors")) == [FIRST, SECOND]
    return directory


@pytest.fixture
def base(whole: Path, tmp_path: Path) -> Path:
    for file in whole.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put_header(file: Path, header: object, body: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Change:
    """A change of a shard's header."""

    def apply(base: Path) -> None:
        header, body = header_of(base / name)
        change(header)
        put_header(base / name, header, body)

    return apply


def edit_index(change: Callable[[dict[str, str]], object]) -> Change:
    def apply(base: Path) -> None:
        content = json.loads((base / INDEX).read_text())
        change(content["weight_map"])
        (base / INDEX).write_text(json.dumps(content))

    return apply


def cut(name: str, kept: int) -> Change:
    return lambda base: (base / name).write_bytes((base / name).read_bytes()[:kept])


def folder_in_place_of(name: str) -> Change:
    def apply(base: Path) -> None:
        (base / name).unlink()
        (base / name).mkdir()

    return apply


def remove(*names: str) -> Change:
    def apply(base: Path) -> None:
        for name in names:
            (base / name).unlink()

    return apply


def link_to_nothing(base: Path) -> None:
    (base / SECOND).unlink()
    (base / SECOND).symlink_to(base / "gone")


def second_copy(base: Path) -> None:
    """The norm of the second shard stands in the first one too."""
    norm, body = header_of(base / SECOND)[0][NORM], header_of(base / FIRST)[1]
    size = norm["data_offsets"][1] - norm["data_offsets"][0]
    header = header_of(base / FIRST)[0]
    header[NORM] = {**norm, "data_offsets": [len(body), len(body) + size]}
    put_header(base / FIRST, header, body + bytes(size))


def set_field(tensor: str, field: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda header: header[tensor].update({field: value})


BAD: dict[str, tuple[Change, list[str]]] = {
    "a shard cut short": (cut(SECOND, -100), [SECOND, "its header says", "fetch the model again"]),
    "a shard of a few bytes": (cut(SECOND, 5), [SECOND, "cut short"]),
    "an empty shard": (cut(SECOND, 0), [SECOND, "cut short"]),
    "a shard that goes on": (
        lambda base: (base / SECOND).write_bytes((base / SECOND).read_bytes() + b"more"),
        [SECOND, "its header says"],
    ),
    "a shard that is missing": (lambda base: (base / SECOND).unlink(), [SECOND, INDEX]),
    "a shard that is a directory": (folder_in_place_of(SECOND), [SECOND, "Is a directory"]),
    "an index that is a directory": (folder_in_place_of(INDEX), [INDEX, "Is a directory"]),
    "a link to nothing": (link_to_nothing, [SECOND, INDEX]),
    "a header of several gigabytes": (
        lambda base: (base / SECOND).write_bytes(struct.pack("<Q", 1 << 40) + bytes(64)),
        [SECOND, "not a safetensors file"],
    ),
    "a header that is a list": (lambda base: put_header(base / SECOND, [], b""), [SECOND, "no JSON object"]),
    "a header of deep lists": (lambda base: put_header(base / SECOND, b"[" * 100_000, b""), [SECOND, "recursion"]),
    "a tensor twice in a header": (
        lambda base: put_header(base / SECOND, b'{"a": {}, "a": {}}', b""),
        [SECOND, "a twice"],
    ),
    "a wrong shape": (edit(SECOND, set_field(NORM, "shape", [24, 2])), [NORM, SECOND, "(24, 2)", "(48,)"]),
    "a shape that does not fill its bytes": (edit(SECOND, set_field(NORM, "shape", [47])), [NORM, SECOND, "188"]),
    "a negative shape": (edit(SECOND, set_field(NORM, "shape", [-48])), [NORM, SECOND, "[-48]"]),
    "a wrong dtype": (edit(SECOND, set_field(NORM, "dtype", "I32")), [NORM, SECOND, "I32", "BF16, F16, F32"]),
    "a dtype of no format": (edit(SECOND, set_field(NORM, "dtype", "F33")), [NORM, SECOND, "'F33'"]),
    "offsets backwards": (edit(SECOND, set_field(NORM, "data_offsets", [192, 0])), [NORM, SECOND, "[192, 0]"]),
    "offsets beyond the file": (
        edit(SECOND, set_field(NORM, "data_offsets", [1 << 40, (1 << 40) + 192])),
        [NORM, SECOND, "leave a gap"],
    ),
    "offsets that overlap": (edit(SECOND, set_field(NORM, "data_offsets", [0, 192])), [NORM, SECOND, "overlap"]),
    "fields that are missing": (edit(SECOND, lambda header: header[NORM].pop("shape")), [NORM, SECOND, "lacks"]),
    "a tensor in two shards": (second_copy, [NORM, FIRST, SECOND]),
    "a tensor in the wrong shard": (edit_index(lambda named: named.update({NORM: FIRST})), [NORM, FIRST, SECOND]),
    "an index that lacks a tensor": (edit_index(lambda named: named.pop(NORM)), [NORM, INDEX]),
    "an index with a tensor of no shard": (edit_index(lambda named: named.update(more=FIRST)), ["more", INDEX]),
    "an index that names no file": (edit_index(lambda named: named.clear()), [INDEX, "names no files"]),
    "an index of another form": (lambda base: (base / INDEX).write_text('{"weight_map": [1]}'), [INDEX, "weight_map"]),
    "a file of another name": (
        remove(INDEX, SECOND),
        [FIRST, "rename it to model.safetensors"],
    ),
    "two indexes": (
        lambda base: (base / "model.safetensors.index.fp16.json").write_bytes((base / INDEX).read_bytes()),
        [INDEX, "model.safetensors.index.fp16.json", "not meant"],
    ),
    "an index of another file": (
        lambda base: (base / "model.fp16.safetensors.index.json").write_bytes((base / INDEX).read_bytes()),
        [INDEX, "model.fp16.safetensors.index.json"],
    ),
    "an index and a single file": (
        lambda base: (base / "model.safetensors").write_bytes((base / FIRST).read_bytes()),
        ["model.safetensors", INDEX],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_with_file_and_value(name: str, base: Path) -> None:
    change, said = BAD[name]
    change(base)
    with pytest.raises(ManyloraError) as caught:
        checked_entries(base, read_spec(base))
    assert [part for part in said if part not in caught.value.message] == [], caught.value.message


def test_a_file_that_may_not_be_read_is_named(base: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    (base / SECOND).chmod(0)
    with pytest.raises(ModelUnsupported, match=f"{SECOND} cannot be read: Permission denied"):
        checked_entries(base, read_spec(base))


def test_a_file_that_shrinks_while_it_is_read_is_named(base: Path) -> None:
    stored = checked_entries(base, read_spec(base))[NORM]
    cut(SECOND, -150)(base)
    with pytest.raises(ModelUnsupported, match=f"{SECOND} ends at byte"):
        stored.rows(0, 48)


def test_an_index_may_name_the_single_file(base: Path) -> None:
    header, body = header_of(base / FIRST)
    file = base / "model.safetensors"
    put_header(file, header, body)
    (base / INDEX).write_text(
        json.dumps({"weight_map": {name: file.name for name in header if name != "__metadata__"}})
    )
    from manylora.models.checkpoint_files import read_entries

    assert read_entries(base).keys() == read_safetensors(file).keys()
