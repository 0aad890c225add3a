"""Adapters as the kernels read them: the placed weights of each, and the segments of a step's rows that have them."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from manylora.ids import Digest
from manylora.kernels.adapter_layout import NO_EXTRAS, VECTORS_AT, VOCABULARY, Extras


class AdapterAddresses(NamedTuple):
    """Addresses of the parts of a placed adapter, in the order of the C++ `Segment`.

    image    the first element of the image
    table    the table
    vectors  the projections' vectors inside `extras`; 0 without extras
    extras   the vector of extras; 0 without extras
    """

    image: int
    table: int
    vectors: int
    extras: int


@dataclass(frozen=True, slots=True)
class PlacedAdapter:
    """An adapter's weights on the device, as the kernels read them. The engine knows it as an `AdapterHandle`.

    digest  content identity
    image   (elements,) in the back end's `lora_dtype`, contiguous; every A and B of every layer
    table   (layers, width, 3) int64, C order: (offset of A, offset of B, rank) in elements of `image`, for each
            projection of a block (`kernels/projections.py`); rank 0 means the adapter leaves that projection alone.
            A is (rank, in) row-major; B is stored transposed, (rank, out) row-major, with the scale folded in.
    extras  int64, the adapter's other changes (`kernels/adapter_layout.py`); empty if there are none
    addresses  of these parts, read once: the parts do not move while the adapter is placed
    width   number of projections of a block in the table
    """

    digest: Digest
    image: Tensor
    table: np.ndarray[Any, np.dtype[np.int64]]
    extras: Extras = field(default_factory=lambda: NO_EXTRAS)
    addresses: AdapterAddresses = field(init=False, repr=False, compare=False)
    width: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        extras = self.extras.ctypes.data if self.extras.size else 0
        vectors = extras + 8 * int(self.extras[VECTORS_AT]) if extras else 0
        addresses = AdapterAddresses(self.image.data_ptr(), self.table.ctypes.data, vectors, extras)
        object.__setattr__(self, "addresses", addresses)  # the class is frozen
        object.__setattr__(self, "width", self.table.shape[1])

    @property
    def vocabulary(self) -> int:
        """Bound of the token ids that the adapter knows; 0: those of the base."""
        return int(self.extras[VOCABULARY]) if self.extras.size else 0


class PlacedAdapters(Protocol):
    """The back end's side of the handles: the tensors of every version on the device."""

    def __getitem__(self, digest: Digest) -> PlacedAdapter:
        """Return the weights of a version. Raises `KeyError` if it is not on the device."""


@dataclass(frozen=True, slots=True)
class LoraSegment:
    """Rows `[start, stop)` of the step, at least one, belong to this adapter, whose delta counts `weight` times.

    Neighbouring segments of the same rows are the adapters of these rows, added in this order; none has extras.
    """

    start: int
    stop: int
    adapter: PlacedAdapter
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class LoraBatch:
    """The adapters of a step's rows; rows in no segment are the base model's.

    segments    in terms of the step's rows
    sampled     in terms of the rows of logits, for adapters with extras alone
    vocabulary  width of the step's logits: the base's, or that of the widest adapter in `sampled`; 0: the base's
    native      the back end's own form of the segments, made by `Kernels.prepare_lora`
    """

    segments: tuple[LoraSegment, ...]
    sampled: tuple[LoraSegment, ...] = ()
    vocabulary: int = 0
    native: object = None

    @property
    def has_extras(self) -> bool:
        return any(segment.adapter.extras.size for segment in self.segments)


def overwrite_copied(source: Tensor, placed: Tensor) -> None:
    """Overwrite with zeros a tensor that a device has copied to `placed`; nothing if both are the same memory."""
    if source.device != placed.device or source.data_ptr() != placed.data_ptr():
        source.zero_()
