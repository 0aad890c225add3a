"""The reader of GGUF files: metadata, and each tensor's name, shape, storage type and bytes. Imports without torch.

Layout (little-endian): magic, version, counts; the metadata as (key, type, value); the tensors' names, sizes, types
and offsets; padding; data. The `gguf` package reads the same and is the oracle in the tests; it takes ten seconds for
a vocabulary, since it keeps every string as an array.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3 (2 is laid out alike).
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manylora.errors import ModelUnsupported

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Storage types by number: name, weights in a block, bytes of a block.
_STORAGE = {0: ("F32", 1, 4), 3: ("Q4_1", 32, 20), 8: ("Q8_0", 32, 34)}
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor. `shape` is (out, in), the reverse of the file's order; `stored` its bytes, a view of the file."""

    name: str
    shape: tuple[int, ...]
    kind: str
    stored: NDArray[np.uint8]


class GgufFile:
    """A parsed file. The tensors' bytes are mapped, not read, until they are used.

    fields   the metadata: numbers, texts, and lists of those, by key
    tensors  in the order of the file
    """

    def __init__(self, file: Path) -> None:
        self._at = 0
        self.name = file.name
        try:
            with file.open("rb") as stream:
                self._data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self.fields, self.tensors = self._parse()
        except (struct.error, ValueError, KeyError, MemoryError) as error:
            raise ModelUnsupported(f"{file.name} cannot be read as GGUF: {error!r}") from error

    def _parse(self) -> tuple[dict[str, Any], list[GgufTensor]]:
        magic, version = self._data[:4], self._take_from(4, "I")
        if magic != b"GGUF" or version not in (2, 3):
            raise ModelUnsupported(f"{self.name} is not a GGUF file of version 2 or 3")
        num_tensors, num_fields = self._take("Q"), self._take("Q")
        fields = {}
        for _ in range(num_fields):
            key = self._text()
            fields[key] = self._value(self._take("I"))
        heads = [self._tensor_head() for _ in range(num_tensors)]
        alignment = int(fields.get("general.alignment", _DEFAULT_ALIGNMENT))
        start = -(-self._at // alignment) * alignment
        return fields, [self._tensor(start, *head) for head in heads]

    def _tensor_head(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._text()
        sizes = tuple(self._take("Q") for _ in range(self._take("I")))
        return name, sizes[::-1], self._take("I"), self._take("Q")

    def _tensor(self, start: int, name: str, shape: tuple[int, ...], type_number: int, offset: int) -> GgufTensor:
        if type_number not in _STORAGE:
            known = ", ".join(kind for kind, _, _ in _STORAGE.values())
            raise ModelUnsupported(f"{self.name}: {name} has storage type {type_number}, not one of {known}")
        kind, block, block_bytes = _STORAGE[type_number]
        num_bytes = int(np.prod(shape)) // block * block_bytes
        stored = np.frombuffer(self._data, np.uint8, num_bytes, start + offset)
        return GgufTensor(name, shape, kind, stored)

    def _value(self, type_number: int) -> Any:  # a number, a text, or a list of those
        if type_number == _STRING:
            return self._text()
        if type_number != _ARRAY:
            return self._take(_SCALARS[type_number])
        element, count = self._take("I"), self._take("Q")
        if element in _SCALARS:
            values = np.frombuffer(self._data, f"<{_SCALARS[element]}", count, self._at)
            self._at += values.nbytes
            return values.tolist()
        return [self._value(element) for _ in range(count)]

    def _text(self) -> str:
        length = self._take("Q")
        raw = self._data[self._at : self._at + length]
        self._at += length
        return raw.decode()

    def _take(self, code: str) -> int:
        return self._take_from(self._at, code)

    def _take_from(self, at: int, code: str) -> int:
        (value,) = struct.unpack_from(f"<{code}", self._data, at)
        self._at = at + struct.calcsize(f"<{code}")
        return value  # type: ignore[no-any-return]  # a float or a bool for those codes, which only `_value` asks for
