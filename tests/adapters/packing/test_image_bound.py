"""The bound reserved for an image before its file is opened holds for what makes the largest images."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from manylora.adapters.base_shape import BaseShape
from manylora.adapters.packing.image import ITEM_BYTES, largest_file_bytes, write_image
from tests.adapters.adapter_files import TINY, Tensors, config_bytes, packed, safetensors_bytes

VOCAB, HIDDEN = 5_000, 32
"""Many tokens of few values: their ids weigh most then."""
TIED = dataclasses.replace(TINY, vocab=VOCAB, is_tied=True)
UNTIED = dataclasses.replace(TIED, is_tied=False)
EMBED, HEAD = "base_model.model.model.embed_tokens", "base_model.model.lm_head"


def halves(seed: int, *shape: int) -> tuple[str, tuple[int, ...], bytes]:
    """Random bfloat16, the smallest a file can hold them in."""
    values = np.random.default_rng(seed).standard_normal(shape).astype("<f4")
    return "BF16", shape, (values.view("<u4") >> 16).astype("<u2").tobytes()


def everything() -> Tensors:
    """All that an adapter can have: the most parts to be padded."""
    tensors: Tensors = {
        f"{EMBED}.base_layer.weight": halves(1, VOCAB + 1, HIDDEN),
        f"{HEAD}.base_layer.weight": halves(2, VOCAB + 1, HIDDEN),
        f"{EMBED}.lora_embedding_A": halves(3, 1, VOCAB + 1),
        f"{EMBED}.lora_embedding_B": halves(4, HIDDEN, 1),
        f"{HEAD}.lora_A.weight": halves(5, 1, HIDDEN),
        f"{HEAD}.lora_B.weight": halves(6, VOCAB + 1, 1),
        f"{HEAD}.lora_B.bias": halves(7, VOCAB + 1),
        "base_model.model.model.norm.weight": halves(8, HIDDEN),
    }
    for layer in range(TINY.num_layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"base_model.model.model.layers.{layer}.{norm}.weight"] = halves(layer, HIDDEN)
    return tensors


CASES: dict[str, tuple[BaseShape, bytes, Tensors]] = {
    "trained tokens of a tied base": (
        TIED,
        config_bytes(trainable_token_indices=list(range(VOCAB))),
        {f"{EMBED}.token_adapter.trainable_tokens_delta": halves(1, VOCAB, HIDDEN)},
    ),
    "both tables": (
        UNTIED,
        config_bytes(),
        {f"{EMBED}.weight": halves(1, VOCAB, HIDDEN), f"{HEAD}.weight": halves(2, VOCAB, HIDDEN)},
    ),
    "a resized table of a tied base": (
        TIED,
        config_bytes(r=1, target_modules=["lm_head"]),
        {
            f"{HEAD}.base_layer.weight": halves(1, VOCAB + 1_024, HIDDEN),
            f"{HEAD}.lora_A.weight": halves(5, 1, HIDDEN),
            f"{HEAD}.lora_B.weight": halves(6, VOCAB + 1_024, 1),
        },
    ),
    "everything": (UNTIED, config_bytes(r=1, lora_bias=True, target_modules=["embed_tokens", "lm_head"]), everything()),
}


@pytest.mark.parametrize("dtype", ITEM_BYTES)
@pytest.mark.parametrize("name", CASES)
def test_no_image_is_larger_than_its_bound(name: str, dtype: str, tmp_path: Path) -> None:
    shape, config, tensors = CASES[name]
    weights = safetensors_bytes(tensors)
    made = packed(config, weights, dtype=dtype, shape=shape)
    facts = write_image(
        tmp_path / "image",
        digest=made.digest,
        dtype=dtype,
        table=made.table,
        body=made.body,
        extras=made.extras,
        invocation_tokens=made.invocation_tokens,
    )
    assert facts.file_bytes <= largest_file_bytes(len(weights), shape, dtype)
