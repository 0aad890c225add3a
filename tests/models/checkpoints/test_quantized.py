"""GPTQ, AWQ and compressed-tensors: each against dequantisers written here from the formats' definitions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from manylora.errors import ModelUnsupported
from manylora.kernels.cpu.backend import CpuKernels
from manylora.kernels.cpu.int4 import Int4Linear
from manylora.kernels.reference import ReferenceKernels
from manylora.kernels.weight_groups import GroupedWeight
from manylora.models.checkpoint_files import checked_entries, fingerprint, storage_formats
from manylora.models.checkpoints.quantization import read_scheme
from manylora.models.checkpoints.stored import widened
from manylora.models.llama import LlamaModel
from manylora.models.spec import read_spec
from manylora.models.weights import load_weights
from tests.kernels.cases import native
from tests.models.test_llama import TOKENS, TOLERANCE, expected_logits, run_in_chunks, save_random

Ints = NDArray[np.int64]
Parts = dict[str, Tensor]
SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
RANDOM = np.random.default_rng(5)


def words(values: Ints, bits: int, axis: int) -> Tensor:
    """Pack unsigned values into 32-bit words along an axis, the first value in the lowest bits, one by one."""
    values = np.moveaxis(values, axis, 0)
    a_word = 32 // bits
    packed = np.zeros((-(-len(values) // a_word), *values.shape[1:]), dtype=np.uint32)
    for index, row in enumerate(values):
        packed[index // a_word] |= row.astype(np.uint32) << np.uint32(bits * (index % a_word))
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(packed, 0, axis)).view(np.int32))


def halves(values: "NDArray[Any]", dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(dtype)


def draw(outputs: int, inputs: int, bits: int, group_size: int, *, symmetric: bool) -> tuple[Ints, Ints, Tensor, int]:
    """Levels (out, in), zero points (out, groups), and scales (out, groups) as float16."""
    size = inputs if group_size == -1 else group_size
    groups = -(-inputs // size)
    levels = RANDOM.integers(0, 2**bits, (outputs, inputs))
    zeros = np.full((outputs, groups), 2 ** (bits - 1)) if symmetric else RANDOM.integers(0, 2**bits, (outputs, groups))
    return levels, zeros, halves(RANDOM.uniform(0.2, 1.0, (outputs, groups)) / 2**bits), size


def slow_dense(levels: Ints, zeros: Ints, scales: Tensor, group_of: Callable[[int], int]) -> Tensor:
    """The definition, column by column: w = (level - zero) * scale."""
    weight = torch.empty(levels.shape, dtype=torch.float32)
    for column in range(levels.shape[1]):
        group = group_of(column)
        difference = torch.from_numpy(levels[:, column] - zeros[:, group]).float()
        weight[:, column] = difference * scales[:, group].float()
    return weight


def gptq(outputs: int, inputs: int, config: dict[str, Any]) -> tuple[Parts, Tensor]:
    bits = config["bits"]
    levels, zeros, scales, size = draw(outputs, inputs, bits, config["group_size"], symmetric=config["sym"])
    order = np.arange(inputs) // size
    if config["desc_act"]:
        order = RANDOM.permutation(order)
    stored_zeros = zeros if config.get("checkpoint_format") == "gptq_v2" else (zeros - 1) % 2**bits
    parts = {
        "qweight": words(levels.T, bits, axis=0),
        "qzeros": words(stored_zeros.T, bits, axis=1),
        "scales": scales.T.contiguous(),
    }
    if config["desc_act"] or config["sym"]:  # files without an order leave the tensor out at times
        parts["g_idx"] = torch.from_numpy(order.astype(np.int32))
    return parts, slow_dense(levels, zeros, scales, lambda column: int(order[column]))


def awq(outputs: int, inputs: int, config: dict[str, Any]) -> tuple[Parts, Tensor]:
    levels, zeros, scales, size = draw(outputs, inputs, 4, config["group_size"], symmetric=False)
    # A word holds eight outputs: the field 0 has the first, 1 the third, 2 the fifth, 3 the seventh, 4 the second.
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])

    def interleaved(values: Ints) -> Tensor:
        return words(values.T.reshape(values.shape[1], -1, 8)[:, :, order].reshape(values.shape[1], -1), 4, axis=1)

    parts = {"qweight": interleaved(levels), "qzeros": interleaved(zeros), "scales": scales.T.contiguous()}
    return parts, slow_dense(levels, zeros, scales, lambda column: column // size)


def compressed(outputs: int, inputs: int, config: dict[str, Any]) -> tuple[Parts, Tensor]:
    weights = config["config_groups"]["group_0"]["weights"]
    bits, group_size = weights["num_bits"], weights["group_size"] or -1
    levels, zeros, scales, size = draw(outputs, inputs, bits, group_size, symmetric=weights["symmetric"])
    order = np.arange(inputs) // size
    # The levels are signed; packing adds the offset again.
    parts = {
        "weight_packed": words(levels, bits, axis=1),
        "weight_scale": scales.to(torch.bfloat16),
        "weight_shape": torch.tensor([outputs, inputs]),
    }
    if not weights["symmetric"]:
        parts["weight_zero_point"] = words(zeros, bits, axis=0)
    if weights.get("actorder") == "static":  # written by some versions: an order that was never set
        parts["weight_g_idx"] = torch.full((inputs,), -1, dtype=torch.int32)
    if weights.get("actorder") == "group":
        order = RANDOM.permutation(order)
        parts["weight_g_idx"] = torch.from_numpy(order.astype(np.int32))
    return parts, slow_dense(levels, zeros, parts["weight_scale"], lambda column: int(order[column]))


def packed_config(**weights: Any) -> dict[str, Any]:
    fields = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 16, "actorder": None}
    group = {"targets": ["Linear"], "weights": fields | weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
    }


def gptq_config(**fields: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": True, **fields}


CASES: dict[str, tuple[Callable[[int, int, dict[str, Any]], tuple[Parts, Tensor]], dict[str, Any]]] = {
    "gptq": (gptq, gptq_config()),
    "gptq-8-bits": (gptq, gptq_config(bits=8)),
    "gptq-one-group": (gptq, gptq_config(group_size=-1)),
    "gptq-order": (gptq, gptq_config(desc_act=True)),
    "gptq-zeros": (gptq, gptq_config(sym=False)),
    "gptq-32-zeros": (gptq, gptq_config(group_size=32, sym=False)),
    "gptq-v2": (gptq, gptq_config(sym=False, checkpoint_format="gptq_v2")),
    "gptq-v2-8-bits-order": (gptq, gptq_config(bits=8, sym=False, desc_act=True, checkpoint_format="gptq_v2")),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}),
    "awq-one-group": (awq, {"quant_method": "awq", "w_bit": 4, "q_group_size": -1, "group_size": -1}),
    "w4a16": (compressed, packed_config()),
    "w4a16-32": (compressed, packed_config(group_size=32)),
    "w4a16-channel": (compressed, packed_config(strategy="channel", group_size=None)),
    "w4a16-zeros": (compressed, packed_config(symmetric=False)),
    "w4a16-order": (compressed, packed_config(actorder="group")),
    "w4a16-order-unset": (compressed, packed_config(actorder="static")),
    "w8a16-channel": (compressed, packed_config(num_bits=8, strategy="channel", group_size=None)),
    "w8a16-zeros": (compressed, packed_config(num_bits=8, symmetric=False)),
}
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
KEPT = "model.layers.1.mlp.down_proj"  # a module that the quantisation leaves out


def save_quantized(directory: Path, case: str) -> LlamaForCausalLM:
    """Save a random model whose linear layers are quantised; return transformers' model with the slow weights."""
    make, config = CASES[case]
    oracle = save_random(directory, LlamaForCausalLM(LlamaConfig(**SIZES)))
    tensors = load_file(directory / "model.safetensors")
    expected = dict(tensors)
    for name in [name for name in tensors if name.split(".")[-2] in LINEAR and not name.startswith(KEPT)]:
        outputs, inputs = tensors.pop(name).shape
        parts, expected[name] = make(outputs, inputs, config)
        tensors |= {f"{name.removesuffix('.weight')}.{part}": tensor for part, tensor in parts.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")
    set_config(directory, config)
    oracle.load_state_dict(expected)
    return oracle


def set_config(directory: Path, quantization: dict[str, Any]) -> None:
    fields = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(fields | {"quantization_config": quantization}))


@pytest.mark.parametrize("case", CASES)
def test_a_quantised_checkpoint_has_the_weights_of_its_definition(case: str, tmp_path: Path) -> None:
    oracle = save_quantized(tmp_path, case)
    entries = checked_entries(tmp_path, read_spec(tmp_path))
    for name, expected in oracle.state_dict().items():
        stored = entries[name]
        whole = widened(stored.rows(0, stored.shape[0]))
        assert np.array_equal(whole, expected.numpy()), name
        first, stop = stored.shape[0] // 3, stored.shape[0] - 3  # pieces begin and end inside a packed word
        assert np.array_equal(widened(stored.rows(first, stop)), whole[first:stop]), name


@pytest.mark.parametrize("case", ["gptq-order", "awq", "w4a16-zeros"])
def test_a_quantised_base_gives_the_logits_of_its_dense_weights(case: str, tmp_path: Path) -> None:
    oracle, spec = save_quantized(tmp_path, case), read_spec(tmp_path)
    kernels = ReferenceKernels()
    model = LlamaModel(spec, load_weights(tmp_path, spec, kernels), kernels)
    found = run_in_chunks(model, TOKENS, [len(TOKENS)])
    torch.testing.assert_close(found, expected_logits(oracle, TOKENS), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", ["gptq", "awq", "w4a16-zeros"])
def test_experts_of_a_quantised_mixture_give_the_logits_of_their_dense_weights(case: str, tmp_path: Path) -> None:
    make, config = CASES[case]
    save_random(tmp_path, MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4)))
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense/config.json").write_text((tmp_path / "config.json").read_text())
    dense = dict(tensors)
    for name in [name for name in tensors if name.split(".")[-2] in (*LINEAR, "w1", "w2", "w3")]:
        outputs, inputs = tensors.pop(name).shape
        parts, dense[name] = make(outputs, inputs, config)
        tensors |= {f"{name.removesuffix('.weight')}.{part}": tensor for part, tensor in parts.items()}
    for directory, own in ((tmp_path, tensors), (tmp_path / "dense", dense)):
        save_file({name: part.contiguous() for name, part in own.items()}, directory / "model.safetensors")
    set_config(tmp_path, config)
    spec, kernels = read_spec(tmp_path), ReferenceKernels()
    model = LlamaModel(spec, load_weights(tmp_path, spec, kernels), kernels)
    oracle = MixtralForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32).eval()
    found = run_in_chunks(model, TOKENS, [len(TOKENS)])
    torch.testing.assert_close(found, expected_logits(oracle, TOKENS), rtol=0, atol=TOLERANCE)


INTEGERS = {
    "awq": True,
    "awq-one-group": True,
    "w4a16-32": True,
    "gptq-32-zeros": True,
    "w4a16": False,  # groups of sixteen inputs
    "gptq-order": False,
    "gptq-8-bits": False,
}


@pytest.mark.parametrize("case", INTEGERS)
def test_kernels_of_four_bits_keep_the_integers_of_the_file(case: str, tmp_path: Path) -> None:
    save_quantized(tmp_path, case)
    spec, kernels = read_spec(tmp_path), CpuKernels(native(1), Int4Linear(native(1)))
    packed: Any = load_weights(tmp_path, spec, kernels).layers[0].qkv  # `Packed` is opaque to everything else
    entries = checked_entries(tmp_path, spec)
    parts: Any = [entries[f"model.layers.0.self_attn.{name}.weight"] for name in ("q_proj", "k_proj", "v_proj")]
    groups = [part.quantized(0, part.shape[0]) for part in parts]
    levels, scales, zeros = (
        torch.from_numpy(np.concatenate([getattr(group, name) for group in groups]))
        for name in ("levels", "scales", "zeros")
    )
    if INTEGERS[case]:
        is_symmetric = bool((zeros == 8).all())
        minima = None if is_symmetric else -(scales * zeros)
        expected: Any = kernels.pack_groups(GroupedWeight(levels, scales, minima, parts[0].group_size))
        assert is_symmetric == (case == "w4a16-32")
    else:
        dense = np.concatenate([widened(part.rows(0, part.shape[0])) for part in parts])
        expected = kernels.pack(torch.from_numpy(dense))
    assert torch.equal(packed.data, expected.data)


@pytest.mark.parametrize(
    ("case", "formats"), [("gptq", "GPTQ int4"), ("awq", "AWQ int4"), ("w8a16-zeros", "compressed-tensors int8")]
)
def test_the_source_format_is_named_and_is_part_of_the_fingerprint(case: str, formats: str, tmp_path: Path) -> None:
    save_quantized(tmp_path, case)
    spec = read_spec(tmp_path)
    assert formats in storage_formats(checked_entries(tmp_path, spec))
    before = fingerprint(tmp_path, spec)
    set_config(tmp_path, CASES[case][1] | {"ignore": ["lm_head", "model.embed_tokens"]})
    assert fingerprint(tmp_path, spec) != before


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"quant_method": "bitsandbytes"}, "quant_method = 'bitsandbytes'"),
    "no method": ({"bits": 4}, "quant_method = None"),
    "gptq bits": (gptq_config(bits=3), "quantization_config.bits = 3 is not supported (supported: 4, 8)"),
    "gptq without bits": ({"quant_method": "gptq", "group_size": 16}, "bits = None"),
    "gptq format": (gptq_config(checkpoint_format="marlin"), "checkpoint_format = 'marlin'"),
    "gptq group": (gptq_config(group_size=0), "group_size = 0"),
    "gptq modules": (gptq_config(dynamic={"-:.*mlp.*": {}}), "dynamic"),
    "gptq field": (gptq_config(hadamard=True), "hadamard = True is not understood"),
    "awq version": ({"quant_method": "awq", "group_size": 32, "version": "gemv"}, "version = 'gemv'"),
    "awq symmetric": ({"quant_method": "awq", "group_size": 32, "zero_point": False}, "zero_point = False"),
    "awq two sizes": ({"quant_method": "awq", "group_size": 32, "q_group_size": 64}, "differ"),
    "packed format": (packed_config() | {"format": "float-quantized"}, "format = 'float-quantized'"),
    "packed type": (packed_config(type="float"), "weights.type = 'float'"),
    "packed bits": (packed_config(num_bits=3), "num_bits = 3"),
    "packed strategy": (packed_config(strategy="block"), "strategy = 'block'"),
    "packed group": (packed_config(group_size=None), "group_size = None"),
    "packed cache": (packed_config() | {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
    "packed groups": (packed_config() | {"config_groups": {}}, "config_groups = {}"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_readers_lack_is_refused_by_name(name: str) -> None:
    config, said = REFUSED[name]
    with pytest.raises(ModelUnsupported) as caught:
        read_scheme({"quantization_config": config})
    assert said in caught.value.message


def test_quantised_activations_are_refused() -> None:
    config = packed_config()
    config["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8}
    with pytest.raises(ModelUnsupported, match="input_activations"):
        read_scheme({"quantization_config": config})


def test_two_different_schemes_are_refused() -> None:
    config = packed_config()
    config["config_groups"]["group_1"] = packed_config(num_bits=8)["config_groups"]["group_0"]
    with pytest.raises(ModelUnsupported, match="2 different schemes"):
        read_scheme({"quantization_config": config})


BROKEN: dict[str, tuple[str, str, Callable[[Tensor], Tensor | None], str]] = {
    "scales of other groups": ("gptq", "scales", lambda scales: scales[:1].contiguous(), "of shape (4, 64)"),
    "no zeros": ("gptq", "qzeros", lambda zeros: None, "lacks"),
    "zeros of another type": ("awq", "qzeros", lambda zeros: zeros.long(), "I64"),
    "a wrong shape": ("w4a16", "weight_shape", lambda shape: shape + 1, "weight_packed"),
    "a shape of nothing": ("w4a16", "weight_shape", lambda shape: shape * 0, "[0, 0]"),
    "a weight as well": ("w4a16", "weight", lambda _: torch.zeros(64, 64), "beside"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_parts_that_do_not_fit_are_named(name: str, tmp_path: Path) -> None:
    case, part, change, said = BROKEN[name]
    save_quantized(tmp_path, case)
    tensors = load_file(tmp_path / "model.safetensors")
    key = f"model.layers.0.self_attn.q_proj.{part}"
    changed = change(tensors.pop(key, torch.zeros(1)))
    save_file(tensors if changed is None else tensors | {key: changed}, tmp_path / "model.safetensors")
    with pytest.raises(ModelUnsupported) as caught:
        checked_entries(tmp_path, read_spec(tmp_path))
    assert "model.layers.0.self_attn.q_proj" in caught.value.message
    assert said in caught.value.message


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_biases_of_zeros_that_old_files_have_are_ignored(value: float, tmp_path: Path) -> None:
    save_quantized(tmp_path, "gptq")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.full((64,), value, dtype=torch.float16)
    save_file(tensors, tmp_path / "model.safetensors")
    if value == 0:
        checked_entries(tmp_path, read_spec(tmp_path))
        return
    with pytest.raises(ModelUnsupported, match=r"does not use: model\.layers\.0\.self_attn\.q_proj\.bias"):
        checked_entries(tmp_path, read_spec(tmp_path))


def test_a_group_that_there_is_not_is_refused(tmp_path: Path) -> None:
    save_quantized(tmp_path, "gptq-order")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.g_idx"][3] = 4
    save_file(tensors, tmp_path / "model.safetensors")
    stored = checked_entries(tmp_path, read_spec(tmp_path))["model.layers.0.self_attn.q_proj.weight"]
    with pytest.raises(ModelUnsupported, match="from 0 to 4, of 4 groups"):
        stored.rows(0, 1)
