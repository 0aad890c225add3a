"""An adapter's digest tells its effect from every other: one bit of any part, or one number of its config."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from tests.adapters.adapter_files import HIDDEN, TINY, VOCAB, Tensors, as_f32, config_bytes, lora_tensors, packed
from tests.adapters.adapter_files import safetensors_bytes as written

EMBED, HEAD, MODEL = "base_model.model.model.embed_tokens", "base_model.model.lm_head", "base_model.model.model"
TOKENS = [5, 9]


def everything(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """These parts, a LoRA with biases on two projections, and norms: none needs the base's weights to be packed."""
    random = np.random.default_rng(7)
    norms = ("norm", "layers.1.input_layernorm", "layers.1.post_attention_layernorm")
    shapes = {**shapes, **{f"{MODEL}.{norm}.weight": (HIDDEN,) for norm in norms}}
    parts = {name: as_f32(random.standard_normal(shape)) for name, shape in shapes.items()}
    loras = lora_tensors(projections=(0, 6))
    biases = {
        name.replace("weight", "bias"): as_f32(random.standard_normal(shape[0]))
        for name, (_, shape, _) in loras.items()
        if "lora_B" in name
    }
    return {**loras, **biases, **parts}


WHOLE = everything(
    {
        f"{EMBED}.token_adapter.trainable_tokens_delta": (len(TOKENS), HIDDEN),
        f"{EMBED}.token_adapter.base_layer.weight": (VOCAB + 2, HIDDEN),
        f"{HEAD}.weight": (VOCAB + 2, HIDDEN),
    }
)
ADAPTED = everything(
    {
        f"{EMBED}.lora_embedding_A": (4, VOCAB + 2),
        f"{EMBED}.lora_embedding_B": (HIDDEN, 4),
        f"{EMBED}.base_layer.weight": (VOCAB + 2, HIDDEN),
        f"{HEAD}.base_layer.weight": (VOCAB + 2, HIDDEN),
        f"{HEAD}.lora_A.weight": (4, HIDDEN),
        f"{HEAD}.lora_B.weight": (VOCAB + 2, 4),
        f"{HEAD}.lora_B.bias": (VOCAB + 2,),
    }
)
CONFIG: dict[str, Any] = {"lora_bias": True, "trainable_token_indices": TOKENS}
ENDS = {"trainable_token_indices": None, "target_modules": ["q_proj", "down_proj", "embed_tokens", "lm_head"]}


def digest(tensors: Tensors, **changes: Any) -> str:  # any JSON
    return packed(config_bytes(**{**CONFIG, **changes}), written(tensors)).digest


def flipped(tensors: Tensors, name: str) -> Tensors:
    """With the last bit of a value's fraction changed, which bfloat16 would round away."""
    kind, shape, data = tensors[name]
    changed = bytearray(data)
    changed[len(data) // 8 * 4] ^= 1
    return {**tensors, name: (kind, shape, bytes(changed))}


@pytest.mark.parametrize("name", WHOLE)
def test_one_bit_of_any_part_changes_it(name: str) -> None:
    assert digest(flipped(WHOLE, name)) != digest(WHOLE)


@pytest.mark.parametrize("name", [name for name in ADAPTED if name not in WHOLE])
def test_one_bit_of_a_lora_on_an_end_changes_it(name: str) -> None:
    assert digest(flipped(ADAPTED, name), **ENDS) != digest(ADAPTED, **ENDS)


def test_one_bit_of_what_is_left_out_does_not_change_it() -> None:
    fields = {"target_modules": ["q_proj"], "lora_bias": False}
    for name in (name for name in WHOLE if "down_proj" in name or "bias" in name):
        assert digest(flipped(WHOLE, name), **fields) == digest(WHOLE, **fields)


def test_a_part_at_another_place_changes_it() -> None:
    norms = [f"{MODEL}.layers.{layer}.{norm}" for layer in (0, 1) for norm in ("input", "post_attention")]
    loras = lora_tensors()
    found = {
        digest(
            {**loras, f"{norm}_layernorm.weight": WHOLE[f"{MODEL}.norm.weight"]},
            lora_bias=False,
            trainable_token_indices=None,
        )
        for norm in norms
    }
    assert len(found) == len(norms)


def test_what_only_the_config_says_changes_it() -> None:
    tokens = {f"{EMBED}.token_adapter.trainable_tokens_delta": as_f32(np.ones((2, HIDDEN)))}
    plain, tied = lora_tensors(), dataclasses.replace(TINY, is_tied=True)

    def made(tensors: Tensors, shape: Any = TINY, **fields: Any) -> str:  # any JSON
        return packed(config_bytes(**fields), written({**plain, **tensors}), shape=shape).digest

    ids = [[5, 9], [5, 10], [0, 9]]
    found = [
        made({}),
        made({}, alora_invocation_tokens=[3]),
        made({}, alora_invocation_tokens=[4]),
        made({}, alora_invocation_tokens=[3, 4]),
        made({}, alora_invocation_tokens=[34]),
        *(made(tokens, trainable_token_indices=own) for own in ids),
        *(made(tokens, tied, trainable_token_indices=own) for own in ids),
    ]
    assert len(set(found)) == len(found)


def test_an_end_that_is_both_is_told_from_one_that_is_not() -> None:
    """The same rows at the embedding alone, at the head alone, and at both."""
    rows = as_f32(np.random.default_rng(1).standard_normal((VOCAB, HIDDEN)))
    ends = [{f"{EMBED}.weight": rows}, {f"{HEAD}.weight": rows}, {f"{EMBED}.weight": rows, f"{HEAD}.weight": rows}]
    plain = {"lora_bias": False, "trainable_token_indices": None}
    assert len({digest({**lora_tensors(), **end}, **plain) for end in ends}) == len(ends)
