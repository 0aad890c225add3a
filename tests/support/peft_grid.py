"""Figure A6: PEFT's configurations, saved by PEFT itself, and how far our logits are from its own in float32."""

import copy
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from manylora.models.llama import LlamaModel
from tests.support.forward import place, run
from tests.support.tiny import ALL, VOCAB, TinyBase, make_base, train_randomly

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ADDED = 5
INVOCATION = [31, 7]
ACTIVATED: dict[str, Any] = {"alora_invocation_tokens": INVOCATION, "task_type": "CAUSAL_LM"}


@dataclass(frozen=True)
class Case:
    """One configuration: the fields of `LoraConfig`, whether the base's head is tied, and tokens that are added."""

    fields: dict[str, Any] = field(default_factory=dict)
    is_tied: bool = False
    added: int = 0


def _case(*, is_tied: bool = False, added: int = 0, **fields: Any) -> Case:  # LoraConfig's own fields
    return Case({"r": 4, "lora_alpha": 8, "target_modules": ALL, **fields}, is_tied, added)


GRID: dict[str, Case] = {
    **{f"rank {rank}": _case(r=rank, lora_alpha=2 * rank) for rank in (1, 2, 3, 6, 8, 12, 24, 64)},
    **{f"only {name}": _case(target_modules=[name]) for name in ALL},
    "attention": _case(target_modules=ATTENTION),
    "feed-forward": _case(target_modules=["gate_proj", "up_proj", "down_proj"]),
    "part of each fused product": _case(target_modules=["k_proj", "up_proj"]),
    "all-linear": _case(target_modules="all-linear"),
    "all-linear but one": _case(target_modules="all-linear", exclude_modules=["down_proj"]),
    "one expression": _case(target_modules=r".*\.(0|2)\.(self_attn\.(q|v)|mlp\.down)_proj"),
    "some layers": _case(layers_to_transform=[0, 2]),
    "one layer": _case(layers_to_transform=1, layers_pattern="layers"),
    "rank-stabilised": _case(r=8, use_rslora=True),
    "rank pattern": _case(rank_pattern={"q_proj": 12, r"layers\.1\.mlp\..*": 6}),
    "alpha pattern": _case(alpha_pattern={"v_proj": 2, r"layers\.[02]\.self_attn\.o_proj": 32}),
    "both patterns, rank-stabilised": _case(
        use_rslora=True, rank_pattern={"gate_proj": 16}, alpha_pattern={"up_proj": 2, "gate_proj": 5}
    ),
    "alpha 0": _case(lora_alpha=0),
    "fan_in_fan_out": _case(fan_in_fan_out=True),
    "bias all": _case(bias="all"),
    "bias lora_only": _case(bias="lora_only"),
    "dropout": _case(lora_dropout=0.3),
    "gaussian start": _case(init_lora_weights="gaussian"),
    "orthogonal start": _case(init_lora_weights="orthogonal"),
    "any start": _case(init_lora_weights=False),
    "LoRA bias": _case(lora_bias=True),
    "LoRA bias on some": _case(lora_bias=True, target_modules=["o_proj", "down_proj"], use_rslora=True),
    "LoRA bias on the head": _case(lora_bias=True, target_modules=["q_proj", "lm_head"]),
    "DoRA": _case(use_dora=True),
    "DoRA on attention": _case(use_dora=True, target_modules=ATTENTION, r=12),
    "DoRA, rank-stabilised, patterns": _case(use_dora=True, use_rslora=True, rank_pattern={"q_proj": 9}),
    "DoRA on some layers": _case(use_dora=True, layers_to_transform=[1]),
    "DoRA on the head": _case(use_dora=True, target_modules=["lm_head", "v_proj"]),
    "DoRA on the embedding": _case(use_dora=True, target_modules=["embed_tokens"]),
    "DoRA on both ends, tied": _case(use_dora=True, target_modules=["embed_tokens", "lm_head"], is_tied=True),
    "head": _case(target_modules=["lm_head"]),
    "head, tied": _case(target_modules=["lm_head", "q_proj"], is_tied=True),
    "embedding": _case(target_modules=["embed_tokens"]),
    "embedding, tied": _case(target_modules=["embed_tokens", "v_proj"], is_tied=True),
    "embedding, tied together": _case(target_modules=["embed_tokens"], is_tied=True, ensure_weight_tying=True),
    "both ends": _case(target_modules=[*ALL, "embed_tokens", "lm_head"]),
    "both ends, patterns": _case(
        target_modules=["embed_tokens", "lm_head"], rank_pattern={"lm_head": 7}, alpha_pattern={"embed_tokens": 3}
    ),
    "saved embedding": _case(modules_to_save=["embed_tokens"]),
    "saved embedding, tied": _case(modules_to_save=["embed_tokens"], is_tied=True),
    "saved embedding, tied together": _case(modules_to_save=["embed_tokens"], is_tied=True, ensure_weight_tying=True),
    "saved head": _case(modules_to_save=["lm_head"]),
    "saved head, tied": _case(modules_to_save=["lm_head"], is_tied=True),
    "saved ends": _case(modules_to_save=["embed_tokens", "lm_head"], target_modules=ATTENTION),
    "saved norms": _case(modules_to_save=["input_layernorm", "post_attention_layernorm", "norm"]),
    "saved norms of one kind": _case(modules_to_save=["post_attention_layernorm"], target_modules=["q_proj"]),
    "saved final norm and head": _case(modules_to_save=["model.norm", "lm_head"]),
    "trained tokens": _case(trainable_token_indices=[31, 3, 198]),
    "trained tokens, tied": _case(trainable_token_indices=[31, 3, 7], is_tied=True),
    "trained tokens at both ends": _case(trainable_token_indices={"embed_tokens": [3, 5], "lm_head": [4, 3, 100]}),
    "trained tokens at both ends, tied": _case(
        trainable_token_indices={"embed_tokens": [3, 31], "lm_head": [3, 31]}, is_tied=True
    ),
    "different trained tokens at both ends, tied": _case(
        trainable_token_indices={"embed_tokens": [3, 5], "lm_head": [4, 31]}, is_tied=True
    ),
    "trained tokens of the head, tied": _case(trainable_token_indices={"lm_head": [4, 31]}, is_tied=True),
    "trained tokens with DoRA": _case(trainable_token_indices=[7, 31], use_dora=True, is_tied=True),
    "added tokens": _case(added=ADDED),
    "added tokens, tied": _case(added=ADDED, is_tied=True),
    "added tokens, trained ends": _case(added=ADDED, modules_to_save=["embed_tokens", "lm_head"]),
    "added tokens, trained rows": _case(added=2, trainable_token_indices=[VOCAB, VOCAB + 1, 7]),
    "added tokens, trained rows, tied": _case(
        added=2, trainable_token_indices=[VOCAB, VOCAB + 1, 7], target_modules=["q_proj"], is_tied=True
    ),
    "added tokens, LoRA on the head, tied": _case(added=3, target_modules=["lm_head", "q_proj"], is_tied=True),
    "added tokens, LoRA on the embedding, tied": _case(
        added=3, target_modules=["embed_tokens", "k_proj"], is_tied=True
    ),
    "added tokens, saved ends, tied together": _case(
        added=3, modules_to_save=["embed_tokens"], ensure_weight_tying=True, target_modules=["q_proj"], is_tied=True
    ),
    "added tokens, DoRA on both ends, tied": _case(
        added=3, use_dora=True, target_modules=["embed_tokens", "lm_head", "q_proj"], is_tied=True
    ),
    "added tokens, LoRA on both ends": _case(added=3, target_modules=["embed_tokens", "lm_head", "k_proj"]),
    "activated": _case(**ACTIVATED),
    "activated, attention, rank 8": _case(**ACTIVATED, target_modules=ATTENTION, r=8),
    "activated, rank-stabilised": _case(**ACTIVATED, use_rslora=True),
    "activated, not invoked": _case(**{**ACTIVATED, "alora_invocation_tokens": [190, 191]}),
    "activated, one token": _case(**{**ACTIVATED, "alora_invocation_tokens": [7]}),
}
WITHOUT_EFFECT = ("alpha 0", "activated, not invoked")


def prompt_of(case: Case) -> list[int]:
    """Twenty tokens with the invocation twice, and those that the case adds."""
    start = [(11 * position) % 190 + 3 for position in range(7)]
    return [*start, *INVOCATION, 5, 7, *INVOCATION, 3, 90, 198, *range(VOCAB, VOCAB + case.added), 17]


def make_bases(folder: Path) -> dict[bool, TinyBase]:
    """One base whose head is its own (False), and one whose head is the embedding (True)."""
    return {tied: make_base(folder / f"tied-{tied}", seed=3, tie_word_embeddings=tied) for tied in (False, True)}


def save_case(case: Case, base: TinyBase, folder: Path, seed: int) -> None:
    """An adapter of this configuration, every trained value random, as PEFT saves it."""
    model = _resized(base, case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of uncommon combinations, which are the ones wanted here
        tuned = get_peft_model(model, LoraConfig(**copy.deepcopy(case.fields)))
        train_randomly(tuned, seed)
        tuned.save_pretrained(folder)


@torch.inference_mode()
def peft_logits(case: Case, base: TinyBase, folder: Path) -> Tensor:
    """(tokens, vocabulary) of transformers and PEFT in float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT repeats its warnings on loading
        model: Any = PeftModel.from_pretrained(_resized(base, case), folder).eval()
    logits: Tensor = model(input_ids=torch.tensor([prompt_of(case)])).logits[0]
    return logits


def our_logits(case: Case, base: TinyBase, folder: Path, model: LlamaModel) -> Tensor:
    """The same from our forward pass, beside rows of the base."""
    placed = place(folder, model.spec, model.kernels, base.directory)
    return run(model, [([3, 4, 5], None), (prompt_of(case), placed), ([9, 8], None)])[1]


def _resized(base: TinyBase, case: Case) -> Any:  # transformers is not checked
    model = base.load()
    if case.added:
        torch.manual_seed(11)
        model.resize_token_embeddings(model.config.vocab_size + case.added, mean_resizing=False)
    return model
