"""LoRA on a mixture of experts against PEFT in float32: both forms of the files, every target, mixed batches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from manylora.models.llama import LlamaModel
from tests.support.forward import load_model, place, run
from tests.support.mixtral import (
    EXPERTS,
    HIDDEN,
    INNER,
    LAYERS,
    SHAPES,
    TinyMixtral,
    every,
    logits_of,
    make_mixtral,
    merged_logits,
    peft_logits,
    random_factors,
    save_again,
    save_by_peft,
    save_files,
    save_separate,
    weight_of,
)

TOLERANCE = 1e-4
TOKENS = [(7 * position) % 97 + 3 for position in range(20)]
ALL = ["w1", "w2", "w3"]
PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
GRID: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "both parameters": {"target_modules": [], "target_parameters": PARAMETERS},
    "gate and up alone": {"target_modules": ["q_proj"], "target_parameters": PARAMETERS[:1]},
    "down alone": {"target_modules": [], "target_parameters": PARAMETERS[1:]},
    "router": {"target_modules": [], "target_parameters": ["gate.weight"]},
    "one layer's parameter": {"target_modules": [], "target_parameters": ["layers.1.mlp.experts.down_proj"]},
    "all parameters": {"target_modules": ["v_proj"], "target_parameters": [*PARAMETERS, "mlp.gate.weight"]},
    "modules that PEFT renames": {"target_modules": ["q_proj", *ALL]},
    "all modules that PEFT renames": {"target_modules": ["q_proj", "gate", *ALL]},
    "w2 and the router, renamed": {"target_modules": ["gate", "w2"]},
    "all-linear": {"target_modules": "all-linear"},
    "rank-stabilised": {"target_modules": ["o_proj"], "target_parameters": PARAMETERS, "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj"],
        "target_parameters": [*PARAMETERS, "gate.weight"],
        "rank_pattern": {"gate_up_proj": 6, r"layers\.1\.mlp\.gate\.weight": 2},
        "alpha_pattern": {"down_proj": 5, "q_proj": 1},
    },
    "saved head": {"target_modules": ["q_proj"], "target_parameters": PARAMETERS, "modules_to_save": ["lm_head"]},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, TinyMixtral]:
    """The same base in the separate form (False) and in the fused form (True)."""
    folder = tmp_path_factory.mktemp("mixtral")
    return {is_fused: make_mixtral(folder / str(is_fused), is_fused=is_fused) for is_fused in (False, True)}


@pytest.fixture(scope="module")
def model(bases: dict[bool, TinyMixtral]) -> LlamaModel:
    return load_model(bases[False].directory, "reference")


def our_logits(model: LlamaModel, base: TinyMixtral, adapter: Path) -> Tensor:
    """Logits of our forward pass, beside rows of the base."""
    placed = place(adapter, model.spec, model.kernels, base.directory)
    return run(model, [([3, 4, 5], None), (TOKENS, placed), ([9, 8], None)])[1]


def check(model: LlamaModel, base: TinyMixtral, adapter: Path, expected: Tensor) -> None:
    found = our_logits(model, base, adapter)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
    assert not torch.allclose(found, run(model, [(TOKENS, None)])[0], atol=100 * TOLERANCE)


@pytest.mark.parametrize("name", GRID)
def test_an_adapter_that_peft_saves_gives_its_logits(
    name: str, model: LlamaModel, bases: dict[bool, TinyMixtral], tmp_path: Path
) -> None:
    adapter = save_by_peft(bases[False], tmp_path, r=4, lora_alpha=8, **GRID[name])
    check(model, bases[False], adapter, peft_logits(bases[False], adapter, TOKENS))


@pytest.mark.parametrize("parent", ["block_sparse_moe", "mlp"])
@pytest.mark.parametrize("names", [every(*ALL), [*every(*ALL), "gate"]], ids=["experts", "experts and router"])
def test_single_experts_tensors_give_the_logits_of_peft(
    names: list[str], parent: str, model: LlamaModel, bases: dict[bool, TinyMixtral], tmp_path: Path
) -> None:
    targets = sorted({name.rpartition(".")[2] for name in names})
    fields = {"r": 3, "lora_alpha": 6, "target_modules": targets}
    adapter = save_separate(tmp_path, random_factors(names, 3), parent, **fields)
    check(model, bases[False], adapter, peft_logits(bases[False], adapter, TOKENS))


@pytest.mark.parametrize("names", [every(*ALL), [*every(*ALL), "gate"]], ids=["experts", "experts and router"])
def test_what_peft_makes_of_single_experts_tensors_is_the_same_adapter(
    names: list[str], model: LlamaModel, bases: dict[bool, TinyMixtral], tmp_path: Path
) -> None:
    base, targets = bases[False], sorted({name.rpartition(".")[2] for name in names})
    single = save_separate(tmp_path / "a", random_factors(names, 3), r=3, lora_alpha=6, target_modules=targets)
    fused = save_again(base, single, tmp_path / "b")
    assert "target_parameters" in (fused / "adapter_config.json").read_text()
    one, other = (place(adapter, model.spec, model.kernels, base.directory).weights for adapter in (single, fused))
    assert one.digest == other.digest
    assert torch.equal(one.image, other.image)


@pytest.mark.parametrize(
    ("names", "fields"),
    [
        (every("w1"), {"target_modules": ["w1"]}),
        (["experts.2.w2", "experts.0.w3"], {"target_modules": ["w2", "w3"]}),
        (["gate"], {"target_modules": ["gate"]}),
        (["experts.1.w1"], {"target_modules": r".*\.experts\.1\.w1"}),
        ([*every(*ALL), "gate"], {"target_modules": "all-linear"}),
    ],
    ids=["w1 alone", "some experts", "router alone", "an expression", "all-linear"],
)
def test_any_of_the_modules_may_have_a_lora(
    names: list[str], fields: dict[str, Any], model: LlamaModel, bases: dict[bool, TinyMixtral], tmp_path: Path
) -> None:
    factors = random_factors(names, 3)
    adapter = save_separate(tmp_path, factors, r=3, lora_alpha=6, **fields)
    check(model, bases[False], adapter, merged_logits(bases[False], factors, 2.0, TOKENS))


def stacks(rank: int, shared: dict[str, str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of all experts by name, and the factors that they mean. `shared`: the factor that all experts have."""
    generator = torch.Generator().manual_seed(5)
    tensors: dict[str, Tensor] = {}
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for layer in range(LAYERS):
        for name in ALL:
            out, in_ = SHAPES[name]
            a = torch.randn(1 if shared.get(name) == "A" else EXPERTS, rank, in_, generator=generator) * 0.15
            b = torch.randn(1 if shared.get(name) == "B" else EXPERTS, out, rank, generator=generator) * 0.15
            stem = f"base_model.model.model.layers.{layer}.mlp.experts.{name}"
            tensors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
            for expert in range(EXPERTS):
                path = f"model.layers.{layer}.experts.{expert}.{name}"
                factors[path] = a[expert % len(a)], b[expert % len(b)]
    return tensors, factors


@pytest.mark.parametrize(
    "shared", [{}, {"w1": "A", "w3": "A", "w2": "B"}, {"w2": "A", "w1": "B"}], ids=["none", "outer", "inner"]
)
def test_experts_may_share_a_factor(
    shared: dict[str, str], model: LlamaModel, bases: dict[bool, TinyMixtral], tmp_path: Path
) -> None:
    tensors, factors = stacks(3, shared)
    adapter = save_files(tmp_path, tensors, r=3, lora_alpha=6, target_modules=ALL)
    check(model, bases[False], adapter, merged_logits(bases[False], factors, 2.0, TOKENS))
    placed = place(adapter, model.spec, model.kernels, bases[False].directory).weights
    own = sum((EXPERTS if shared.get(name) != "A" else 1) * 3 * SHAPES[name][1] for name in ALL)
    own += sum((EXPERTS if shared.get(name) != "B" else 1) * 3 * SHAPES[name][0] for name in ALL)
    assert own * LAYERS <= placed.image.numel() < own * LAYERS * 1.15  # each factor begins on a cache line


def test_stacks_may_have_the_names_of_the_parameters(
    model: LlamaModel, bases: dict[bool, TinyMixtral], tmp_path: Path
) -> None:
    tensors, factors = stacks(3, {"w1": "A", "w3": "A", "w2": "B"})
    renamed: dict[str, Tensor] = {}
    for layer in range(LAYERS):
        stem = f"base_model.model.model.layers.{layer}.mlp.experts"
        a, gate, up = (tensors[f"{stem}.{name}.weight"] for name in ("w1.lora_A", "w1.lora_B", "w3.lora_B"))
        renamed |= {
            f"{stem}.gate_up_proj.lora_A.weight": a,
            f"{stem}.gate_up_proj.lora_B.weight": torch.cat([gate, up], 1),
        }
        for expert in range(EXPERTS):  # one A for both
            path = f"model.layers.{layer}.experts.{expert}"
            factors[f"{path}.w3"] = a[0], factors[f"{path}.w3"][1]
        renamed |= {f"{stem}.down_proj.lora_{part}.weight": tensors[f"{stem}.w2.lora_{part}.weight"] for part in "AB"}
    adapter = save_files(tmp_path, renamed, r=3, lora_alpha=6, target_modules=["gate_up_proj", "down_proj"])
    check(model, bases[False], adapter, merged_logits(bases[False], factors, 2.0, TOKENS))


def test_the_wrappers_tensors_may_have_three_dimensions(
    model: LlamaModel, bases: dict[bool, TinyMixtral], tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": [], "target_parameters": PARAMETERS}
    flat = save_by_peft(bases[False], tmp_path / "flat", **fields)
    tensors = load_file(flat / "adapter_model.safetensors")
    deep = {
        name: own.reshape(EXPERTS, 4, -1) if "lora_A" in name else own.reshape(-1, 4, EXPERTS)
        for name, own in tensors.items()
    }
    adapter = save_files(tmp_path / "deep", deep, **fields)
    one, other = (place(own, model.spec, model.kernels, bases[False].directory).weights for own in (flat, adapter))
    assert one.digest == other.digest


def test_the_fused_parameters_take_the_place_that_their_file_takes(
    model: LlamaModel, bases: dict[bool, TinyMixtral], tmp_path: Path
) -> None:
    adapter = save_by_peft(bases[False], tmp_path, r=4, lora_alpha=8, target_modules=[], target_parameters=PARAMETERS)
    placed = place(adapter, model.spec, model.kernels, bases[False].directory).weights
    elements = LAYERS * EXPERTS * 4 * (HIDDEN + 2 * INNER + INNER + HIDDEN)
    assert placed.image.numel() == elements  # 192 and 160 elements are whole cache lines


@pytest.mark.parametrize("is_fused", [False, True], ids=["separate base", "fused base"])
def test_dora_on_single_experts_takes_the_norms_of_the_base_in_either_form(
    is_fused: bool, bases: dict[bool, TinyMixtral], model: LlamaModel, tmp_path: Path
) -> None:
    factors, base = random_factors(every(*ALL), 3), bases[is_fused]
    adapter = save_separate(tmp_path, factors, r=3, lora_alpha=6, target_modules=ALL, use_dora=True)
    oracle = base.load()
    magnitudes = {}
    with torch.no_grad():
        for path, (a, b) in factors.items():
            layer, name = path.removeprefix("model.layers.").split(".", 1)
            weight = weight_of(oracle, int(layer), name)
            changed = weight + 2.0 * b @ a
            magnitude = 1.3 * weight.norm(dim=1)
            weight.copy_(magnitude[:, None] * changed / changed.norm(dim=1, keepdim=True))
            stem = f"base_model.model.model.layers.{layer}.block_sparse_moe.{name}"
            magnitudes[f"{stem}.lora_magnitude_vector"] = magnitude
    file = adapter / "adapter_model.safetensors"
    save_file(load_file(file) | magnitudes, file)
    check(model, base, adapter, logits_of(oracle, TOKENS))


PROMPTS = [[3, 4, 5, 6], TOKENS, [9, 8], TOKENS[:9], [50, 51, 52]]


@pytest.mark.parametrize("name", ["reference", "native", "native-bf16"])
def test_a_mixed_batch_equals_each_request_alone(name: str, bases: dict[bool, TinyMixtral], tmp_path: Path) -> None:
    base = bases[False]
    model = load_model(base.directory, name)
    adapters: list[Path | None] = [
        save_by_peft(base, tmp_path / "a", r=4, target_modules=["q_proj"], target_parameters=PARAMETERS),
        save_separate(tmp_path / "b", random_factors(every("w2"), 5), r=5, target_modules=["w2"]),
        None,
        save_by_peft(base, tmp_path / "c", r=2, seed=4, target_modules="all-linear"),
        save_separate(tmp_path / "d", random_factors(["gate"], 1), r=1, target_modules=["gate"]),
    ]
    placed = [None if own is None else place(own, model.spec, model.kernels, base.directory) for own in adapters]
    sequences = list(zip(PROMPTS, placed, strict=True))
    for found, alone in zip(run(model, sequences), sequences, strict=True):
        expected = run(model, [alone])[0]
        if model.kernels.is_row_independent:
            assert torch.equal(found, expected)
        else:
            torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
