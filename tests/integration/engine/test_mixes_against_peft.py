"""Several adapters of one request against PEFT's `add_weighted_adapter(combination_type="cat")` in float32."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor

from tests.support.forward import load_model, place, run
from tests.support.tiny import ALL, TinyBase, make_adapter, make_base

SHAPES = {
    "small": LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]),
    "wide": LoraConfig(r=24, lora_alpha=24, target_modules=ALL),
    "scaled": LoraConfig(r=8, lora_alpha=16, use_rslora=True, target_modules=["o_proj", "down_proj", "q_proj"]),
    "some-layers": LoraConfig(r=5, lora_alpha=3, target_modules=["gate_proj", "up_proj"], layers_to_transform=[0, 2]),
}
# PEFT takes the first adapter's layers and rsLoRA for the whole, so that the first here has neither.
MIXES: tuple[tuple[tuple[str, float], ...], ...] = (
    (("small", 0.5), ("wide", 0.75)),
    (("wide", 0.5), ("scaled", 0.4), ("small", 1.0), ("some-layers", 0.3)),
    (("small", 0.6), ("scaled", 1.5)),
    (("wide", 0.4),),
    (("wide", 1.0), ("small", -0.5)),
)
TOLERANCE = {"reference": 1e-4, "native": 0.03}


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyBase, Path]:
    folder = tmp_path_factory.mktemp("mixes")
    base = make_base(folder / "base")
    for seed, (name, config) in enumerate(SHAPES.items()):
        make_adapter(base, folder / name, config, seed=seed)
    return base, folder


def oracle(base: TinyBase, folder: Path, mix: tuple[tuple[str, float], ...], tokens: list[int]) -> Tensor:
    names = [name for name, _ in mix]
    loaded: Any = base.load()
    model = PeftModel.from_pretrained(loaded, folder / names[0], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(str(folder / name), adapter_name=name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_weighted_adapter(names, [weight for _, weight in mix], "mix", combination_type="cat")
    model.set_adapter("mix")
    logits: Tensor = model.eval()(input_ids=torch.tensor([tokens])).logits[0]
    return logits


@pytest.mark.parametrize("back_end", ["reference", "native"])
def test_mixes_side_by_side_equal_concatenated_adapters(grid: tuple[TinyBase, Path], back_end: str) -> None:
    base, folder = grid
    model = load_model(base.directory, back_end)
    placed = {name: place(folder / name, model.spec, model.kernels, base.directory) for name in SHAPES}
    prompts = [[(7 * index + 3 * position + 1) % 190 for position in range(9 + index)] for index in range(len(MIXES))]
    mixed = [[(placed[name], weight) for name, weight in mix] for mix in MIXES]
    found = run(model, [*zip(prompts, mixed, strict=True), (prompts[0], placed["wide"]), (prompts[0], None)])
    for mix, prompt, logits in zip(MIXES, prompts, found, strict=False):
        expected = oracle(base, folder, mix, prompt)
        error = (logits - expected).abs().max().item()
        if back_end != "reference":
            error /= expected.abs().max().item()
        assert error <= TOLERANCE[back_end], f"{json.dumps(mix)}: largest error {error}"
