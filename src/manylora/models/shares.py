"""The tensors of a checkpoint as one rank of a tensor-parallel model reads them: its rows and columns alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from manylora.errors import ModelUnsupported
from manylora.kernels.projections import EXPERT_NAMES, Projection
from manylora.models.checkpoint_files import EMBED, HEAD, block_tensor
from manylora.models.checkpoints.four_bits import BLOCK, FourBitMatrix, FourBitRows, in_four_bits
from manylora.models.checkpoints.stored import StoredTensor, StoredValues
from manylora.models.expert_tensors import expert_path
from manylora.models.tensor_parallel import Share


@dataclass(frozen=True, slots=True)
class SharedTensor:
    """A `StoredTensor` of some rows and columns of another.

    rows_from  the other's first row
    own        number of its rows that are read; zeros follow up to `shape[0]`
    columns    None: all of them
    """

    whole: StoredTensor
    rows_from: int
    own: int
    shape: tuple[int, ...]
    columns: range | None = None

    @property
    def file(self) -> Path:
        return self.whole.file

    @property
    def dtype(self) -> str:
        return self.whole.dtype

    @property
    def num_bytes(self) -> int:
        taken = self.own * (len(self.columns) if self.columns is not None else _width(self.whole))
        return self.whole.num_bytes * taken // max(1, self.whole.shape[0] * _width(self.whole))

    def rows(self, first: int, stop: int) -> StoredValues:
        found = self.whole.rows(*self._range(first, stop))
        if self.columns is not None:
            found = np.ascontiguousarray(found[:, self.columns.start : self.columns.stop])
        missing = stop - first - len(found)
        return np.pad(found, ((0, missing), *((0, 0),) * (found.ndim - 1))) if missing else found

    def _range(self, first: int, stop: int) -> tuple[int, int]:
        return self.rows_from + min(first, self.own), self.rows_from + min(stop, self.own)


@dataclass(frozen=True, slots=True)
class SharedFourBits(SharedTensor):
    """The same of a `FourBitMatrix`, whose columns begin and end with a group. It has no rows of zeros."""

    bits: FourBitMatrix | None = None

    @property
    def group_size(self) -> int:
        assert self.bits is not None
        return self.bits.group_size

    @property
    def has_minima(self) -> bool:
        assert self.bits is not None
        return self.bits.has_minima

    def four_bits(self, first: int, stop: int) -> FourBitRows:
        assert self.bits is not None
        found = self.bits.four_bits(*self._range(first, stop))
        if self.columns is None:
            return found
        blocks = slice(self.columns.start // BLOCK, -(-self.columns.stop // BLOCK))
        groups = slice(self.columns.start // self.group_size, -(-self.columns.stop // self.group_size))
        minima = None if found.minima is None else found.minima[:, groups]
        return FourBitRows(found.pairs[:, blocks], found.scales[:, groups], minima)


def share_entries(
    entries: Mapping[str, StoredTensor], share: Share, *, keeps_four_bits: bool
) -> dict[str, StoredTensor]:
    """Return the tensors of a base as the rank reads them. Nothing is read but facts of quantised matrices.

    Args:    keeps_four_bits  matrices of four bits are packed as they are; else they are widened
    Raises:  `ModelUnsupported` for a matrix of four bits whose groups of inputs lie on two ranks
    """
    found = dict(entries)
    for name in (EMBED, HEAD):
        if name in entries:
            own = share.vocabulary
            found[name] = SharedTensor(entries[name], own.start, len(own), (share.own.vocab, share.spec.hidden))
    for name, projection in _divided(share).items():
        if name in entries:
            found[name] = _shared(name, entries[name], projection, share, keeps_four_bits)
    return found


def _divided(share: Share) -> dict[str, Projection]:
    """Return the names of the weights and biases of projections in all blocks."""
    found: dict[str, Projection] = {}
    for layer in range(share.spec.num_layers):
        for projection in Projection:
            for kind in ("weight", "bias"):
                found[block_tensor(layer, f"{projection.path}.{kind}")] = projection
        for expert in range(share.spec.experts.count if share.spec.experts is not None else 0):
            for projection in EXPERT_NAMES:
                found[block_tensor(layer, expert_path(expert, projection))] = projection
    return found


def _shared(
    name: str, whole: StoredTensor, projection: Projection, share: Share, keeps_four_bits: bool
) -> SharedTensor:
    outputs, inputs = share.outputs(projection), share.inputs(projection)
    if len(whole.shape) == 1:
        return SharedTensor(whole, outputs.start, len(outputs), (len(outputs),))
    columns = inputs if share.is_summed(projection) else None
    shape = len(outputs), len(inputs)
    bits = in_four_bits(whole) if keeps_four_bits else None
    if bits is None:
        return SharedTensor(whole, outputs.start, len(outputs), shape, columns)
    if columns is not None and (columns.start % BLOCK or _is_cut(bits.group_size, columns, whole.shape[1])):
        raise ModelUnsupported(
            f"{name} has groups of {bits.group_size} inputs, and {len(inputs)} inputs a rank cut one of them: choose "
            f"another degree than {share.degree}, or model.quantize other than int4"
        )
    return SharedFourBits(whole, outputs.start, len(outputs), shape, columns, bits)


def _is_cut(group_size: int, columns: range, inputs: int) -> bool:
    """Return whether a group has inputs on two ranks. A group of all inputs has one scale, which each rank gets."""
    return group_size < inputs and bool(
        columns.start % group_size or (columns.stop % group_size and columns.stop < inputs)
    )


def _width(tensor: StoredTensor) -> int:
    return tensor.shape[1] if len(tensor.shape) > 1 else 1
