"""The header of a safetensors file, checked whole before a byte of its tensors is read. Without torch.

A file is 8 bytes of length (little-endian), that many bytes of JSON, and the tensors, without gap or overlap.
Source: https://huggingface.co/docs/safetensors, section "Format".
"""

import json
import math
import struct
from pathlib import Path
from typing import Any, NoReturn

from manylora.errors import ModelNotFound, ModelUnsupported
from manylora.models.checkpoints.stored import DenseTensor

_MAX_HEADER_BYTES = 100_000_000  # the format's own bound
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6} | {
    name: 8 * size
    for size, names in {
        1: ("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"),
        2: ("U16", "I16", "F16", "BF16"),
        4: ("U32", "I32", "F32"),
        8: ("U64", "I64", "F64", "C64"),
    }.items()
    for name in names
}


def read_safetensors(file: Path) -> dict[str, DenseTensor]:
    """Return the tensors of a file by name, in the order they lie in it.

    Raises `ModelNotFound` if the file is not there; `ModelUnsupported` if it cannot be read, was cut short, or breaks
    a rule of the format: the message has the file, the tensor and the value.
    """
    header, size = read_header_bytes(file)
    try:
        entries = json.loads(header, object_pairs_hook=lambda pairs: _unique(file, pairs))
    except (ValueError, RecursionError) as error:
        raise ModelUnsupported(f"{file} is not a safetensors file: {error}") from error
    if not isinstance(entries, dict):
        raise ModelUnsupported(f"{file} is not a safetensors file: its header is no JSON object")
    entries.pop("__metadata__", None)
    found = {name: _tensor(file, name, fields, 8 + len(header)) for name, fields in entries.items()}
    _check_places(file, found, 8 + len(header), size)
    return found


def read_header_bytes(file: Path) -> tuple[bytes, int]:
    """Return the JSON of a file's header and the size of the file. Raises as `read_safetensors`."""
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            length = _header_length(file, stream.read(8), size)
            return stream.read(length), size
    except FileNotFoundError as error:
        raise ModelNotFound(f"there is no {file}; fetch the model again") from error
    except OSError as error:
        raise ModelUnsupported(f"{file} cannot be read: {error.strerror}") from error


def _header_length(file: Path, first: bytes, size: int) -> int:
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
    if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
        raise ModelUnsupported(f"{file} is not a safetensors file, or was cut short; fetch the model again")
    return int(length)


def _unique(file: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # JSON values of several types
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ModelUnsupported(f"{file} has {twice} twice in its header")
    return found


def _tensor(file: Path, name: str, fields: Any, body: int) -> DenseTensor:  # JSON, not checked yet
    def refuse(why: str) -> NoReturn:
        raise ModelUnsupported(f"{file} is not a safetensors file: {name} {why}")

    if not isinstance(fields, dict) or not {"dtype", "shape", "data_offsets"} <= fields.keys():
        refuse("lacks dtype, shape or data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if dtype not in _BITS:
        refuse(f"has dtype = {dtype!r}, none of the format's")
    if not _are_counts(shape):
        refuse(f"has shape = {shape!r}")
    if not _are_counts(offsets) or len(offsets) != 2:
        refuse(f"has data_offsets = {offsets!r}")
    num_bytes = -(-math.prod(shape) * _BITS[dtype] // 8)
    if offsets[1] - offsets[0] != num_bytes:
        refuse(f"has data_offsets = {offsets}, but {dtype} of shape {shape} takes {num_bytes} bytes")
    return DenseTensor(file, dtype, tuple(shape), body + offsets[0], num_bytes)


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_places(file: Path, found: dict[str, DenseTensor], body: int, size: int) -> None:
    """Compare the tensors' places with each other and with the size of the file."""
    end, before = body, "the header"
    for name, tensor in sorted(found.items(), key=lambda item: (item[1].start, item[1].num_bytes)):
        if tensor.start != end:
            fault = "overlap" if tensor.start < end else "leave a gap"
            raise ModelUnsupported(f"{file} is damaged: {before} and {name} {fault} at byte {tensor.start}")
        end, before = tensor.start + tensor.num_bytes, name
    if size != end:
        raise ModelUnsupported(f"{file} has {size} bytes, its header says {end}; fetch the model again")
