"""The conversion of a Llama model in a GGUF file to safetensors, config and tokenizer files.

Imports without torch. It reads the three storage types of the embedded default: F32, Q8_0 and Q4_1.
"""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manylora.errors import ModelUnsupported
from manylora.kernels.projections import Projection
from manylora.models.fetch.gguf_file import GgufFile, GgufTensor

Floats = NDArray[np.float32]

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": Projection.Q.path,
    "attn_k": Projection.K.path,
    "attn_v": Projection.V.path,
    "attn_output": Projection.O.path,
    "ffn_gate": Projection.GATE.path,
    "ffn_up": Projection.UP.path,
    "ffn_down": Projection.DOWN.path,
}
_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK = 32  # weights that share one scale, in Q4_1 and in Q8_0
_CONTROL_TOKEN = 3  # the token type GGUF gives to special tokens


def convert(file: Path, directory: Path, progress: Callable[[int, int], None]) -> None:
    """Write the model in `file` into `directory`, which exists and is empty.

    Args:    progress, called with (tensors done, tensors)
    Raises:  `ModelUnsupported` for another architecture, tokenizer or storage type
    """
    source = GgufFile(file)

    def field(name: str) -> Any:  # a GGUF value is a number, a text or a list of those
        if name not in source.fields:
            raise ModelUnsupported(f"{file.name} has no {name}")
        return source.fields[name]

    if field("general.architecture") != "llama" or field("tokenizer.ggml.model") != "gpt2":
        raise ModelUnsupported(f"{file.name} is not a Llama model with a byte-level tokenizer")
    config = _config(field, tied="output.weight" not in {tensor.name for tensor in source.tensors})
    _write_json(directory / "config.json", config)
    _write_tokenizer(directory, field)
    _write_json(
        directory / "generation_config.json",
        {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    shapes = {_name(tensor.name): tensor.shape for tensor in source.tensors}
    weights = _weights(source.tensors, config, progress)
    _write_safetensors(directory / "model.safetensors", shapes, weights)


def dequantize(stored: NDArray[np.uint8], kind: str) -> Floats:
    """Return the weights of a tensor's stored bytes, both flat. kind: F32, Q8_0 or Q4_1. Bit-equal to `gguf`'s.

    A Q8_0 block is a float16 scale d and 32 int8 q: w = d·q. A Q4_1 block is float16 d and m and 16 bytes, whose low
    halves are weights 0 to 15 and high halves 16 to 31: w = d·q + m.
    """
    if kind == "F32":
        return stored.view(np.float32)
    if kind == "Q8_0":
        blocks = stored.reshape(-1, 2 + _BLOCK)
        return (blocks[:, 2:].view(np.int8).astype(np.float32) * _halves(blocks, 0)).reshape(-1)
    if kind == "Q4_1":
        blocks = stored.reshape(-1, 4 + _BLOCK // 2)
        weights = np.empty((len(blocks), _BLOCK), np.float32)
        weights[:, :16] = blocks[:, 4:] & 15
        weights[:, 16:] = blocks[:, 4:] >> 4
        weights *= _halves(blocks, 0)
        weights += _halves(blocks, 2)
        return weights.reshape(-1)
    raise ModelUnsupported(f"GGUF storage type {kind} is not supported (known: F32, Q8_0, Q4_1)")


def to_bfloat16(weights: Floats) -> NDArray[np.uint16]:
    """Return the bits of finite float32 values rounded to bfloat16, half to even."""
    bits = np.ascontiguousarray(weights).view(np.uint32)
    return ((bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))) >> np.uint32(16)).astype(np.uint16)


def _halves(blocks: NDArray[np.uint8], offset: int) -> Floats:
    return np.ascontiguousarray(blocks[:, offset : offset + 2]).view(np.float16).astype(np.float32)


def _name(gguf_name: str) -> str:
    if gguf_name in _TOP_NAMES:
        return _TOP_NAMES[gguf_name]
    parts = gguf_name.split(".")
    if len(parts) != 4 or parts[0] != "blk" or parts[2] not in _LAYER_NAMES or parts[3] != "weight":
        raise ModelUnsupported(f"GGUF tensor {gguf_name} belongs to no Llama model")
    return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.weight"


def _weights(
    tensors: list[GgufTensor], config: dict[str, Any], progress: Callable[[int, int], None]
) -> Iterator[tuple[str, bytes]]:
    """Yield each tensor's name and bfloat16 bytes, in the order of the file."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for done, tensor in enumerate(tensors, start=1):
        weight = dequantize(tensor.stored, tensor.kind).reshape(tensor.shape)
        for short, count in heads.items():
            if f".{short}." in tensor.name:
                weight = _rotate_half_order(weight, count)
        yield _name(tensor.name), to_bfloat16(weight).tobytes()
        progress(done, len(tensors))


def _rotate_half_order(weight: Floats, heads: int) -> Floats:
    """Undo GGUF's order of q and k rows, in which the two elements of a rotary pair are neighbours."""
    rows, width = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, width)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, width)


def _write_safetensors(file: Path, shapes: dict[str, tuple[int, ...]], weights: Iterator[tuple[str, bytes]]) -> None:
    """Write bfloat16 tensors one by one; the format's own writer would hold all of them in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        stop = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for (expected, _), (name, data) in zip(shapes.items(), weights, strict=True):
            assert name == expected, f"{name} was written in the place of {expected}"
            stream.write(data)


def _config(field: Callable[[str], Any], *, tied: bool) -> dict[str, Any]:
    heads = int(field("llama.attention.head_count"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": int(field("llama.embedding_length")),
        "intermediate_size": int(field("llama.feed_forward_length")),
        "num_hidden_layers": int(field("llama.block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(field("llama.attention.head_count_kv")),
        "head_dim": int(field("llama.embedding_length")) // heads,
        "vocab_size": len(field("tokenizer.ggml.tokens")),
        "max_position_embeddings": int(field("llama.context_length")),
        "rope_theta": float(field("llama.rope.freq_base")),
        # GGUF keeps it as float32; six digits restore the intended number.
        "rms_norm_eps": float(f"{field('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": int(field("tokenizer.ggml.bos_token_id")),
        "eos_token_id": int(field("tokenizer.ggml.eos_token_id")),
        "pad_token_id": int(field("tokenizer.ggml.padding_token_id")),
        "torch_dtype": "bfloat16",
    }


def _write_tokenizer(directory: Path, field: Callable[[str], Any]) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = field("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = field("tokenizer.ggml.token_type")
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == _CONTROL_TOKEN
        ]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{name: tokens[int(field(f"tokenizer.ggml.{ours}_token_id"))] for name, ours in named.items()},
            "model_max_length": int(field("llama.context_length")),
            "chat_template": field("tokenizer.chat_template"),
            "clean_up_tokenization_spaces": False,
        },
    )


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
