"""A model in one GGUF file or in several parts, as `llama-gguf-split` writes them. Imports without torch.

The first part has the metadata; each part has some of the tensors, its number from zero (`split.no`), the number of
parts (`split.count`) and that of the tensors of all parts (`split.tensors.count`).
Source: llama.cpp's `tools/gguf-split`, and `gguf-py`'s writer.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manylora.errors import ModelNotFound, ModelUnsupported
from manylora.models.checkpoints.shards import listed
from manylora.models.gguf.file import GgufFile, GgufTensor

_NAME = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf", re.ASCII)
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"
_ARCHITECTURE = "general.architecture"
_OF_A_FILE = ("general.", "split.")
"""Prefixes of keys that may differ between parts, since they describe the file; the architecture may not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufModel:
    """A parsed model.

    file     its only file, or its first part
    fields   the metadata of that file: numbers, texts, and lists of those, by key
    tensors  of all parts, in the order of the parts
    """

    file: Path
    fields: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]


def model_name(file: Path) -> str:
    """Return the name of the model in a file: its stem, for parts without their numbers."""
    found = _NAME.fullmatch(file.name)
    return file.stem if found is None else found[1]


def part_files(file: Path) -> tuple[Path, ...]:
    """Return the files of all parts of a model by the name of one, there or not; of another name, `file` alone."""
    found = _NAME.fullmatch(file.name)
    if found is None:
        return (file,)
    count = int(found[3])
    return tuple(file.with_name(f"{found[1]}-{number:05d}-of-{found[3]}.gguf") for number in range(1, count + 1))


def are_parts_of_one(files: Sequence[Path]) -> bool:
    """Return whether files have names of parts of the same model."""
    return len({part_files(file) for file in files}) == 1


def named_as_part(file: Path) -> Path:
    """Return the absolute path of a file: links are followed, except for the last one of a name that is a part's.

    The other parts are found by that name. A hub's cache keeps files under their digests and links names to them.
    """
    return file.parent.resolve() / file.name if _NAME.fullmatch(file.name) else file.resolve()


def read_model(file: Path, *, keeps_texts: bool = True) -> GgufModel:
    """Read the headers of a model: of `file`, and of the other parts if it is one of several.

    Args: keeps_texts, as of `GgufFile`
    Raises as `GgufFile`; `ModelNotFound` with the names of missing parts; `ModelUnsupported` for parts that disagree.
    """
    given = GgufFile(file, keeps_texts=keeps_texts)
    count = _number(given, _COUNT) if _COUNT in given.fields else 1
    if count <= 1:
        return GgufModel(file=file, fields=given.fields, tensors=given.tensors)
    files = part_files(file)
    if _NAME.fullmatch(file.name) is None:
        raise ModelUnsupported(
            f"{file} is one of {count} parts of a model ({_COUNT}), and the others are found by its name alone: name "
            f"the parts {file.stem}-00001-of-{count:05d}.gguf and so on, in the order of {_NUMBER}"
        )
    if len(files) != count:
        raise ModelUnsupported(f"{file}: {_COUNT} = {count}, but its name says {len(files)} parts")
    if missing := [each.name for each in files if not each.exists()]:
        raise ModelNotFound(f"{file.parent} lacks {listed(missing)} of {count} parts; fetch the model again")
    parts = [given if each == file else GgufFile(each, keeps_texts=keeps_texts) for each in files]
    for place, part in enumerate(parts):
        _check_part(part, place, parts[0])
    return GgufModel(file=files[0], fields=parts[0].fields, tensors=_joined(parts))


def _number(part: GgufFile, key: str) -> int:
    value = part.fields.get(key)
    if type(value) is not int or value < 0:
        raise ModelUnsupported(f"{part.file}: {key} = {value!r} must be a number of at least 0")
    return value


def _check_part(part: GgufFile, place: int, first: GgufFile) -> None:
    """Compare the metadata of a part with its place and with the first part."""
    if (number := _number(part, _NUMBER)) != place:
        raise ModelUnsupported(f"{part.file}: {_NUMBER} = {number}, but its name means {place}")
    for key in (_COUNT, _TENSORS):
        if (own := _number(part, key)) != (expected := _number(first, key)):
            raise ModelUnsupported(f"{part.file}: {key} = {own}, but {first.file.name} has {expected}")
    for key, value in part.fields.items():
        if (key == _ARCHITECTURE or not key.startswith(_OF_A_FILE)) and first.fields.get(key) != value:
            raise ModelUnsupported(f"{part.file}: {key} differs from that of {first.file.name}")


def _joined(parts: Sequence[GgufFile]) -> tuple[GgufTensor, ...]:
    """Return the tensors of all parts. Raises `ModelUnsupported` for one in two parts, or another number."""
    found: dict[str, GgufTensor] = {}
    for part in parts:
        for tensor in part.tensors:
            if tensor.name in found:
                raise ModelUnsupported(f"{tensor.name} is in {found[tensor.name].file} and again in {part.file.name}")
            found[tensor.name] = tensor
    if len(found) != (expected := _number(parts[0], _TENSORS)):
        raise ModelUnsupported(
            f"{parts[0].file}: {_TENSORS} = {expected}, but its {len(parts)} parts have {len(found)} tensors"
        )
    return tuple(found.values())
