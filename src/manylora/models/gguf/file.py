"""The reader of GGUF files: metadata, and each tensor's name, shape, storage type and place. Imports without torch.

Layout (little-endian): magic, version, counts; the metadata as (key, type, value); the tensors' names, sizes, types
and offsets; padding; data. The `gguf` package reads the same and is the oracle in the tests; it takes ten seconds for
a vocabulary, since it keeps every string as an array.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3 (2 is laid out alike).
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from manylora.errors import ModelNotFound, ModelUnsupported
from manylora.models.checkpoints.four_bits import BLOCK, FourBitRows
from manylora.models.checkpoints.stored import StoredValues, read_into
from manylora.models.gguf.blocks import FORMS, FOUR_BITS, SYMMETRIC, TYPE_NAMES, Blocks, dequantize, four_bits

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor as the file has it, a `StoredTensor`. `shape` is (out, in), the reverse of the file's order."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int

    def rows(self, first: int, stop: int) -> StoredValues:
        if len(self.shape) == 1:
            return self._read(0, 1, self.num_bytes)[0, first:stop]
        return self._read(first, stop, self.num_bytes // self.shape[0]).reshape(stop - first, *self.shape[1:])

    def _read(self, first: int, stop: int, row_bytes: int) -> StoredValues:
        return dequantize(self._stored(first, stop, row_bytes), self.dtype)

    def _stored(self, first: int, stop: int, row_bytes: int) -> Blocks:
        stored = np.empty((stop - first, row_bytes), np.uint8)
        read_into(self.file, stored, self.start + first * row_bytes)
        return stored


class GgufFourBits(GgufTensor):
    """A matrix of a type in `FOUR_BITS`, a `FourBitMatrix`."""

    __slots__ = ()
    group_size = BLOCK

    @property
    def has_minima(self) -> bool:
        return self.dtype not in SYMMETRIC

    def four_bits(self, first: int, stop: int) -> FourBitRows:
        return four_bits(self._stored(first, stop, self.num_bytes // self.shape[0]), self.dtype)


class GgufFile:
    """A parsed file.

    file     its path
    fields   the metadata: numbers, texts, and lists of those, by key
    tensors  in the order of the file
    Raises `ModelNotFound` if it is not there; `ModelUnsupported` if it cannot be read or breaks a rule of the format,
    and for a tensor of an unknown storage type.
    """

    def __init__(self, file: Path, *, keeps_texts: bool = True) -> None:
        """Parse a file. `keeps_texts` False: lists of texts, such as a vocabulary, stay empty and take no memory."""
        self._at = 0
        self._keeps_texts = keeps_texts
        self.file = file
        try:
            with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self._data = data
                self._size = len(data)
                self.fields, self.tensors = self._parse()
                del self._data
        except FileNotFoundError as error:
            raise ModelNotFound(f"there is no {file}") from error
        except OSError as error:
            raise ModelUnsupported(f"{file} cannot be read: {error.strerror}") from error
        except (struct.error, ValueError, KeyError, OverflowError, MemoryError, RecursionError) as error:
            raise ModelUnsupported(f"{file} cannot be read as GGUF: {error!r}") from error

    def _parse(self) -> tuple[dict[str, Any], tuple[GgufTensor, ...]]:
        magic, version = self._data[:4], self._take_from(4, "I")
        if magic != b"GGUF" or version not in (2, 3):
            raise ModelUnsupported(f"{self.file} is not a GGUF file of version 2 or 3")
        num_tensors, num_fields = self._take("Q"), self._take("Q")
        fields: dict[str, Any] = {}
        for _ in range(num_fields):
            key = self._text()
            fields[key] = self._value(self._take("I"))
        heads = [self._tensor_head() for _ in range(num_tensors)]
        alignment = fields.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise ModelUnsupported(f"{self.file}: general.alignment = {alignment!r} must be a power of two")
        start = -(-self._at // alignment) * alignment
        tensors = tuple(self._tensor(start, alignment, *head) for head in heads)
        self._check_places(tensors)
        return fields, tensors

    def _tensor_head(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._text(), self._take("I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise ModelUnsupported(f"{self.file}: {name} has {dimensions} dimensions")
        sizes = tuple(self._take("Q") for _ in range(dimensions))
        return name, sizes[::-1], self._take("I"), self._take("Q")

    def _tensor(
        self, start: int, alignment: int, name: str, shape: tuple[int, ...], type_number: int, offset: int
    ) -> GgufTensor:
        kind = TYPE_NAMES.get(type_number, f"number {type_number}")
        if kind not in FORMS:
            raise ModelUnsupported(
                f"{self.file}: {name} has the storage type {kind}, which is not supported (known: {', '.join(FORMS)})"
            )
        form = FORMS[kind]
        if not all(shape) or shape[-1] % form.weights or offset % alignment:
            raise ModelUnsupported(
                f"{self.file}: {name} of type {kind} has shape {shape} and offset {offset}, which do not fit blocks of "
                f"{form.weights} and an alignment of {alignment}"
            )
        num_bytes = math.prod(shape) // form.weights * form.num_bytes
        if start + offset + num_bytes > self._size:
            raise ModelUnsupported(
                f"{self.file} has {self._size} bytes, {name} ends at byte {start + offset + num_bytes}; fetch it again"
            )
        tensor = GgufFourBits if kind in FOUR_BITS and len(shape) > 1 else GgufTensor
        return tensor(self.file, name, kind, shape, start + offset, num_bytes)

    def _check_places(self, tensors: tuple[GgufTensor, ...]) -> None:
        end, before = 0, ""
        for tensor in sorted(tensors, key=lambda tensor: tensor.start):
            if tensor.start < end:
                raise ModelUnsupported(f"{self.file}: {before} and {tensor.name} overlap at byte {tensor.start}")
            end, before = tensor.start + tensor.num_bytes, tensor.name
        names = [tensor.name for tensor in tensors]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ModelUnsupported(f"{self.file} has {twice} twice")

    def _value(self, type_number: int) -> Any:  # a number, a text, or a list of those
        if type_number == _STRING:
            return self._text()
        if type_number != _ARRAY:
            return self._take(_SCALARS[type_number])
        element, count = self._take("I"), self._take("Q")
        if element in _SCALARS:
            values = np.frombuffer(self._data, f"<{_SCALARS[element]}", count, self._at).tolist()
            self._at += count * struct.calcsize(f"<{_SCALARS[element]}")
            return values
        if element == _STRING and not self._keeps_texts:
            for _ in range(count):
                length = self._take("Q")
                self._at += length
            return []
        return [self._value(element) for _ in range(count)]

    def _text(self) -> str:
        length = self._take("Q")
        raw = self._data[self._at : self._at + length]
        if len(raw) != length:
            raise ModelUnsupported(f"{self.file} ends inside its metadata; fetch it again")
        self._at += length
        return raw.decode()

    def _take(self, code: str) -> int:
        return self._take_from(self._at, code)

    def _take_from(self, at: int, code: str) -> int:
        (value,) = struct.unpack_from(f"<{code}", self._data, at)
        self._at = at + struct.calcsize(f"<{code}")
        return value  # type: ignore[no-any-return]  # a float or a bool for those codes, which only `_value` asks for
