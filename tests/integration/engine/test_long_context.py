"""The forward pass at thousands of positions against transformers in float32 with its own cache, chunk by chunk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from tests.models.test_llama import TOLERANCE, load, run_in_chunks, save_random

TOKENS, CHUNK, LAST = 8192, 512, 64
SMALL: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 16_384,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 16.0, "original_max_position_embeddings": 1024}
ORACLES = {
    "yarn": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=YARN)),
    "sliding window": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=1000)),
}


def last_logits(oracle: Any, tokens: Tensor) -> Tensor:
    """Logits of the last rows from transformers, (LAST, vocab), a chunk at a time over its cache."""
    cache, logits = None, torch.empty(0)
    with torch.no_grad():
        for start in range(0, TOKENS, CHUNK):
            out = oracle(tokens[None, start : start + CHUNK], past_key_values=cache, use_cache=True)
            cache, logits = out.past_key_values, out.logits[0]
    return logits[-LAST:]


@pytest.mark.parametrize("name", ORACLES)
def test_logits_behind_a_long_context_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    oracle = save_random(tmp_path, ORACLES[name]())
    tokens = torch.randint(0, 101, (TOKENS,), generator=torch.Generator().manual_seed(5))
    found = run_in_chunks(load(tmp_path), tokens, [CHUNK] * (TOKENS // CHUNK))[-LAST:]
    torch.testing.assert_close(found, last_logits(oracle, tokens), rtol=0, atol=TOLERANCE)
