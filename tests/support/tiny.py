"""Tiny random bases and adapters made by transformers and PEFT: the oracles, and what manylora loads of them."""

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB = 199
BYTE_LEVEL_VOCAB = 340
"""Rows of a base with the tokenizer of `save_byte_level`, which has fewer tokens."""
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class TinyBase:
    """A saved base: `directory` as `manylora serve --base` takes it."""

    directory: Path
    config: LlamaConfig

    def load(self) -> LlamaForCausalLM:
        """The oracle: transformers' own model in float32."""
        return LlamaForCausalLM.from_pretrained(self.directory, dtype=torch.float32).eval()


def make_base(directory: Path, *, seed: int = 0, **changes: Any) -> TinyBase:  # LlamaConfig's own fields
    """Save a random Llama whose sizes are odd on purpose."""
    fields: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = LlamaConfig(**{**fields, **changes})
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than the default initialisation, so that a wrong weight shows in the logits.
            parameter.normal_(mean=1.0 if parameter.ndim == 1 else 0.0, std=0.15)
    model.save_pretrained(directory)
    return TinyBase(directory, config)


def make_adapter(base: TinyBase, directory: Path, config: LoraConfig, *, seed: int = 0) -> Path:
    """Save an adapter of random weights, A and B alike, in PEFT's own format."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT tells that it saves embeddings
        model = get_peft_model(base.load(), copy.deepcopy(config))  # PEFT writes the base's path into what it is given
        train_randomly(model, seed)
        model.save_pretrained(directory)
    return directory


@torch.no_grad()
def train_randomly(model: Any, seed: int) -> None:
    """Give all that PEFT trains other values: matrices new ones, what began as the base's a change."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
        elif "lora_" in name:
            parameter.normal_(std=0.15)
        elif "modules_to_save" in name or "trainable_tokens_delta" in name or is_trained_bias(name, parameter):
            parameter.add_(0.15 * torch.randn_like(parameter))


def is_trained_bias(name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether PEFT trains this bias of the base (`bias` of the config)."""
    return name.endswith(".bias") and parameter.requires_grad


@torch.inference_mode()
def oracle_logits(base: TinyBase, adapter: Path | None, tokens: list[int]) -> Tensor:
    """Logits of transformers (+ PEFT) in float32: (len(tokens), vocab)."""
    model: Any = base.load()  # PEFT's wrapper and the plain model are called alike
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).eval()
    logits: Tensor = model(input_ids=torch.tensor([tokens])).logits[0]
    return logits
