"""Tiny random Mixtrals and adapters of them, in both forms of the files, and their float32 logits by transformers."""

import copy
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM

from tests.support.tiny import train_randomly

EXPERTS, HIDDEN, INNER, LAYERS, VOCAB = 4, 48, 40, 2, 101
SHAPES = {"w1": (INNER, HIDDEN), "w3": (INNER, HIDDEN), "w2": (HIDDEN, INNER), "gate": (EXPERTS, HIDDEN)}
"""(out, in) of the modules of a mixture."""


@dataclass(frozen=True)
class TinyMixtral:
    """A saved base: `directory` as `manylora serve --base` takes it."""

    directory: Path

    def load(self) -> MixtralForCausalLM:
        """The oracle: transformers' own model in float32."""
        return MixtralForCausalLM.from_pretrained(self.directory, dtype=torch.float32).eval()


def make_mixtral(directory: Path, *, is_fused: bool = False, seed: int = 0, vocab: int = VOCAB) -> TinyMixtral:
    config = MixtralConfig(
        vocab_size=vocab,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        num_local_experts=EXPERTS,
    )
    torch.manual_seed(seed)
    model = MixtralForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=1.0 if parameter.ndim == 1 else 0.0, std=0.15)
    model.save_pretrained(directory, save_original_format=not is_fused)
    return TinyMixtral(directory)


def save_by_peft(base: TinyMixtral, directory: Path, *, seed: int = 0, **fields: Any) -> Path:  # LoraConfig's fields
    """An adapter of random weights as the installed PEFT saves it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of patterns that match no module
        model = get_peft_model(base.load(), LoraConfig(**copy.deepcopy(fields)))
        train_randomly(model, seed)
        model.save_pretrained(directory)
    return directory


def random_factors(names: list[str], rank: int, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """A (rank, in) and B (out, rank) for each module path inside a layer, `experts.0.w1` or `gate`, of all layers."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer in range(LAYERS):
        for name in names:
            out, in_ = SHAPES[name.rpartition(".")[2]]
            a, b = (torch.randn(*shape, generator=generator) * 0.15 for shape in ((rank, in_), (out, rank)))
            found[f"model.layers.{layer}.{name}"] = a, b
    return found


def every(*names: str) -> list[str]:
    """The paths of the experts' modules of these names."""
    return [f"experts.{expert}.{name}" for expert in range(EXPERTS) for name in names]


def save_separate(
    directory: Path,
    factors: dict[str, tuple[Tensor, Tensor]],
    parent: str = "block_sparse_moe",
    **fields: Any,  # fields of adapter_config.json
) -> Path:
    """An adapter of single experts' modules, as transformers 4 names them below `parent`."""
    tensors: dict[str, Tensor] = {}
    for path, (a, b) in factors.items():
        head, layer, name = path[: len("model.layers")], *path[len("model.layers.") :].split(".", 1)
        stem = f"base_model.model.{head}.{layer}.{parent}.{name}"
        tensors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
    return save_files(directory, tensors, **fields)


def save_files(directory: Path, tensors: dict[str, Tensor], **fields: Any) -> Path:  # as above
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **fields}))
    return directory


@torch.inference_mode()
def logits_of(model: Any, tokens: list[int]) -> Tensor:  # transformers and PEFT are not checked
    logits: Tensor = model(input_ids=torch.tensor([tokens])).logits[0]
    return logits


def peft_logits(base: TinyMixtral, adapter: Path, tokens: list[int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT repeats its warnings on loading
        return logits_of(PeftModel.from_pretrained(base.load(), adapter).eval(), tokens)


def save_again(base: TinyMixtral, adapter: Path, directory: Path) -> Path:
    """The adapter as the installed PEFT writes it after it has loaded it, in the fused form."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT repeats its warnings on loading
        PeftModel.from_pretrained(base.load(), adapter).save_pretrained(directory)
    return directory


def merged_logits(
    base: TinyMixtral, factors: dict[str, tuple[Tensor, Tensor]], scale: float, tokens: list[int]
) -> Tensor:
    """Logits of transformers with the factors added into the weights: what each module's LoRA means."""
    model = base.load()
    with torch.no_grad():
        for path, (a, b) in factors.items():
            layer, name = path.removeprefix("model.layers.").split(".", 1)
            part = weight_of(model, int(layer), name)
            part += scale * b @ a
    return logits_of(model, tokens)


def weight_of(model: Any, layer: int, name: str) -> Tensor:  # transformers is not checked
    """The weight of a module, a view into the fused parameter."""
    mlp = model.model.layers[layer].mlp
    if name == "gate":
        weight: Tensor = mlp.gate.weight
        return weight
    _, expert, kind = name.split(".")
    if kind == "w2":
        return mlp.experts.down_proj[int(expert)]  # type: ignore[no-any-return]  # transformers is not checked
    both = mlp.experts.gate_up_proj[int(expert)]
    return both[:INNER] if kind == "w1" else both[INNER:]  # type: ignore[no-any-return]  # as above
