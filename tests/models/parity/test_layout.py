"""A folder of files as its publisher writes it, in small: shards with an index, and other files beside them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from manylora.models.fetch.catalog import resolve
from manylora.models.fetch.known_bases import KNOWN_BASES
from manylora.models.fetch.pull import pull
from manylora.models.spec import read_spec
from tests.models.parity.published import PUBLISHED
from tests.models.parity.test_published import CLASSES
from tests.models.test_llama import TOKENS, TOLERANCE, expected_logits, load, run_in_chunks, save_random
from tests.models.tiny_tokenizers import save_sentencepiece

INDEX = "model.safetensors.index.json"
BESIDE = ("consolidated.00.pth", "pytorch_model-00001-of-00002.bin", "tokenizer.model", "modeling_mistral_yarn.py")
"""Files that publishers put beside the weights: other copies of them, and code. None is opened."""


def shrunk(config: dict[str, Any]) -> dict[str, Any]:
    """A published config with small sizes. The heads keep their groups, and a vocabulary its odd rest."""
    group = config["num_attention_heads"] // config["num_key_value_heads"]
    sizes = {
        "hidden_size": 32 * group,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2 * group,
        "num_key_value_heads": 2,
        "vocab_size": 320 + config["vocab_size"] % 64,
    }
    return {**config, **sizes}


def write_folder(directory: Path, config: dict[str, Any]) -> Any:  # transformers is not type-checked here
    """Write the files in the published dtype, and return transformers' model of the weights in float32."""
    fields = {name: value for name, value in config.items() if name not in ("auto_map", "torch_dtype")}
    model = CLASSES[config["architectures"][0]](**fields)
    oracle = AutoModelForCausalLM.from_config(model, dtype=getattr(torch, config["torch_dtype"]))
    save_random(directory, oracle, max_shard_size="60KB", save_original_format=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    save_sentencepiece(directory)
    if config["transformers_version"] == "4.31.0":
        add_frequencies(directory)
    for name in BESIDE:
        (directory / name).write_bytes(b"never opened")
    (directory / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}')
    return oracle.float()


def add_frequencies(directory: Path) -> None:
    """Add the rotary frequencies that files of that time have."""
    index = json.loads((directory / INDEX).read_text())
    shard = min(index["weight_map"].values())
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file({**load_file(directory / shard), name: torch.ones(8)}, directory / shard, {"format": "pt"})
    index["weight_map"][name] = shard
    (directory / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("name", [base.name for base in KNOWN_BASES])
def test_the_files_of_a_published_base_give_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    config = shrunk(PUBLISHED[name])
    oracle = write_folder(tmp_path, config)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    assert pull(str(tmp_path), tmp_path / "cache") == resolve(str(tmp_path), tmp_path / "cache") == tmp_path
    assert read_spec(tmp_path).eos_token_ids == (2,)
    found = run_in_chunks(load(tmp_path), TOKENS, [len(TOKENS)])
    torch.testing.assert_close(found, expected_logits(oracle, TOKENS), rtol=0, atol=TOLERANCE)
