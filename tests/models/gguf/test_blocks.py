"""Storage types of GGUF: the bits of the `gguf` package, for random blocks and for every field at its ends."""

import gguf
import numpy as np
import pytest
import torch

from manylora.kernels.weight_groups import GroupedRows
from manylora.models.checkpoints.four_bits import BLOCK
from manylora.models.checkpoints.stored import widened
from manylora.models.gguf.blocks import FORMS, FOUR_BITS, SYMMETRIC, TYPE_NAMES, dequantize, four_bits
from tests.models.gguf.tiny_gguf import SCALES_AT, Kind, random_blocks

ROWS, WIDTH = 33, 512


@pytest.mark.parametrize("kind", SCALES_AT)
def test_dequantised_weights_have_the_bits_of_the_gguf_package(kind: str) -> None:
    stored = random_blocks(ROWS, WIDTH, kind, seed=7)
    for blocks in (stored, np.where(stored > 127, np.uint8(255), np.uint8(0))):
        blocks = blocks.copy()
        for at in SCALES_AT[kind]:  # scales stay finite
            size = FORMS[kind].num_bytes
            blocks.reshape(-1, size)[:, at : at + 2] = stored.reshape(-1, size)[:, at : at + 2]
        expected = gguf.dequantize(blocks, Kind[kind])
        found = dequantize(blocks, kind)
        assert found.dtype == np.float32
        assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("kind", FOUR_BITS)
def test_four_bits_stand_for_the_same_weights(kind: str) -> None:
    stored = random_blocks(ROWS, WIDTH, kind, seed=7)
    parts = four_bits(stored, kind)
    assert (parts.minima is None) == (kind in SYMMETRIC)
    minima = None if parts.minima is None else torch.from_numpy(parts.minima)
    rows = GroupedRows(torch.from_numpy(parts.pairs), torch.from_numpy(parts.scales), minima)
    assert np.array_equal(rows.wide(WIDTH, BLOCK).numpy(), dequantize(stored, kind))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_plain_values_keep_their_form(kind: str) -> None:
    values = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    stored = gguf.quantize(values, Kind[kind]).view(np.uint8).reshape(5, -1)
    expected = gguf.dequantize(gguf.quantize(values, Kind[kind]), Kind[kind])
    assert np.array_equal(widened(dequantize(stored, kind)), expected)


def test_the_types_have_the_numbers_and_sizes_of_the_format() -> None:
    for kind in Kind:
        assert TYPE_NAMES[kind.value] == kind.name
        if kind.name in FORMS:
            form = FORMS[kind.name]
            assert (form.weights, form.num_bytes) == gguf.GGML_QUANT_SIZES[kind]
