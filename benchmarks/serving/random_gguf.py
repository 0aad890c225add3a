"""A GGUF file of a Llama in its real shape with random quantised weights, for servers that need no meaning.

The blocks are written as they are stored, so that a 7B model is never held in a wider form.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

SCALE = 0.02
"""Standard deviation of a random weight: that of a fresh Llama."""
CHUNK_BLOCKS = 1 << 18
STORAGE = {"Q4_0": gguf.GGMLQuantizationType.Q4_0, "Q8_0": gguf.GGMLQuantizationType.Q8_0}
# Standard deviation of a block's uniform integers: 16 nibbles around 0, or 256 bytes around 0.
_INTEGERS = {"Q4_0": 4.61, "Q8_0": 73.9}
_BYTES_OF_SCALE = 2
FIRST_BYTE_TOKEN, BYTES = 3, 256


@dataclass(frozen=True)
class LlamaShape:
    """The sizes of a Llama. The defaults are Llama-2-7b's."""

    layers: int = 32
    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 32
    intermediate: int = 11008
    vocab: int = 32000
    positions: int = 4096

    @property
    def matrices(self) -> Iterator[tuple[str, int, int]]:
        """Yield the name, outputs and inputs of each matrix, in the order of a file."""
        kv = self.hidden // self.heads * self.kv_heads
        yield "token_embd", self.vocab, self.hidden
        for layer in range(self.layers):
            block = f"blk.{layer}"
            yield f"{block}.attn_q", self.hidden, self.hidden
            yield f"{block}.attn_k", kv, self.hidden
            yield f"{block}.attn_v", kv, self.hidden
            yield f"{block}.attn_output", self.hidden, self.hidden
            yield f"{block}.ffn_gate", self.intermediate, self.hidden
            yield f"{block}.ffn_up", self.intermediate, self.hidden
            yield f"{block}.ffn_down", self.hidden, self.intermediate
        yield "output", self.vocab, self.hidden

    @property
    def norms(self) -> Iterator[str]:
        yield "output_norm"
        for layer in range(self.layers):
            yield f"blk.{layer}.attn_norm"
            yield f"blk.{layer}.ffn_norm"


def write_random_gguf(file: Path, storage: str, shape: LlamaShape | None = None, *, seed: int = 1) -> None:
    """Write a model whose matrices are all stored as `storage`, a key of `STORAGE`."""
    shape = shape or LlamaShape()
    writer = gguf.GGUFWriter(file, "llama")
    _write_metadata(writer, shape)
    kind = STORAGE[storage]
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    for name in shape.norms:
        writer.add_tensor_info(f"{name}.weight", (shape.hidden,), np.dtype(np.float32), 4 * shape.hidden)
    for name, outputs, inputs in shape.matrices:
        row_bytes = inputs // block * block_bytes
        stored = (outputs, row_bytes)
        writer.add_tensor_info(f"{name}.weight", stored, np.dtype(np.uint8), outputs * row_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _ in shape.norms:
        writer.write_tensor_data(np.ones(shape.hidden, np.float32))
    draw = np.random.default_rng(seed)
    for _, outputs, inputs in shape.matrices:
        blocks = random_blocks(draw, storage, outputs * inputs // block)
        writer.write_tensor_data(blocks.reshape(outputs, inputs // block * block_bytes))
    writer.close()


def random_blocks(draw: np.random.Generator, storage: str, count: int) -> NDArray[np.uint8]:
    """Return (count, bytes of a block): one scale for all, and random integers. Long runs repeat one chunk."""
    _, block_bytes = gguf.GGML_QUANT_SIZES[STORAGE[storage]]
    chunk = np.empty((min(count, CHUNK_BLOCKS), block_bytes), np.uint8)
    scale = np.array([SCALE / _INTEGERS[storage]], np.float16).view(np.uint8)
    chunk[:, :_BYTES_OF_SCALE] = scale
    chunk[:, _BYTES_OF_SCALE:] = draw.integers(0, 256, (len(chunk), block_bytes - _BYTES_OF_SCALE), np.uint8)
    return np.resize(chunk, (count, block_bytes))


def vocabulary(size: int) -> list[str]:
    """Return SentencePiece tokens: the special ones, the bytes, then words that no text contains."""
    special = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(BYTES)]
    words = [f"\u2581w{number}" for number in range(size - len(special) - BYTES)]
    return [*special, *byte_tokens, *words]


def _write_metadata(writer: gguf.GGUFWriter, shape: LlamaShape) -> None:
    writer.add_context_length(shape.positions)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.hidden // shape.heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("llama")
    tokens = vocabulary(shape.vocab)
    writer.add_token_list(tokens)
    writer.add_token_scores([float(-number) for number in range(len(tokens))])
    normal, unknown, control, byte = (
        gguf.TokenType.NORMAL,
        gguf.TokenType.UNKNOWN,
        gguf.TokenType.CONTROL,
        gguf.TokenType.BYTE,
    )
    kinds = [unknown, control, control, *[byte] * BYTES]
    writer.add_token_types([*kinds, *[normal] * (len(tokens) - len(kinds))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
