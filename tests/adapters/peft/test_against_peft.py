"""What real PEFT saves, packed by us, equals what PEFT computes; what we do not compute is refused by name."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

from manylora import errors
from manylora.adapters.base_shape import PROJECTION_PATHS
from manylora.adapters.peft.patterns import Patterns
from manylora.kernels.projections import Projection
from tests.adapters.adapter_files import HIDDEN, INTERMEDIATE, LAYERS, VOCAB, packed, unpacked
from tests.conftest import thinned

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tiny_llama() -> Any:  # transformers is not checked
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return transformers.LlamaForCausalLM(config).eval()


def tuned(seed: int = 1, **fields: Any) -> Any:  # any field of LoraConfig
    """A PEFT model whose adapter is not zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of uncommon combinations, which are the ones tested here
        model = peft.get_peft_model(tiny_llama(), peft.LoraConfig(**{"target_modules": ALL, **fields}))
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def saved(model: Any, folder: Path) -> tuple[bytes, bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        model.save_pretrained(folder)
    return (folder / "adapter_config.json").read_bytes(), (folder / "adapter_model.safetensors").read_bytes()


def peft_deltas(model: Any) -> dict[tuple[int, int], np.ndarray[Any, Any]]:
    """What PEFT adds to each linear layer's weight, by (layer, projection)."""
    deltas = {}
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "get_delta_weight"):
            match = re.fullmatch(r"model\.layers\.(\d+)\.(\w+\.\w+)", name)
            assert match is not None
            delta = module.get_delta_weight("default").detach().float().numpy()
            deltas[int(match[1]), PROJECTION_PATHS.index(match[2])] = delta
    return deltas


GRID: dict[str, dict[str, Any]] = {
    **{f"rank {rank}": {"r": rank, "lora_alpha": 16} for rank in (1, 2, 4, 6, 8, 12, 24, 64)},
    "rank-stabilised": {"r": 8, "lora_alpha": 3, "use_rslora": True},
    "attention only": {"r": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "only v": {"r": 4, "target_modules": ["v_proj"]},
    "q and up": {"r": 2, "target_modules": ["q_proj", "up_proj"]},
    "target_modules as a pattern": {"r": 4, "target_modules": r".*\.(0|2)\.self_attn\.(q|k)_proj"},
    "all-linear": {"r": 4, "target_modules": "all-linear"},
    "excluded": {"r": 4, "target_modules": "all-linear", "exclude_modules": ["down_proj"]},
    "some layers": {"r": 4, "layers_to_transform": [0, 2]},
    "one layer": {"r": 4, "layers_to_transform": 1},
    "rank_pattern": {"r": 4, "rank_pattern": {"q_proj": 12, r"layers\.1\.mlp\.(up|gate)_proj": 2, "down_proj": 6}},
    "alpha_pattern": {"r": 4, "lora_alpha": 5, "alpha_pattern": {"layers.0.self_attn.q_proj": 1, "q_proj": 40}},
    "alpha_pattern that PEFT reorders on saving": {"alpha_pattern": {"q_proj": 40, "layers.0.self_attn.q_proj": 1}},
    "both patterns": {
        "r": 8,
        "rank_pattern": {"^model.layers.0.self_attn.k_proj": 24, "self_attn.k_proj": 1},
        "alpha_pattern": {"k_proj": 32, "self_attn.k_proj": 64},
    },
    "patterns, rank-stabilised": {
        "r": 8,
        "use_rslora": True,
        "rank_pattern": {"v_proj": 6},
        "alpha_pattern": {"o_proj": 2},
    },
    "dropout, bias all, fan_in_fan_out": {"r": 4, "lora_dropout": 0.3, "bias": "all", "fan_in_fan_out": True},
    "bias lora_only": {"r": 4, "bias": "lora_only"},
    "gaussian start": {"r": 4, "init_lora_weights": "gaussian"},
    "orthogonal start": {"r": 4, "init_lora_weights": "orthogonal"},
    "any start": {"r": 4, "init_lora_weights": False},
}


@pytest.mark.parametrize("name", thinned(GRID, 3))
def test_a_packed_adapter_adds_what_peft_adds(name: str, tmp_path: Path) -> None:
    adapter = packed(*saved(tuned(**GRID[name]), tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT repeats its warnings on loading
        expected = peft_deltas(peft.PeftModel.from_pretrained(tiny_llama(), tmp_path))
    assert expected
    for layer in range(LAYERS):
        for projection in Projection:
            if (layer, projection) in expected:
                a, b = unpacked(adapter, layer, projection)
                np.testing.assert_allclose(b.T @ a, expected[layer, projection], atol=1e-6, rtol=1e-6)
            else:
                assert adapter.table[layer, projection].tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_read_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tuned(r=8, lora_alpha=16)
    config, _ = saved(model, tmp_path)
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    adapter = packed(config, (tmp_path / "adapter_model.safetensors").read_bytes())
    a, b = unpacked(adapter, 1, Projection.K)
    stem = "base_model.model.model.layers.1.self_attn.k_proj.lora"
    assert a.tolist() == tensors[f"{stem}_A.weight"].float().tolist()
    assert b.T.tolist() == (tensors[f"{stem}_B.weight"].float() * 2).tolist()


def test_every_float16_is_read_exactly(tmp_path: Path) -> None:
    model = tuned(r=64, lora_alpha=64, target_modules=["q_proj"], layers_to_transform=[0])
    config, _ = saved(model, tmp_path)
    finite = [bits for bits in range(1 << 16) if bits & 0x7C00 != 0x7C00]
    stem = "base_model.model.model.layers.0.self_attn.q_proj.lora"
    for start in range(0, len(finite), 64 * HIDDEN):
        bits = np.resize(np.array(finite[start : start + 64 * HIDDEN], dtype=np.uint16), (64, HIDDEN))
        a = torch.from_numpy(bits.view(np.float16))
        save_file({f"{stem}_A.weight": a, f"{stem}_B.weight": torch.ones(HIDDEN, 64).half()}, tmp_path / "w")
        read = unpacked(packed(config, (tmp_path / "w").read_bytes()), 0, 0)[0]
        assert read.tobytes() == a.float().numpy().tobytes()


def test_bfloat16_images_are_rounded_as_torch_rounds(tmp_path: Path) -> None:
    model = tuned(r=8, lora_alpha=3)
    files = saved(model, tmp_path)
    wide, narrow = packed(*files), packed(*files, dtype="bfloat16")
    assert narrow.digest == wide.digest
    bits = torch.frombuffer(bytearray(narrow.body), dtype=torch.bfloat16)
    for layer in range(LAYERS):
        for projection in Projection:
            a, b = unpacked(wide, layer, projection)
            offset_a, offset_b, _ = narrow.table[layer, projection]
            for offset, values in ((offset_a, a), (offset_b, b)):
                expected = torch.tensor(values).bfloat16().flatten()
                assert torch.equal(bits[offset : offset + expected.numel()], expected)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a whole projection": ({"target_modules": ["q_proj"], "modules_to_save": ["o_proj"]}, "modules_to_save"),
    "activated LoRA with trained norms": (
        {"alora_invocation_tokens": [1, 2], "task_type": "CAUSAL_LM", "modules_to_save": ["norm"]},
        "alora_invocation_tokens",
    ),
    "PiSSA": ({"init_lora_weights": "pissa"}, "`init_lora_weights` = pissa"),
    "OLoRA": ({"init_lora_weights": "olora"}, "`init_lora_weights` = olora"),
    "replicated layers": ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
}


@pytest.mark.parametrize(("fields", "name"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_applied_is_refused_by_name(fields: dict[str, Any], name: str, tmp_path: Path) -> None:
    files = saved(tuned(r=4, **fields), tmp_path)
    with pytest.raises(errors.AdapterUnsupported) as refusal:
        packed(*files)
    assert refusal.value.message.startswith("Adapter 'some/adapter' uses ")
    assert name in refusal.value.message
    # The tensors alone give most of them away, whatever the config says.
    config = {**json.loads(files[0]), **dict.fromkeys(fields)}
    quiet = json.dumps({**config, "init_lora_weights": True, "use_dora": False, "lora_bias": False}).encode()
    if name not in ("alora_invocation_tokens", "`init_lora_weights` = pissa", "`init_lora_weights` = olora"):
        with pytest.raises((errors.AdapterUnsupported, errors.AdapterIncompatible)):
            packed(quiet, files[1])


def test_other_methods_of_peft_are_refused_by_name(tmp_path: Path) -> None:
    model = peft.get_peft_model(tiny_llama(), peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    with pytest.raises(errors.AdapterUnsupported, match="`peft_type` = IA3"):
        packed(*saved(model, tmp_path))


def test_patterns_choose_as_peft_chooses() -> None:
    keys = [
        "q_proj",
        "self_attn.k_proj",
        r"layers\.1\..*_proj",
        "^model.layers.2.mlp.up_proj",
        "proj",
        r"mlp\.(up|down)_proj",
    ]
    modules = [f"model.layers.{layer}.{path}" for layer in range(12) for path in PROJECTION_PATHS]
    patterns = Patterns(keys)
    for module in modules:
        assert (patterns.first_match(module) or module) == get_pattern_key(keys, module)


def test_the_projections_are_in_the_kernels_order() -> None:
    names = [path.partition(".")[2].removesuffix("_proj").upper() for path in PROJECTION_PATHS]
    assert names == [projection.name for projection in Projection]
