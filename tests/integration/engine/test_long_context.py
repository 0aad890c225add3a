"""The forward pass at thousands of positions against transformers in float32 with its own cache, chunk by chunk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from tests.models.test_llama import TOLERANCE, load, run_in_chunks, save_random

CHUNK, LAST = 512, 64
SMALL: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 131_072,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 16.0, "original_max_position_embeddings": 8192}
ORACLES = {
    "yarn": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=YARN)),
    "yarn, one layer": lambda: LlamaForCausalLM(LlamaConfig(**{**SMALL, "num_hidden_layers": 1}, rope_parameters=YARN)),
    "sliding window": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=1000)),
}


def last_logits(oracle: Any, tokens: Tensor) -> Tensor:
    """Logits of the last rows from transformers, (LAST, vocab), a chunk at a time over its cache."""
    cache, logits = None, torch.empty(0)
    with torch.no_grad():
        for start in range(0, len(tokens), CHUNK):
            out = oracle(tokens[None, start : start + CHUNK], past_key_values=cache, use_cache=True)
            cache, logits = out.past_key_values, out.logits[0]
    return logits[-LAST:]


@pytest.mark.parametrize(
    ("name", "count"),
    [("yarn", 8192), ("sliding window", 8192), pytest.param("yarn, one layer", 32_768, marks=pytest.mark.long)],
)
def test_logits_behind_a_long_context_equal_those_of_transformers(name: str, count: int, tmp_path: Path) -> None:
    oracle = save_random(tmp_path, ORACLES[name]())
    tokens = torch.randint(0, 101, (count,), generator=torch.Generator().manual_seed(5))
    found = run_in_chunks(load(tmp_path), tokens, [CHUNK] * (count // CHUNK))[-LAST:]
    torch.testing.assert_close(found, last_logits(oracle, tokens), rtol=0, atol=TOLERANCE)
