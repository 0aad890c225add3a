"""Shards of a base: the degrees that divide it, and shares that add up to the whole."""

import pytest

from manylora.errors import ConfigInvalid
from manylora.kernels.storage_form import BFLOAT16
from manylora.models.sizes import kv_block_bytes, weight_bytes
from manylora.models.spec import parse_spec
from manylora.models.tensor_parallel import degrees, shard
from tests.models.parity.published import PUBLISHED


@pytest.mark.parametrize(
    ("name", "possible"),
    [
        ("Llama-2-7b", [1, 2, 4, 8, 16, 32]),
        ("Llama-2-13b", [1, 2, 4, 8]),
        ("Llama-2-70b", [1, 2, 4, 8, 16, 32, 64]),
        ("Mixtral-8x7B-Instruct-v0.1", [1, 2, 4, 8, 16, 32]),
        ("SmolLM2-135M-Instruct", [1, 3]),
        ("Qwen/Qwen2.5-7B-Instruct", [1, 2, 4]),
    ],
)
def test_a_degree_divides_heads_and_width_or_replicates_key_value_heads(name: str, possible: list[int]) -> None:
    assert degrees(parse_spec(PUBLISHED[name], {})) == possible


@pytest.mark.parametrize("degree", [2, 8])
@pytest.mark.parametrize("name", ["Llama-2-70b", "Mixtral-8x7B-Instruct-v0.1"])
def test_shards_add_up_to_the_base_and_its_replicated_norms_and_routers(name: str, degree: int) -> None:
    spec = parse_spec(PUBLISHED[name], {})
    part = shard(spec, degree)
    routers = 0 if spec.experts is None else spec.experts.count * spec.hidden
    replicated = spec.num_layers * (2 * spec.hidden + routers) + spec.hidden
    assert degree * part.parameters == spec.parameters + (degree - 1) * replicated
    assert degree * weight_bytes(part, BFLOAT16) == 2 * degree * part.parameters
    assert degree * kv_block_bytes(part, BFLOAT16, 16) == kv_block_bytes(spec, BFLOAT16, 16)


def test_more_devices_than_key_value_heads_replicate_them() -> None:
    spec = parse_spec(PUBLISHED["Llama-2-70b"], {})
    assert shard(spec, 32).kv_heads == shard(spec, 8).kv_heads == 1
    assert shard(spec, 32).q_size == 2 * spec.head_dim


def test_a_vocabulary_that_does_not_divide_has_a_last_shard_with_empty_rows() -> None:
    spec = parse_spec({**PUBLISHED["Llama-2-7b"], "vocab_size": 32001}, {})
    assert shard(spec, 8).vocab == 4001


@pytest.mark.parametrize(
    ("name", "degree", "why"),
    [
        ("Llama-2-7b", 3, "3 does not divide the 32 attention heads; degrees of this base: 1, 2, 4, 8, 16, 32"),
        ("Llama-2-7b", 0, "0 is not 1 to 1,024"),
        ("Llama-2-7b", -2, "-2 is not 1 to 1,024"),
        ("Llama-2-7b", 10**9, "1000000000 is not 1 to 1,024"),
        ("Qwen/Qwen2.5-7B-Instruct", 7, "7 neither divides the 4 key-value heads nor is a multiple of them"),
        ("SmolLM2-135M-Instruct", 9, "9 does not divide the feed-forward width of 1536"),
    ],
)
def test_a_degree_that_does_not_divide_is_refused_with_those_that_do(name: str, degree: int, why: str) -> None:
    with pytest.raises(ConfigInvalid, match=why):
        shard(parse_spec(PUBLISHED[name], {}), degree)
