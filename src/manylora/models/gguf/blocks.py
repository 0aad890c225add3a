"""The storage types of GGUF tensors: blocks of weights with their scales, and the weights they stand for.

`d` and `m` are float16 scales and minima, `q` the integers of a block. A K block has 256 weights in sub-blocks, whose
scales are integers of six or eight bits. All results are float32 and have the bits of the `gguf` package's.
Source: https://github.com/ggml-org/ggml, `src/ggml-common.h` (layouts).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manylora.models.checkpoints.four_bits import FourBitRows
from manylora.models.checkpoints.stored import FLOATS, StoredValues

Blocks = NDArray[np.uint8]
Floats = NDArray[np.float32]
_SMALL, _LARGE = 32, 256
_BATCH_BYTES = 1 << 16  # of blocks that are decoded at once, so that all temporaries stay in the processor's cache
_SUB_BLOCKS = 8  # of a Q4_K or Q5_K block

_TYPES = "F32 F16 Q4_0 Q4_1 Q4_2 Q4_3 Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S"
_TYPES += " IQ4_NL IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M BF16"
TYPE_NAMES = dict(enumerate(_TYPES.split())) | {34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0"}
"""Names of the storage types by their numbers in the file."""


@dataclass(frozen=True, slots=True)
class BlockForm:
    """A storage type: weights and bytes of a block, and the function from (blocks, bytes) to (blocks, weights)."""

    weights: int
    num_bytes: int
    decode: Callable[[Blocks], StoredValues]


def dequantize(stored: Blocks, kind: str) -> StoredValues:
    """Return the weights of stored rows, (rows, bytes of a row) → (rows, in), of a type in `FORMS`.

    F16 and BF16 keep their form (`StoredValues`); all others become float32.
    """
    form = FORMS[kind]
    blocks = stored.reshape(-1, form.num_bytes)
    if kind in FLOATS:
        return form.decode(blocks).reshape(len(stored), -1)
    weights = np.empty((len(blocks), form.weights), dtype=np.float32)
    count = max(1, _BATCH_BYTES // form.num_bytes)
    for first in range(0, len(blocks), count):
        weights[first : first + count] = form.decode(blocks[first : first + count])
    return weights.reshape(len(stored), -1)


def four_bits(stored: Blocks, kind: str) -> FourBitRows:
    """Return stored rows, (rows, bytes of a row), of a type in `FOUR_BITS` without a change of their integers.

    Each group is 32 inputs. The scales and minima of Q4_K are products, rounded to float32; they are exact.
    """
    rows, blocks = len(stored), stored.reshape(-1, FORMS[kind].num_bytes)
    pairs, scales, minima = FOUR_BITS[kind](blocks)
    return FourBitRows(
        pairs.reshape(rows, -1, _SMALL // 2),
        scales.reshape(rows, -1),
        None if minima is None else minima.reshape(rows, -1),
    )


def _q4_0_parts(blocks: Blocks) -> tuple[Blocks, Floats, None]:
    return blocks[:, 2:], _floats(blocks, 0), None


def _q4_1_parts(blocks: Blocks) -> tuple[Blocks, Floats, Floats]:
    return blocks[:, 4:], _floats(blocks, 0), _floats(blocks, 2)


def _q4_k_parts(blocks: Blocks) -> tuple[Blocks, Floats, Floats]:
    scales, minima = _scales_and_minima(blocks)
    runs = blocks[:, 16:].reshape(
        -1, _SUB_BLOCKS // 2, 2, 16
    )  # the low halves are one sub-block, the high ones the next
    first, second = runs[:, :, 0], runs[:, :, 1]
    return np.stack([first & 15 | second << 4, first >> 4 | second & 240], axis=2), scales, -minima


def _plain(kind: str) -> Callable[[Blocks], StoredValues]:
    return lambda blocks: blocks.view(FLOATS[kind])


def _q4_0(blocks: Blocks) -> Floats:
    """d, 16 bytes: w = d·(q - 8)."""
    return _floats(blocks, 0) * (_halves(blocks[:, 2:], 16).astype(np.float32) - 8)


def _q4_1(blocks: Blocks) -> Floats:
    """d, m, 16 bytes, whose low halves are weights 0 to 15 and high halves 16 to 31: w = d·q + m."""
    return _floats(blocks, 0) * _halves(blocks[:, 4:], 16).astype(np.float32) + _floats(blocks, 2)


def _q5_0(blocks: Blocks) -> Floats:
    """d, the fifth bits in 4 bytes, 16 bytes: w = d·(q - 16)."""
    return _floats(blocks, 0) * (_fives(blocks[:, 2:6], blocks[:, 6:]) - 16)


def _q5_1(blocks: Blocks) -> Floats:
    """d, m, the fifth bits in 4 bytes, 16 bytes: w = d·q + m."""
    return _floats(blocks, 0) * _fives(blocks[:, 4:8], blocks[:, 8:]) + _floats(blocks, 2)


def _q8_0(blocks: Blocks) -> Floats:
    """d, 32 int8: w = d·q."""
    return _floats(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _q4_k(blocks: Blocks) -> Floats:
    """d, dmin, 12 bytes of scales, 128 bytes: w = (d·scale)·q - dmin·minimum in each sub-block of 32."""
    scales, minima = _scales_and_minima(blocks)
    levels = _halves(blocks[:, 16:], 32).reshape(-1, _SUB_BLOCKS, 32).astype(np.float32)
    return (scales * levels - minima).reshape(len(blocks), _LARGE)


def _q5_k(blocks: Blocks) -> Floats:
    """As Q4_K, with 32 bytes of fifth bits before the halves: bit s of byte i is that of weight i of sub-block s."""
    scales, minima = _scales_and_minima(blocks)
    levels = _halves(blocks[:, 48:], 32).reshape(-1, _SUB_BLOCKS, 32)
    fifths = np.unpackbits(blocks[:, 16:48, None], axis=2, bitorder="little").swapaxes(1, 2)
    return (scales * (levels | fifths << 4).astype(np.float32) - minima).reshape(len(blocks), _LARGE)


def _q6_k(blocks: Blocks) -> Floats:
    """128 bytes of low halves, 64 of upper pairs of bits, 16 int8 scales, d: w = (d·scale)·(q - 32), 16 to a scale."""
    low = _halves(blocks[:, :128], 64).reshape(-1, 2, 4, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    levels = (low | high << 4).reshape(-1, 16, 16).astype(np.float32) - 32
    scales = _floats(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return (scales[:, :, None] * levels).reshape(len(blocks), _LARGE)


def _scales_and_minima(blocks: Blocks) -> tuple[Floats, Floats]:
    """Return d·scale and dmin·minimum of the sub-blocks of Q4_K and Q5_K, each (blocks, 8, 1).

    Bytes 4 to 7 have six bits of the first four scales, 8 to 11 those of their minima; their upper two bits are those
    of the last four, whose low halves are in bytes 12 to 15, the scales' below.
    """
    first, second, third = (blocks[:, at : at + 4] for at in (4, 8, 12))
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return (
        (_floats(blocks, 0) * scales.astype(np.float32))[:, :, None],
        (_floats(blocks, 2) * minima.astype(np.float32))[:, :, None],
    )


def _floats(blocks: Blocks, offset: int) -> Floats:
    """Return the float16 at `offset` of each block as float32: (blocks, 1)."""
    return np.ascontiguousarray(blocks[:, offset : offset + 2]).view(np.float16).astype(np.float32)


def _halves(packed: Blocks, run: int) -> Blocks:
    """Return the halves of (blocks, n) bytes, (blocks, 2 n): of each run of bytes the low ones, then the high ones."""
    runs = packed.reshape(len(packed), -1, 1, run)
    return np.concatenate([runs & 15, runs >> 4], axis=2).reshape(len(packed), -1)


def _fives(fifths: Blocks, packed: Blocks) -> Floats:
    bits = np.unpackbits(fifths, axis=1, bitorder="little")
    return (_halves(packed, 16) | bits << 4).astype(np.float32)


FORMS: dict[str, BlockForm] = {
    "F32": BlockForm(1, 4, _plain("F32")),
    "F16": BlockForm(1, 2, _plain("F16")),
    "BF16": BlockForm(1, 2, _plain("BF16")),
    "Q4_0": BlockForm(_SMALL, 18, _q4_0),
    "Q4_1": BlockForm(_SMALL, 20, _q4_1),
    "Q5_0": BlockForm(_SMALL, 22, _q5_0),
    "Q5_1": BlockForm(_SMALL, 24, _q5_1),
    "Q8_0": BlockForm(_SMALL, 34, _q8_0),
    "Q4_K": BlockForm(_LARGE, 144, _q4_k),
    "Q5_K": BlockForm(_LARGE, 176, _q5_k),
    "Q6_K": BlockForm(_LARGE, 210, _q6_k),
}
"""The supported storage types by name."""
FOUR_BITS: dict[str, Callable[[Blocks], tuple[Blocks, Floats, Floats | None]]] = {
    "Q4_0": _q4_0_parts,
    "Q4_1": _q4_1_parts,
    "Q4_K": _q4_k_parts,
}
"""The types of four bits with scales for 32 weights: from blocks to pairs of levels, scales and minima."""
SYMMETRIC = {"Q4_0"}
"""Those of them without minima."""
