"""Tiny random adapters with a classification head, made by PEFT, and what transformers and PEFT compute with them."""

import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from tests.support.tiny import TinyBase, train_randomly

_CLASSES = {"SEQ_CLS": AutoModelForSequenceClassification, "TOKEN_CLS": AutoModelForTokenClassification}


def load_classifier(base: TinyBase, task: str, num_labels: int) -> Any:  # a model of transformers
    return _CLASSES[task].from_pretrained(base.directory, num_labels=num_labels, dtype=torch.float32).eval()


def make_classifier(base: TinyBase, folder: Path, config: LoraConfig, num_labels: int, *, seed: int = 0) -> Path:
    """Save an adapter of random weights with a head, in PEFT's own format; `config.task_type` is the task."""
    model = get_peft_model(load_classifier(base, str(config.task_type), num_labels), copy.deepcopy(config))
    train_randomly(model, seed)
    model.save_pretrained(folder)
    return folder


@torch.inference_mode()
def oracle_classes(base: TinyBase, adapter: Path, task: str, num_labels: int, tokens: list[int]) -> Tensor:
    """Return the logits of transformers and PEFT in float32: (labels,) of a text, (tokens, labels) of its tokens."""
    model = PeftModel.from_pretrained(load_classifier(base, task, num_labels), adapter).eval()
    logits: Tensor = model(input_ids=torch.tensor([tokens])).logits[0]
    return logits


@torch.inference_mode()
def oracle_hidden(base: TinyBase, adapter: Path | None, tokens: list[int]) -> Tensor:
    """Return the final hidden states of transformers and PEFT in float32, after the last norm: (tokens, hidden)."""
    model: Any = base.load()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    hidden: Tensor = model(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states[-1][0]
    return hidden
