"""The safetensors files of a base: one file, or the shards of an index that agrees with them. Without torch."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from manylora.errors import ModelNotFound, ModelUnsupported
from manylora.models.checkpoints.safetensors_file import read_safetensors
from manylora.models.checkpoints.stored import DenseTensor
from manylora.models.spec import read_json

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_CONVERSION = (
    "import sys; from transformers import AutoModelForCausalLM as M; "
    "M.from_pretrained(sys.argv[1], dtype='auto').save_pretrained(sys.argv[1])"
)
_SHOWN = 5  # names listed in an error before "and N more"


def read_shards(directory: Path) -> dict[str, DenseTensor]:
    """Return every tensor of the safetensors files by name.

    Raises `ModelNotFound` for a missing file; `ModelUnsupported` for a damaged one, for a tensor in two files, and for
    an index that disagrees with the files.
    """
    found: dict[str, DenseTensor] = {}
    for file in weight_files(directory):
        for name, tensor in read_safetensors(file).items():
            if name in found:
                raise ModelUnsupported(f"{name} is in {found[name].file.name} and again in {file.name}")
            found[name] = tensor
    if (directory / _INDEX).exists():
        _compare(directory / _INDEX, _weight_map(directory / _INDEX), found)
    return found


def weight_files(directory: Path) -> tuple[Path, ...]:
    """Return the safetensors files of a base, sorted by name. Raises `ModelNotFound` with the name of a missing one."""
    index, single = directory / _INDEX, directory / _SINGLE
    if single.exists() and index.exists() and set(_weight_map(index).values()) != {_SINGLE}:
        raise ModelUnsupported(
            f"{directory} has {single.name}, and {index.name} that names others: delete the one that is not meant"
        )
    variants = sorted(file.name for file in directory.glob("model*.safetensors.index*.json") if file.name != _INDEX)
    if index.exists() and variants:
        raise ModelUnsupported(f"{directory} has {_INDEX} and {variants[0]}: delete the one that is not meant")
    if single.exists():
        return (single,)
    if not index.exists():
        raise ModelNotFound(f"{directory} has neither {single.name} nor {index.name}{_other_files(directory)}")
    names = sorted(set(_weight_map(index).values()))
    if not names:
        raise ModelUnsupported(f"{index} names no files")
    for name in names:
        if Path(name).name != name:
            raise ModelUnsupported(f"{index} names a file outside its directory: {name!r}")
        if not (directory / name).exists():
            raise ModelNotFound(f"{directory} lacks {name}, which {index.name} names; fetch the model again")
    return tuple(directory / name for name in names)


def listed(names: list[str]) -> str:
    """Return the first names in one text, with the number of the others."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _weight_map(index: Path) -> Mapping[str, str]:
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise ModelUnsupported(f"{index} has no weight_map from tensors to files; fetch the model again")
    return found


def _compare(index: Path, named: Mapping[str, str], found: Mapping[str, DenseTensor]) -> None:
    """Compare an index with the headers of its shards. Raises `ModelUnsupported` with the differences."""
    if lacking := sorted(named.keys() - found.keys()):
        raise ModelUnsupported(f"{index} names tensors that no shard has: {listed(lacking)}; fetch the model again")
    if unnamed := sorted(found.keys() - named.keys()):
        raise ModelUnsupported(f"{index} lacks {listed(unnamed)} of its shards; fetch the model again")
    for name, file in named.items():
        if found[name].file.name != file:
            raise ModelUnsupported(f"{index} has {name} in {file}, but it is in {found[name].file.name}")


def _other_files(directory: Path) -> str:
    """Return the hint for weights of another name, or for pickled ones: the command that converts them."""
    others = sorted(file.name for file in directory.glob("*.safetensors"))
    if len(others) == 1:
        return f"; if {others[0]} has the weights, rename it to {_SINGLE}"
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in directory.glob(pattern))
    if not pickled:
        return ""
    command = shlex.join([sys.executable, "-P", "-c", _CONVERSION, str(directory)])
    return (
        f"; {pickled[0]} is pickled and never opened: convert it to safetensors, with transformers installed "
        f"(`pip install 'manylora[train]'`), by: {command}"
    )
