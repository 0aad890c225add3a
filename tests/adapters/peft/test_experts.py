"""Adapters of a mixture of experts that do not fit the base, or whose tensors are incomplete, are refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manylora import errors
from manylora.adapters.base_shape import BaseShape, base_shape, module_path
from manylora.adapters.ingest.reporting import report_of
from manylora.adapters.packing.image import largest_file_bytes, read_image, write_image
from manylora.adapters.packing.pack import pack_adapter, pack_merged
from manylora.adapters.peft.checkpoint import check_adapter
from manylora.kernels.projections import Projection, expert_index
from manylora.merging import MergeRecipe, MergeStrategy
from manylora.models.spec import parse_spec
from tests.adapters.adapter_files import (
    LIMITS,
    REFUSE,
    TINY,
    Tensors,
    as_f32,
    config_bytes,
    lora_tensors,
    packed,
    safetensors_bytes,
    unpacked,
)
from tests.models.parity.test_mixtral import MIXTRAL

EXPERTS, HIDDEN, INNER, LAYERS, RANK = 8, 48, 80, 3, 4
SPEC = parse_spec(MIXTRAL, {})
SHAPE = base_shape(SPEC, "tiny", "cd" * 32)
STEM = "base_model.model.model.layers"
ALL = ["w1", "w2", "w3"]
PARAMETERS = ["experts.gate_up_proj", "experts.down_proj"]


def normal(*shape: int) -> tuple[str, tuple[int, ...], bytes]:
    return as_f32(np.random.default_rng(sum(shape)).standard_normal(shape))


def separate(expert: int = 0, name: str = "w1", *, layer: int = 0, rank: int = RANK, parent: str = "mlp") -> Tensors:
    out, in_ = (HIDDEN, INNER) if name == "w2" else (INNER, HIDDEN)
    stem = f"{STEM}.{layer}.{parent}.experts.{expert}.{name}"
    return {f"{stem}.lora_A.weight": normal(rank, in_), f"{stem}.lora_B.weight": normal(out, rank)}


def all_separate() -> Tensors:
    tensors: Tensors = {}
    for layer in range(LAYERS):
        for expert in range(EXPERTS):
            for name in ALL:
                tensors |= separate(expert, name, layer=layer)
    return tensors


def fused(rank: int = RANK, *, layer: int = 0, rows: int | None = None) -> Tensors:
    stem, wide = f"{STEM}.{layer}.mlp.experts", rank * EXPERTS
    return {
        f"{stem}.base_layer.lora_A.weight": normal(rows or wide, HIDDEN),
        f"{stem}.base_layer.lora_B.weight": normal(2 * INNER, wide),
        f"{stem}.lora_A.weight": normal(wide, INNER),
        f"{stem}.lora_B.weight": normal(HIDDEN, wide),
    }


def stacked(first: int, second: int, *, rank: int = RANK) -> Tensors:
    stem = f"{STEM}.0.mlp.experts.w1"
    return {f"{stem}.lora_A.weight": normal(first, rank, HIDDEN), f"{stem}.lora_B.weight": normal(second, INNER, rank)}


BY_PARAMETERS: dict[str, Any] = {"target_modules": [], "target_parameters": PARAMETERS}
WRONG: dict[str, tuple[dict[str, Any], Tensors, type[errors.AdapterError], str]] = {
    "an expert that the base lacks": (
        {"target_modules": ALL},
        separate(8),
        errors.AdapterIncompatible,
        r"experts\.8\.w1, which the model does not have",
    ),
    "a dense layer": (
        {"target_modules": ["gate_proj"]},
        {f"{STEM}.0.mlp.gate_proj.lora_{p}.weight": normal(RANK, RANK) for p in "AB"},
        errors.AdapterIncompatible,
        r"mlp\.gate_proj, which the model does not have",
    ),
    "an expert's matrix of another shape": (
        {"target_modules": ALL},
        {f"{STEM}.0.mlp.experts.0.w2.lora_{p}.weight": normal(*s) for p, s in (("A", (4, 48)), ("B", (80, 4)))},
        errors.AdapterIncompatible,
        r"experts\.0\.w2 maps 48 to 80",
    ),
    "one half": (
        {"target_modules": ALL, "init_lora_weights": False},
        dict(list(separate().items())[:1]),
        errors.AdapterCorrupt,
        r"experts\.0\.w1 has lora_A only",
    ),
    "names of another mixture": (
        {"target_modules": "all-linear"},
        {f"{STEM}.0.mlp.experts.0.gate_proj.lora_A.weight": normal(RANK, HIDDEN)},
        errors.AdapterUnsupported,
        "an adapter on experts or their router",
    ),
    "a rank that does not divide over the experts": (
        BY_PARAMETERS,
        fused(rows=RANK * EXPERTS - 3),
        errors.AdapterIncompatible,
        r"experts\.base_layer has lora_A \[29, 48\]",
    ),
    "the rank of other experts": (
        BY_PARAMETERS,
        fused(2),
        errors.AdapterCorrupt,
        "the rank 4, its tensors have 2 for each expert",
    ),
    "a rank over the limit": ({**BY_PARAMETERS, "r": 65}, fused(65), errors.AdapterTooLarge, "rank 65"),
    "modules renamed, and the rank not doubled": (
        {"target_modules": ALL},
        fused(),
        errors.AdapterCorrupt,
        "the rank 8, its tensors have 4",
    ),
    "a parameter of attention": (
        {"target_modules": ["q_proj"], "target_parameters": ["q_proj.weight"]},
        fused(),
        errors.AdapterUnsupported,
        r"the parameter `model\.layers\.0\.self_attn\.q_proj\.weight`",
    ),
    "a parameter and single experts": (
        BY_PARAMETERS,
        separate(),
        errors.AdapterUnsupported,
        "`target_parameters` with tensors of single experts",
    ),
    "one expert twice": (
        {"target_modules": ALL, "r": 8, "rank_pattern": {r"experts\.0\.w1": 4, "down_proj": 16}},
        {**separate(), **fused(16)},
        errors.AdapterCorrupt,
        r"experts\.0\.w1 in two forms",
    ),
    "two spellings of one expert": (
        {"target_modules": ALL},
        {**separate(), **separate(parent="block_sparse_moe")},
        errors.AdapterCorrupt,
        "twice, under another name",
    ),
    "DoRA on a parameter": (
        {**BY_PARAMETERS, "use_dora": True},
        fused(),
        errors.AdapterUnsupported,
        "`use_dora` together with `target_parameters`",
    ),
    "a stack of other experts": (
        {"target_modules": ALL},
        stacked(7, 8),
        errors.AdapterIncompatible,
        r"lora_A \[7, 4, 48\] and lora_B \[8, 80, 4\], which do not divide over the model's 8 experts",
    ),
    "a router saved whole": (
        {"target_modules": ["q_proj"], "modules_to_save": ["gate"]},
        {f"{STEM}.0.mlp.gate.weight": normal(EXPERTS, HIDDEN)},
        errors.AdapterUnsupported,
        r"the trained module `model\.layers\.0\.block_sparse_moe\.gate`",
    ),
    "parameters that are no list": (
        {"target_parameters": "experts"},
        fused(),
        errors.AdapterCorrupt,
        "`target_parameters` = experts is not a list",
    ),
}


@pytest.mark.parametrize(("fields", "tensors", "error", "said"), WRONG.values(), ids=WRONG.keys())
def test_what_does_not_fit_a_mixture_is_refused_by_name(
    fields: dict[str, Any], tensors: Tensors, error: type[errors.AdapterError], said: str
) -> None:
    with pytest.raises(error, match=said):
        packed(config_bytes(**fields), safetensors_bytes(tensors), shape=SHAPE)


@pytest.mark.parametrize(
    ("fields", "tensors", "said"),
    [
        ({"target_modules": ALL}, separate(), "block_sparse_moe.experts.0.w1, which the model does not have"),
        ({"target_modules": ALL}, fused(8), "mlp.experts.base_layer, which the model does not have"),
        ({"target_modules": "all-linear"}, stacked(1, 8), "mlp.experts.w1, which the model does not have"),
        (
            {"target_modules": ["gate"]},
            {f"{STEM}.0.mlp.gate.lora_{p}.weight": normal(RANK, RANK) for p in "AB"},
            "block_sparse_moe.gate, which the model does not have",
        ),
    ],
)
def test_an_adapter_of_a_mixture_is_refused_on_a_base_without_one(
    fields: dict[str, Any], tensors: Tensors, said: str
) -> None:
    with pytest.raises(errors.AdapterIncompatible, match=said):
        packed(config_bytes(**fields), safetensors_bytes({**tensors, **lora_tensors()}), shape=TINY)


def test_a_tensor_that_the_config_does_not_name_is_left_out_with_the_reason() -> None:
    tensors = {**fused(), **{name.replace("experts.0", "experts.1"): own for name, own in separate().items()}}
    tensors |= {f"{STEM}.0.self_attn.q_proj.lora_{p}.weight": normal(*s) for p, s in (("A", (4, 48)), ("B", (48, 4)))}
    config = config_bytes(target_modules=["q_proj"], target_parameters=PARAMETERS[1:])
    del tensors[f"{STEM}.0.mlp.experts.1.w1.lora_A.weight"]
    checked = check_adapter(config, memoryview(safetensors_bytes(tensors)), SHAPE, LIMITS, REFUSE)
    assert len(checked.modules) == 1 + EXPERTS
    assert set(checked.sorted_tensors.left_out.values()) == {
        "neither `target_parameters` nor `target_modules` names its parameter",
        "`target_modules` does not name its module",
    }
    report = report_of(checked, SHAPE)
    assert (report.num_applied, report.num_left_out) == (4, 3)
    assert {(group.module, group.rank) for group in report.applied} == {
        ("model.layers.*.self_attn.q_proj", 4),
        ("model.layers.*.mlp.experts", 4),
    }


def test_an_image_of_a_mixture_is_read_as_it_was_written(tmp_path: Path) -> None:
    adapter = packed(config_bytes(target_modules=ALL), safetensors_bytes(all_separate()), shape=SHAPE)
    path = tmp_path / "image"
    facts = write_image(path, digest=adapter.digest, dtype="float32", table=adapter.table, body=adapter.body)
    found = read_image(path)
    assert found.facts == facts
    assert np.array_equal(found.table, adapter.table)
    assert found.num_rows == LAYERS * EXPERTS * 3 * RANK
    weights = len(safetensors_bytes(all_separate()))
    assert path.stat().st_size <= largest_file_bytes(weights, SHAPE, "float32")


def test_an_adapter_of_all_experts_of_mixtral_takes_the_bytes_of_its_ranks() -> None:
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    shape = base_shape(parse_spec({**MIXTRAL, **sizes, "num_key_value_heads": 8}, {}), "mixtral", "")
    per_rank = 2 * shape.num_layers * sum(sum(own) for own in shape.projections if own is not None)
    router = 2 * shape.num_layers * (4096 + 8)
    assert per_rank - router == 30_015_488
    assert 0 <= largest_file_bytes(16 * per_rank, shape, "bfloat16") - 16 * per_rank < 1 << 20


def test_the_two_forms_of_a_w2_have_one_digest() -> None:
    a, b = (np.random.default_rng(3).standard_normal(shape) for shape in ((EXPERTS, RANK, INNER), (EXPERTS, 48, RANK)))
    one: Tensors = {}
    for expert in range(EXPERTS):
        stem = f"{STEM}.0.mlp.experts.{expert}.w2"
        one |= {f"{stem}.lora_A.weight": as_f32(a[expert]), f"{stem}.lora_B.weight": as_f32(b[expert])}
    stem = f"{STEM}.0.mlp.experts"
    other: Tensors = {
        f"{stem}.lora_A.weight": as_f32(a.reshape(-1, INNER)),
        f"{stem}.lora_B.weight": as_f32(b.transpose(1, 2, 0).reshape(48, -1)),
    }
    by_modules = packed(config_bytes(target_modules=["w2"]), safetensors_bytes(one), shape=SHAPE)
    by_parameter = packed(
        config_bytes(target_modules=[], target_parameters=PARAMETERS[1:]), safetensors_bytes(other), shape=SHAPE
    )
    assert by_modules.digest == by_parameter.digest
    assert bytes(by_modules.body) == bytes(by_parameter.body)


def test_the_shape_of_a_mixture_survives_its_way_to_the_ingest_process() -> None:
    assert BaseShape.from_json(json.loads(json.dumps(SHAPE.to_json()))) == SHAPE
    assert module_path((2, len(SHAPE.projections) - 1)) == "model.layers.2.block_sparse_moe.experts.7.w2"


def test_a_parameter_made_of_w1_and_w3_is_packed_as_those() -> None:
    random = np.random.default_rng(3)
    factors = {
        name: (random.standard_normal((EXPERTS, RANK, HIDDEN)), random.standard_normal((EXPERTS, INNER, RANK)))
        for name in ("w1", "w3")
    }
    one: Tensors = {}
    for name, (a, b) in factors.items():
        for expert in range(EXPERTS):
            stem = f"{STEM}.0.mlp.experts.{expert}.{name}"
            one |= {f"{stem}.lora_A.weight": as_f32(a[expert]), f"{stem}.lora_B.weight": as_f32(b[expert])}
    wide_b = np.zeros((2 * INNER, 2 * RANK, EXPERTS))
    wide_b[:INNER, :RANK], wide_b[INNER:, RANK:] = (factors[name][1].transpose(1, 2, 0) for name in ("w1", "w3"))
    wide_a = np.concatenate([factors["w1"][0], factors["w3"][0]], axis=1)
    stem = f"{STEM}.0.mlp.experts"
    other: Tensors = {
        f"{stem}.lora_A.weight": as_f32(wide_a.reshape(-1, HIDDEN)),
        f"{stem}.lora_B.weight": as_f32(wide_b.reshape(2 * INNER, -1)),
    }
    fields = {"target_modules": [], "target_parameters": PARAMETERS[:1], "r": 4, "rank_pattern": {"gate_up_proj": 8}}
    by_modules = packed(config_bytes(target_modules=["w1", "w3"]), safetensors_bytes(one), shape=SHAPE)
    by_parameter = packed(
        config_bytes(**fields, alpha_pattern={"gate_up_proj": 16}), safetensors_bytes(other), shape=SHAPE
    )
    assert by_modules.digest == by_parameter.digest
    assert bytes(by_modules.body) == bytes(by_parameter.body)


def test_adapters_of_experts_are_merged_in_any_of_their_forms() -> None:
    w2 = [own for expert in range(EXPERTS) for own in separate(expert, "w2").items()]
    wide = {name: own for name, own in fused().items() if "base_layer" not in name}
    shape, both = SHAPE, []
    for fields, tensors in (
        ({"target_modules": ["w2"]}, dict(w2)),
        ({"target_modules": [], "target_parameters": PARAMETERS[1:]}, wide),
    ):
        checked = check_adapter(config_bytes(**fields), memoryview(safetensors_bytes(tensors)), shape, LIMITS, REFUSE)
        both.append((checked, pack_adapter(checked, shape, "float32", REFUSE)))
    recipe = MergeRecipe((1.0, 0.5), MergeStrategy.CAT)
    merged = pack_merged([checked for checked, _ in both], recipe, shape, LIMITS, "float32", REFUSE)
    for expert in (0, 5, 7):
        index = expert_index(Projection.DOWN, expert)
        one, other, sum_ = (unpacked(adapter, 0, index, shape) for adapter in (both[0][1], both[1][1], merged))
        expected = one[1].T @ one[0] + 0.5 * other[1].T @ other[0]
        np.testing.assert_allclose(sum_[1].T @ sum_[0], expected, atol=1e-4)


@pytest.mark.parametrize("is_rank_stabilised", [False, True])
def test_single_experts_have_the_strength_that_they_were_trained_with(is_rank_stabilised: bool) -> None:
    config = config_bytes(target_modules=["w1"], use_rslora=is_rank_stabilised)
    checked = check_adapter(config, memoryview(safetensors_bytes(separate())), SHAPE, LIMITS, REFUSE)
    assert [module.scale for module in checked.modules] == [4.0 if is_rank_stabilised else 2.0]
