"""Bytes of bases: the figures that follow from their published shapes."""

import pytest

from manylora.kernels.storage_form import BFLOAT16, FLOAT32, INT4, INT8
from manylora.models.sizes import kv_block_bytes, weight_bytes
from manylora.models.spec import parse_spec
from tests.models.parity.published import PARAMETERS, PUBLISHED

KV_BYTES = {
    "Llama-2-7b": 524_288,
    "Llama-2-13b-chat": 819_200,
    "Llama-2-70b": 327_680,
    "Code-llama-34b-instruct": 196_608,
    "Code-llama-70b-instruct": 327_680,
    "Mistral-7b-instruct": 131_072,
    "Yarn-Mistral-7b-128k": 131_072,
    "Mixtral-8x7B-Instruct-v0.1": 131_072,
    "SmolLM2-135M-Instruct": 23_040,
}
"""Bytes of keys and values of one position in bfloat16: 2 * layers * key-value heads * head_dim * 2."""


@pytest.mark.parametrize("name", KV_BYTES)
def test_a_position_takes_keys_and_values_of_every_layer(name: str) -> None:
    spec = parse_spec(PUBLISHED[name], {})
    assert kv_block_bytes(spec, BFLOAT16, 16) == 16 * KV_BYTES[name]
    assert kv_block_bytes(spec, FLOAT32, 16) == 32 * KV_BYTES[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_quantised_weights_take_their_bits_and_scales(name: str) -> None:
    spec = parse_spec(PUBLISHED[name], {})
    weights, tables = PARAMETERS[name], (1 if spec.tie_embeddings else 2) * spec.vocab * spec.hidden
    assert weight_bytes(spec, BFLOAT16) == 2 * weights
    assert weight_bytes(spec, FLOAT32) == 4 * weights
    scales = 4 * spec.output_channels
    assert weight_bytes(spec, INT8) == weights + scales
    assert weight_bytes(spec, INT4) == -(-(5 * (weights - tables) + 8 * tables) // 8) + scales
