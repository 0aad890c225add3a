"""The packed image: one file that holds an adapter's weights as the device bank wants them.

header   96 bytes     magic, version, sizes, digest, checksum of everything (taken with itself as 0), width (0: 7)
table    int64        (layers, width, 3) in C order: (offset of A, offset of B, rank) in elements of the body
extras   int64        offsets of the adapter's other parts, in the layout of `adapter_layout.py`; usually empty
tokens   int64        the invocation tokens of an activated LoRA; usually empty
body     64-aligned   A (rank, in) and B transposed (rank, out), scale folded in, each on a 64-byte boundary
"""

import mmap
import os
import struct
import zlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from manylora.adapters.base_shape import BaseShape
from manylora.adapters.peft.config import MAX_INVOCATION_TOKENS
from manylora.ids import Digest
from manylora.kernels.adapter_layout import EMBED, HEAD, NO_EXTRAS, Extras, blank_extras
from manylora.kernels.projections import NUM_PROJECTIONS

IMAGE_SUFFIX = ".img"
NAME_SUFFIX = ".name"
REPORT_SUFFIX = ".report"
TEXT_SUFFIX = ".text"
TEMPORARY_SUFFIX = ".tmp"
CONDEMNED_SUFFIX = ".gone"
MAGIC = b"MLORAIMG"
VERSION = 2
ALIGNMENT_BYTES = 64
HEADER_BYTES = 96
ITEM_BYTES = {"bfloat16": 2, "float32": 4, "float16": 2}
_DTYPE_CODES = {"bfloat16": 1, "float32": 2, "float16": 3}
_HEADER = struct.Struct("<8sIIIIIQI32sI")
_CHUNK_BYTES = 1 << 20

Table = np.ndarray[Any, np.dtype[np.int64]]
Ranks = Mapping[tuple[int, int], int]
"""Rank by (layer, projection); a projection without a LoRA has no entry."""
Sources = Mapping[tuple[int, int], tuple[Hashable, Hashable]]
"""The origins of A and B of a projection: factors of equal origins are equal."""


class ImageDamaged(ValueError):
    """An error for a file that is no whole packed image; the text says why."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """The content of an image's header, read without the weights. `width` counts the projections of a block."""

    digest: Digest
    dtype: str
    num_layers: int
    body_bytes: int
    checksum: int
    num_extras: int = 0
    num_tokens: int = 0
    width: int = NUM_PROJECTIONS

    @property
    def table_bytes(self) -> int:
        return self.num_layers * self.width * 3 * 8

    @property
    def numbers_bytes(self) -> int:
        """Bytes of the table, the extras and the tokens together."""
        return self.table_bytes + 8 * (self.num_extras + self.num_tokens)

    @property
    def body_start(self) -> int:
        return _aligned(HEADER_BYTES + self.numbers_bytes)

    @property
    def file_bytes(self) -> int:
        return self.body_start + self.body_bytes


@dataclass(frozen=True, slots=True)
class HostImage:
    """An image in host memory. `body` is page-aligned anonymous memory of `facts.body_bytes` bytes or one page."""

    facts: ImageFacts
    table: Table
    body: mmap.mmap
    extras: Extras = field(default_factory=lambda: NO_EXTRAS)
    invocation_tokens: tuple[int, ...] = ()

    @property
    def digest(self) -> Digest:
        return self.facts.digest

    @property
    def num_bytes(self) -> int:
        return self.facts.body_bytes

    @property
    def num_rows(self) -> int:
        """Rank rows: the sum of all ranks."""
        return int(self.table[:, :, 2].sum())

    @property
    def rank(self) -> int:
        """The largest rank of the adapter's modules, embedding and output head included."""
        ends = [int(self.extras[end][2]) for end in (HEAD, EMBED)] if self.extras.size else []
        return max(int(self.table[:, :, 2].max(initial=0)), *ends, 0)


def image_name(digest: Digest, dtype: str) -> str:
    """Return the image's file name in the disk tier."""
    return f"{digest}.{dtype}{IMAGE_SUFFIX}"


def lay_out(shape: BaseShape, ranks: Ranks, dtype: str, sources: Sources | None = None) -> tuple[Table, int]:
    """Return the table for these ranks and the number of elements in the body. Equal sources share one place."""
    table = np.zeros((shape.num_layers, len(shape.projections), 3), dtype=np.int64)
    step = ALIGNMENT_BYTES // ITEM_BYTES[dtype]
    places: dict[Hashable, int] = {}
    end = 0

    def place(source: Hashable, elements: int) -> int:
        nonlocal end
        if source not in places:
            places[source], end = end, end + -(-elements // step) * step
        return places[source]

    for module, rank in sorted(ranks.items()):
        layer, projection = module
        sizes = shape.projections[projection]
        assert sizes is not None  # checked when the ranks were read
        source_a, source_b = (sources or {}).get(module, ((module, "A"), (module, "B")))
        offsets = place(source_a, rank * sizes[1]), place(source_b, rank * sizes[0])
        table[layer, projection] = (*offsets, rank)
    return table, end


def largest_file_bytes(weights_bytes: int, shape: BaseShape, dtype: str) -> int:
    """Return a bound on the image's size, in bytes, for a weights file of `weights_bytes`. No file is opened."""
    layers, width = shape.num_layers, len(shape.projections)
    # A, B, a bias and a gain for each projection, two norms a layer, the last norm, eleven parts at the two ends, and
    # two of a classification head.
    padding = (layers * (width * 4 + 2) + 14) * ALIGNMENT_BYTES
    ids = 4 * (
        weights_bytes // (2 * shape.hidden)
    )  # one for each row of a table, which takes two bytes a value or more
    numbers = 8 * (layers * width * 3 + len(blank_extras(layers, 0, width)) + MAX_INVOCATION_TOKENS)
    return _aligned(HEADER_BYTES + numbers) + weights_bytes * ITEM_BYTES[dtype] // 2 + ids + padding


def write_image(
    path: Path,
    *,
    digest: Digest,
    dtype: str,
    table: Table,
    body: memoryview,
    extras: Extras = NO_EXTRAS,
    invocation_tokens: tuple[int, ...] = (),
    may_create: bool = True,
) -> ImageFacts:
    """Write an image to `path` and fsync it. The caller renames it into place, so that no reader sees half of one.

    Without `may_create` the file must exist and be empty.
    """
    facts = ImageFacts(
        digest, dtype, len(table), body.nbytes, 0, len(extras), len(invocation_tokens), width=table.shape[1]
    )
    tokens = np.array(invocation_tokens, dtype="<i8")
    numbers = table.astype("<i8").tobytes() + extras.astype("<i8").tobytes() + tokens.tobytes()
    numbers = numbers.ljust(facts.body_start - HEADER_BYTES, b"\0")
    checksum = zlib.crc32(body, zlib.crc32(numbers, zlib.crc32(_header(facts))))
    facts = replace(facts, checksum=checksum)
    with path.open("wb" if may_create else "r+b", buffering=0) as file:
        _write_all(file.fileno(), _header(facts) + numbers)
        _write_all(file.fileno(), body)
        os.fsync(file.fileno())
    return facts


def read_facts(path: Path) -> ImageFacts:
    """Read an image's header. Raises `ImageDamaged`, or `OSError` when there is no such file."""
    with path.open("rb", buffering=0) as file:
        return _facts(file.read(HEADER_BYTES), os.fstat(file.fileno()).st_size)


def read_image(path: Path) -> HostImage:
    """Read a whole image into fresh memory and verify its checksum. Raises as `read_facts`."""
    with path.open("rb", buffering=0) as file:
        facts = _facts(file.read(HEADER_BYTES), os.fstat(file.fileno()).st_size)
        head = _read_exactly(file.fileno(), HEADER_BYTES, facts.body_start - HEADER_BYTES)
        checksum = zlib.crc32(head, zlib.crc32(_header(replace(facts, checksum=0))))
        body = mmap.mmap(-1, max(facts.body_bytes, mmap.PAGESIZE))
        with memoryview(body)[: facts.body_bytes] as view:
            for start in range(0, facts.body_bytes, _CHUNK_BYTES):
                chunk = view[start : start + _CHUNK_BYTES]
                if os.preadv(file.fileno(), [chunk], facts.body_start + start) != len(chunk):
                    raise ImageDamaged("the file ends early")
                checksum = zlib.crc32(chunk, checksum)
                chunk.release()
    if checksum != facts.checksum:
        raise ImageDamaged("the checksum does not match")
    numbers = np.frombuffer(head[: facts.numbers_bytes], dtype="<i8").astype(np.int64)
    table, extras, tokens = np.split(numbers, [facts.table_bytes // 8, facts.table_bytes // 8 + facts.num_extras])
    return HostImage(
        facts,
        table.reshape(facts.num_layers, facts.width, 3),
        body,
        extras.copy() if extras.size else NO_EXTRAS,
        tuple(tokens.tolist()),
    )


def _header(facts: ImageFacts) -> bytes:
    sizes = (facts.num_layers, facts.num_extras, facts.num_tokens, facts.body_bytes, facts.checksum)
    width = 0 if facts.width == NUM_PROJECTIONS else facts.width
    fields = (MAGIC, VERSION, _DTYPE_CODES[facts.dtype], *sizes, bytes.fromhex(facts.digest), width)
    return _HEADER.pack(*fields).ljust(HEADER_BYTES, b"\0")


def _facts(header: bytes, file_bytes: int) -> ImageFacts:
    if len(header) < HEADER_BYTES:
        raise ImageDamaged("shorter than its header")
    fields = _HEADER.unpack_from(header)
    magic, version, code, num_layers, num_extras, num_tokens, body_bytes, checksum, digest, width = fields
    dtype = {number: name for name, number in _DTYPE_CODES.items()}.get(code)
    if magic != MAGIC:
        raise ImageDamaged("not a packed image")
    if version != VERSION or dtype is None:
        raise ImageDamaged(f"a packed image of version {version}, type {code}; this program reads version {VERSION}")
    facts = ImageFacts(
        Digest(digest.hex()),
        dtype,
        num_layers,
        body_bytes,
        checksum,
        num_extras,
        num_tokens,
        width or NUM_PROJECTIONS,
    )
    if header != _header(facts):
        raise ImageDamaged("its reserved bytes are not zero")
    if facts.file_bytes != file_bytes:
        raise ImageDamaged(f"{file_bytes} bytes where the header says {facts.file_bytes}")
    return facts


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _read_exactly(descriptor: int, start: int, num_bytes: int) -> bytes:
    data = os.pread(descriptor, num_bytes, start)
    if len(data) != num_bytes:
        raise ImageDamaged("the file ends early")
    return data
