"""A GGUF file of four bits in kernels of four bits: its integers are kept, in matrices of several types too."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manylora.kernels.cpu.int4 import Int4Linear
from manylora.kernels.weight_groups import grouped
from manylora.models.checkpoint_files import checked_entries
from manylora.models.checkpoints.stored import StoredTensor, widened
from manylora.models.fetch.catalog import resolve
from manylora.models.spec import read_spec
from manylora.models.weights import load_weights
from tests.kernels.cases import native
from tests.kernels.eager import eager
from tests.models.gguf.test_model import random_model, save

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
QKV = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"]


def loaded(tmp_path: Path, kind: str, others: Mapping[str, str]) -> tuple[Any, list[StoredTensor]]:
    """The fused q, k, v of the first layer as the kernels hold it, row by row, and the stored parts."""
    file = save(tmp_path / "tiny.gguf", random_model(**WIDE), config=WIDE, kind=kind, kinds=others)
    directory = resolve(str(file), tmp_path / "cache")
    kernels = eager(native(2), Int4Linear(native(2)))
    spec = read_spec(directory)
    qkv: Any = load_weights(directory, spec, kernels).layers[0].qkv  # `Packed` is opaque to everything else
    entries = checked_entries(directory, spec)
    return kernels.embed(torch.arange(sum(entries[name].shape[0] for name in QKV)), qkv), [
        entries[name] for name in QKV
    ]


def dense(parts: list[StoredTensor]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([widened(part.rows(0, part.shape[0])) for part in parts]))


def test_weights_of_one_scale_are_held_exactly(tmp_path: Path) -> None:
    held, parts = loaded(tmp_path, "Q4_0", {})
    assert torch.equal(held, dense(parts))


@pytest.mark.parametrize("kind", ["Q4_1", "Q4_K"])
def test_minima_and_scales_are_rounded_to_eleven_bits(kind: str, tmp_path: Path) -> None:
    held, parts = loaded(tmp_path, kind, {})
    exact = dense(parts)
    assert (held - exact).abs().max() <= 2**-10 * exact.abs().max()


@pytest.mark.parametrize("other", ["Q6_K", "F16"])
def test_a_part_of_another_type_leaves_the_integers_of_the_rest(other: str, tmp_path: Path) -> None:
    held, parts = loaded(tmp_path, "Q4_0", {"blk.0.attn_v.weight": other})
    rows = parts[0].shape[0] + parts[1].shape[0]
    exact = dense(parts)
    assert (held[:rows] - exact[:rows]).abs().max() <= 2**-10 * exact[:rows].abs().max()
    wanted = grouped(exact[rows:]).wide(exact.shape[1], 32)
    assert (held[rows:] - wanted).abs().max() <= 2**-10 * exact[rows:].abs().max()
