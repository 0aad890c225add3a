"""A row of the parity suite on disk: a random base and its adapters, and the logits of transformers and PEFT."""

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.models.parity.rows import Row
from tests.support.tiny import train_randomly

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "rank-16": {"r": 16, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"]},
    "rank-64": {"r": 64, "lora_alpha": 10, "target_modules": "all-linear", "use_rslora": True},
    "dora": {"r": 8, "lora_alpha": 10, "target_modules": ALL, "use_dora": True, "bias": "all"},
    "norms": {
        "r": 4,
        "lora_alpha": 4,
        "target_modules": ["k_proj", "down_proj"],
        "lora_bias": True,
        "bias": "lora_only",
        "modules_to_save": ["input_layernorm", "model.norm"],
    },
}
"""Fields of `LoraConfig` by the adapter's name: ranks differ, and so do the layers that each adapts."""


@dataclass(frozen=True)
class Tiny:
    """The saved files of one row: `base` is a base model's directory, `adapters` has a PEFT folder for each name."""

    row: Row
    base: Path
    adapters: dict[str, Path]

    @cached_property
    def oracles(self) -> dict[str | None, Any]:  # transformers' and PEFT's models
        """The models of transformers in float32, by the adapter's name; None: the base itself."""
        found: dict[str | None, Any] = {None: _load(self.base)}
        for name, folder in self.adapters.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT repeats its warnings on loading
                found[name] = PeftModel.from_pretrained(_load(self.base), folder).eval()
        return found

    @torch.inference_mode()
    def logits(self, adapter: str | None, tokens: list[int]) -> Tensor:
        """(tokens, vocab) float32."""
        logits: Tensor = self.oracles[adapter](input_ids=torch.tensor([tokens])).logits[0]
        return logits


def make_tiny(row: Row, folder: Path) -> Tiny:
    """Save a random base of this row and its adapters."""
    model = AutoModelForCausalLM.from_config(row.config(**row.tiny), dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Larger than the default initialisation, so that a wrong weight shows in the logits.
            parameter.normal_(mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.15)
            if name.endswith(".bias"):
                parameter.mul_(4)
    model.save_pretrained(folder / "base")
    adapters = {}
    for seed, (name, fields) in enumerate(ADAPTERS.items()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns of uncommon combinations, which are the ones wanted here
            tuned = get_peft_model(_load(folder / "base"), LoraConfig(**fields))
            train_randomly(tuned, seed)
            tuned.save_pretrained(folder / name)
        adapters[name] = folder / name
    return Tiny(row, folder / "base", adapters)


def _load(base: Path) -> Any:  # transformers is not type-checked
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
