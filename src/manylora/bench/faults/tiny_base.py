"""A random Llama of a few thousand weights and an engine on it, for counts of failures; its speed means nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from manylora.bench.faults.adapter_files import HIDDEN, INTERMEDIATE, KV, LAYERS
from manylora.bench.servers import fresh_cache
from manylora.config.folders import cache_dir
from manylora.config.settings import load_config
from manylora.engine.engine import Engine
from manylora.wiring.engine import build_engine

VOCAB, HEAD_DIM = 320, 8
WEIGHT_SPREAD = 0.15
"""Standard deviation of the weights.

It is larger than at initialisation, so that another adapter gives other tokens.
"""


def tiny_engine(base: Path, scratch: Path, root: Path, **flags: Any) -> Engine:  # values of several types
    """Return an engine like that of `manylora serve`, with its ingest process, on the adapters below `root`.

    `scratch` becomes the place of its disk tier; `flags` are settings with `__` for the dot.
    """
    scratch.mkdir()
    (cache_dir() / "kernels").mkdir(parents=True, exist_ok=True)  # compiled once a machine
    fixed = {
        "model.base": str(base),
        "model.kernels": "native",
        "model.threads": 1,
        "model.cache_dir": str(fresh_cache(scratch)),
        "adapters.roots": (str(root),),
        "adapters.hub_endpoint": "",
        "engine.max_model_len": 128,
        "engine.block_size": 4,
        "engine.kv_bytes": 1 << 20,
    }
    settings = {**fixed, **{name.replace("__", "."): value for name, value in flags.items()}}
    return build_engine(load_config(flags=settings, environ={}), lambda line: None)[0]


def write_tiny_base(directory: Path, vocab: int = VOCAB) -> Path:
    """Write the base whose linear layers `adapter_files.SHAPE` describes; the same one each time."""
    directory.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HIDDEN // HEAD_DIM,
        "num_key_value_heads": KV // HEAD_DIM,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (vocab, HIDDEN),
    }
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in _LAYER.items()}
    tensors = {
        name: random.normal(len(shape) == 1, WEIGHT_SPREAD, shape).astype(np.float32) for name, shape in shapes.items()
    }
    save_file(tensors, directory / "model.safetensors")
    _write_tokenizer(directory)
    return directory


_LAYER: dict[str, tuple[int, ...]] = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    "input_layernorm": (HIDDEN,),
    "post_attention_layernorm": (HIDDEN,),
}


def _write_tokenizer(directory: Path) -> None:
    """Write a tokenizer with one token a byte after three special ones. The rest of the vocabulary has no text."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    tokens = ["<unk>", "<s>", "</s>", *sorted(letters)]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(tokens[:3])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "bos_token": "<s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
