"""Tiny models in GGUF files, written with the `gguf` package as llama.cpp's converter would have written them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
Kind: Any = gguf.GGMLQuantizationType  # the package ships no type information
Change = Callable[[gguf.GGUFWriter], object]


def random_blocks(rows: int, width: int, kind: str, seed: int) -> "NDArray[np.uint8]":
    """Random stored blocks of finite weights: (rows, bytes of a row)."""
    random = np.random.default_rng(seed)
    weights, size = gguf.GGML_QUANT_SIZES[Kind[kind]]
    blocks = random.integers(0, 256, (rows * width // weights, size), dtype=np.uint8)
    for at in SCALES_AT[kind]:
        scales = (random.standard_normal(len(blocks)) * 0.01).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


SCALES_AT: dict[str, tuple[int, ...]] = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}
"""The places of the float16 numbers in a block of each storage type."""


def gguf_name(name: str) -> str:
    module, _, part = name.rpartition(".")
    if module in TOP:
        return f"{TOP[module]}.{part}"
    _, _, layer, inner = module.split(".", 3)
    if inner == "mlp.gate":
        return f"blk.{layer}.ffn_gate_inp.{part}"
    return f"blk.{layer}.{NAMES[inner]}.{part}"


def interleaved(weight: "NDArray[np.float32]", heads: int) -> "NDArray[np.float32]":
    """Rows of q or k as the file has them: the elements i and i + half of a head side by side."""
    halves = weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_model(
    file: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    architecture: str = "llama",
    kind: str = "F32",
    kinds: Mapping[str, str] | None = None,
    change: Change = lambda writer: None,
    tokenizer: Change | None = None,
    part_tensors: int = 0,
) -> None:
    """Write a model of transformers. Matrices have the type `kind`, or that of `kinds` by name; vectors are F32.

    A type that the `gguf` package does not write holds random weights. `part_tensors` above 0: in parts of as many
    tensors, named after `file`.
    """
    writer = gguf.GGUFWriter(file, architecture, split_max_tensors=part_tensors)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(1e4)
    writer.add_layer_norm_rms_eps(1e-6)
    (tokenizer or byte_tokenizer(config["vocab_size"]))(writer)
    change(writer)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, tensor in tensors.items():
        values = tensor.float().numpy()
        if architecture in ("llama", "smollm3") and (count := heads.get(name.split(".")[-2])):
            values = interleaved(values, count)
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            add_experts(writer, name, values, kind)
        elif values.ndim == 1:
            writer.add_tensor(gguf_name(name), values)
        else:
            own = (kinds or {}).get(gguf_name(name), kind)
            writer.add_tensor(gguf_name(name), stored_as(values, own), raw_dtype=Kind[own])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def stored_as(values: "NDArray[np.float32]", kind: str) -> "NDArray[Any]":
    if kind in ("Q4_K", "Q5_K", "Q6_K"):
        return random_blocks(len(values), values.shape[1], kind, seed=3)
    stored: NDArray[Any] = gguf.quantize(values, Kind[kind])
    return stored


def add_experts(writer: gguf.GGUFWriter, name: str, values: "NDArray[np.float32]", kind: str) -> None:
    """Add the stacks of a layer's experts, (experts, out, in), which transformers holds in two tensors."""
    layer = name.split(".")[2]
    halves = np.split(values, 2, axis=1) if "gate_up" in name else [values]
    for product, stack in zip(("gate", "up") if "gate_up" in name else ("down",), halves, strict=True):
        stored = gguf.quantize(np.ascontiguousarray(stack), Kind[kind])
        writer.add_tensor(f"blk.{layer}.ffn_{product}_exps.weight", stored, raw_dtype=Kind[kind])


def byte_tokenizer(vocab: int) -> Change:
    """A byte-level tokenizer of letters alone, in a vocabulary of any size."""

    def add(writer: gguf.GGUFWriter) -> None:
        letters = [*(chr(0x100 + index) for index in range(vocab - 3)), chr(0x100) + chr(0x101)]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(["<|end|>", "<|start|>", *letters])
        writer.add_token_types([3, 3] + [1] * len(letters))
        writer.add_token_merges([f"{letters[0]} {letters[1]}"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(0)

    return add


def tokenizer_of(directory: Path, *, pre: str | None = None, **fields: Any) -> Change:
    """The tokenizer of a directory in the form of the metadata. `pre` None: SentencePiece, with scores by merges."""
    content = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    added = {token["id"]: token for token in content["added_tokens"]}
    pieces = {index: piece for piece, index in content["model"]["vocab"].items()}
    pieces |= {index: token["content"] for index, token in added.items()}
    merges = [merge if isinstance(merge, list) else merge.split(" ") for merge in content["model"]["merges"]]
    ranks = {"".join(merge): rank for rank, merge in reversed(list(enumerate(merges)))}
    tokens = [pieces[index] for index in range(len(pieces))]

    def kind(index: int) -> int:
        if index in added:
            return 3 if added[index]["special"] else 4
        return 6 if pre is None and tokens[index].startswith("<0x") else 1

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama" if pre is None else "gpt2")
        writer.add_token_list(tokens)
        writer.add_token_types([kind(index) for index in range(len(tokens))])
        if pre is None:
            writer.add_token_scores([-float(ranks.get(token, 1000 + index)) for index, token in enumerate(tokens)])
        else:
            writer.add_tokenizer_pre(pre)
            writer.add_token_merges([" ".join(merge) for merge in merges])
        for name, value in fields.items():
            getattr(writer, f"add_{name}")(value)

    return add
