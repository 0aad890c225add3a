"""Packing holds the file, the image and little else, also where one tensor is nearly all of the file."""

import dataclasses
import tracemalloc

import numpy as np
import pytest

from manylora.adapters.packing.pack import pack_adapter
from manylora.adapters.peft.checkpoint import AdapterLimits, check_adapter
from tests.adapters.adapter_files import REFUSE, TINY, config_bytes, safetensors_bytes

VOCAB, HIDDEN = 60_000, 64
SHAPE = dataclasses.replace(TINY, vocab=VOCAB, hidden=HIDDEN, num_layers=1, projections=((HIDDEN, HIDDEN),) * 7)
EMBED, HEAD = "base_model.model.model.embed_tokens", "base_model.model.lm_head"
BESIDE_BYTES = 12 << 20
"""A few pieces in float32, and what a row has beside its values (7 MiB measured at most)."""

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "whole table": {f"{EMBED}.weight": (VOCAB, HIDDEN)},
    "trained tokens": {f"{EMBED}.token_adapter.trainable_tokens_delta": (VOCAB, HIDDEN)},
    "LoRA on the head": {f"{HEAD}.lora_A.weight": (64, HIDDEN), f"{HEAD}.lora_B.weight": (VOCAB, 64)},
    "LoRA on the embedding": {f"{EMBED}.lora_embedding_A": (64, VOCAB), f"{EMBED}.lora_embedding_B": (HIDDEN, 64)},
}


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("name", SHAPES)
def test_packing_needs_little_memory_beside_the_image(name: str, dtype: str) -> None:
    tensors = {part: (dtype, shape, _values(dtype, shape)) for part, shape in SHAPES[name].items()}
    tokens = list(range(VOCAB)) if name == "trained tokens" else None
    targets = ["embed_tokens", "lm_head"] if "LoRA" in name else ["q_proj"]
    config = config_bytes(r=64, trainable_token_indices=tokens, target_modules=targets)
    checked = check_adapter(config, memoryview(safetensors_bytes(tensors)), SHAPE, AdapterLimits(64, 1 << 26), REFUSE)
    tracemalloc.start()
    try:
        made = pack_adapter(checked, SHAPE, "bfloat16", REFUSE)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes <= made.body.nbytes + BESIDE_BYTES


def _values(dtype: str, shape: tuple[int, ...]) -> bytes:
    values = np.random.default_rng(0).standard_normal(shape).astype("<f4")
    if dtype == "F32":
        return values.tobytes()
    return values.astype("<f2").tobytes() if dtype == "F16" else (values.view("<u4") >> 16).astype("<u2").tobytes()
