"""Adapters with text files of their own, as transformers saves them, over a tiny base with a byte-level tokenizer."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken
from transformers import AutoTokenizer, LlamaForCausalLM

from tests.models.tiny_tokenizers import save_byte_level
from tests.support.tiny import TinyBase, make_adapter, make_base, train_randomly

SIZE = 331
"""Tokens of the base's tokenizer, all of them in its embedding."""
BASE_TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
OWN_TEMPLATE = "{{ bos_token }}{% for m in messages %}<tool>{{ m['role'] | upper }}: {{ m['content'] }}{% endfor %}"
ADDED = (
    AddedToken("<tool>", special=True, normalized=False),
    AddedToken("<call>", special=False, normalized=False),
    AddedToken("two words", special=False, normalized=True, lstrip=True),
    AddedToken("né", special=False, normalized=False, single_word=True),
)


def make_text_base(folder: Path) -> TinyBase:
    base = make_base(folder, vocab_size=SIZE)
    save_byte_level(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": BASE_TEMPLATE}))
    # The base names tokens that none of its generations comes to, so that only an adapter ends one.
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": 0, "bos_token_id": 1}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    return base


def plain_adapter(base: TinyBase, folder: Path) -> Path:
    """An adapter without text files; all have the same weights, which PEFT saves once."""
    first = base.directory.parent / "plain-weights"
    if not first.exists():
        make_adapter(base, first, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), seed=1)
    shutil.copytree(first, folder)
    return folder


def save_tokenizer_for(base: Path, folder: Path, change: Callable[[Any], None]) -> Any:  # transformers' own class
    """Load the base's tokenizer, change it, and save it beside the adapter; returns it as it is loaded from there."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def add_tokens(tokenizer: Any) -> None:  # transformers' own class
    tokenizer.add_tokens(list(ADDED))
    tokenizer.chat_template = OWN_TEMPLATE


def speaking_adapter(base: TinyBase, folder: Path) -> Any:  # transformers' own class
    """An adapter that adds `ADDED`, likes to say them, and has a template of its own; returns its tokenizer."""
    model = LlamaForCausalLM.from_pretrained(base.directory, dtype=torch.float32)
    model.resize_token_embeddings(SIZE + len(ADDED), mean_resizing=False)
    with torch.no_grad():
        torch.manual_seed(5)
        for row in range(SIZE, SIZE + len(ADDED)):
            model.lm_head.weight[row] = 1.5 * torch.randn(model.config.hidden_size)
            model.model.embed_tokens.weight[row] = 0.15 * torch.randn(model.config.hidden_size)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    train_randomly(tuned, 3)
    tuned.save_pretrained(folder, save_embedding_layers=True)
    return save_tokenizer_for(base.directory, folder, add_tokens)
