"""A strict check of a safetensors file's header, which runs before any byte of its tensors is used."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

MAX_HEADER_BYTES = 1 << 20
MAX_TENSORS = 6_144
"""Limit on the tensors of a file. Seven modules in each of 126 layers, with five parts each, stay below it."""
MAX_DIMENSIONS = 4
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_LENGTH_BYTES = 8
_ZIPS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_PICKLE_OPCODE = 0x80  # PROTO, followed by the protocol's number, opens every pickle since protocol 2
_NEWEST_PICKLE = 5
_MAX_DIGITS = 20


class HeaderInvalid(ValueError):
    """An error for a header that breaks a rule of the format or one of this module's bounds; the text says which."""


class PickledWeights(ValueError):
    """An error for a file whose content is a pickle or a zip archive, under any name."""


@dataclass(frozen=True, slots=True)
class HeaderEntry:
    """One tensor of the file: its bytes are `[start, stop)`, counted from the file's first byte."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(data: memoryview) -> dict[str, HeaderEntry]:
    """Return the tensors of the safetensors file `data`, by name, in the order they lie in the file.

    The tensors cover the file from the header's end to its last byte, without gap or overlap. Raises `PickledWeights`
    for a pickle or a zip archive, `HeaderInvalid` for every other fault.
    """
    _refuse_pickles(bytes(data[:_LENGTH_BYTES]))
    if len(data) < _LENGTH_BYTES:
        raise HeaderInvalid(f"the file has {len(data)} bytes")
    header_bytes = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise HeaderInvalid(f"the header claims {header_bytes} bytes, over {MAX_HEADER_BYTES}")
    body = _LENGTH_BYTES + header_bytes
    if body > len(data):
        raise HeaderInvalid(f"the file ends inside its header ({len(data)} of {body} bytes)")
    text = bytes(data[_LENGTH_BYTES:body])
    if (described := text.count(b'"dtype"')) > MAX_TENSORS:  # before they cost the time of parsing them
        raise HeaderInvalid(f"{described} tensors, over {MAX_TENSORS}")
    table = _parse(text)
    _check_metadata(table.pop("__metadata__", {}))
    if len(table) > MAX_TENSORS:
        raise HeaderInvalid(f"{len(table)} tensors, over {MAX_TENSORS}")
    entries = sorted((_entry(name, fields, body) for name, fields in table.items()), key=lambda entry: entry.start)
    _check_dense(entries, body, len(data))
    return {entry.name: entry for entry in entries}


def parse_json_object(
    text: bytes, parse_int: Callable[[str], int] | None = None
) -> dict[str, Any]:  # JSON values of several types
    """Parse a JSON object strictly: UTF-8, no duplicate key, no NaN or Infinity. Raises `HeaderInvalid`."""
    try:
        value = json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_int=parse_int
        )
    except HeaderInvalid:
        raise
    except (ValueError, RecursionError) as error:
        raise HeaderInvalid(f"not JSON ({type(error).__name__})") from error
    if not isinstance(value, dict):
        raise HeaderInvalid("not a JSON object")
    return value


def _refuse_pickles(head: bytes) -> None:
    is_pickle = len(head) >= 2 and head[0] == _PICKLE_OPCODE and 2 <= head[1] <= _NEWEST_PICKLE
    is_header = len(head) == _LENGTH_BYTES and int.from_bytes(head, "little") <= MAX_HEADER_BYTES
    if head.startswith(_ZIPS) or (is_pickle and not is_header):
        raise PickledWeights


def _parse(text: bytes) -> dict[str, Any]:  # JSON values of several types
    if not text.startswith(b"{"):
        raise HeaderInvalid("not a safetensors file")
    return parse_json_object(text, _count)


def _count(digits: str) -> int:
    """Parse a non-negative integer. Reject any sign, also `-0`, which `int` would read as 0."""
    if len(digits) > _MAX_DIGITS or digits.startswith("-"):
        raise HeaderInvalid("a number is negative or far too large")
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # JSON values of several types
    found = dict(pairs)
    if len(found) != len(pairs):
        raise HeaderInvalid("a key occurs twice")
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise HeaderInvalid(f"{text} is not a JSON number")


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderInvalid("__metadata__ is not a table of texts")
    try:
        "".join((*metadata, *metadata.values())).encode()
    except UnicodeEncodeError as error:
        raise HeaderInvalid("__metadata__ has half a character (a lone surrogate)") from error


def _entry(name: str, fields: object, body: int) -> HeaderEntry:
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise HeaderInvalid("a tensor does not have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise HeaderInvalid(f"a tensor's dtype is none of {', '.join(ITEM_BYTES)}")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise HeaderInvalid("a tensor's shape is malformed")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise HeaderInvalid("a tensor's data_offsets are malformed")
    needed = ITEM_BYTES[dtype]
    for size in shape:
        needed *= size  # exact: Python integers do not wrap
    start, stop = offsets
    if stop - start != needed:
        raise HeaderInvalid(f"a tensor of {needed} bytes has data_offsets [{start}, {stop}]")
    return HeaderEntry(name, dtype, tuple(shape), body + start, body + stop)


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 62 for item in value)


def _check_dense(entries: list[HeaderEntry], body: int, file_bytes: int) -> None:
    end = body
    for entry in entries:
        if entry.start != end:
            raise HeaderInvalid("the tensors overlap or leave gaps")
        end = entry.stop
    if end != file_bytes:
        raise HeaderInvalid(f"the file has {file_bytes} bytes where its header describes {end}")
