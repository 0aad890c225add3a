"""GGUF → safetensors: bit-equal to the `gguf` package, and a whole small model through both."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from manylora.errors import ModelUnsupported
from manylora.models.checkpoints.stored import widened
from manylora.models.fetch.gguf_import import convert, to_bfloat16
from manylora.models.gguf.file import GgufFile
from manylora.models.text.tokenizer import Tokenizer
from tests.models.test_llama import TOKENS, load, run_in_chunks

HEADS, KV_HEADS, HEAD_DIM, LAYERS, WIDTH = 4, 2, 16, 2, 96
HIDDEN = HEADS * HEAD_DIM
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def quantized(rows: int, width: int, kind: str, seed: int) -> NDArray[np.uint8]:
    """Random stored blocks of finite weights: (rows, bytes of a row)."""
    random = np.random.default_rng(seed)
    head, body = {"Q8_0": (2, 32), "Q4_1": (4, 16)}[kind]
    blocks = random.integers(0, 256, (rows, width // 32, head + body), dtype=np.uint8)
    scales = (random.standard_normal((rows, width // 32, head // 2)) * 0.01).astype(np.float16)
    blocks[..., :head] = scales.view(np.uint8).reshape(rows, width // 32, head)
    return blocks.reshape(rows, -1)


def write_model(file: Path) -> None:
    """A tiny Llama as llama.cpp would have written it."""
    writer = gguf.GGUFWriter(file, "llama")
    alphabet = [*map(chr, range(0x21, 0x7F)), "Ġ", "he"]
    tokens = ["<|end|>", "<|start|>", *alphabet]
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(1e5)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * len(alphabet))
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)

    def add(name: str, rows: int, width: int, kind: str, seed: int) -> None:
        stored = quantized(rows, width, kind, seed)
        writer.add_tensor(name, stored, raw_dtype=gguf.GGMLQuantizationType[kind])

    add("token_embd.weight", len(tokens), HIDDEN, "Q8_0", 1)
    writer.add_tensor("output_norm.weight", np.linspace(0.5, 1.5, HIDDEN, dtype=np.float32))
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(HIDDEN, np.float32))
        shapes = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN), "ffn_down": (HIDDEN, WIDTH)}
        shapes |= {"attn_v": shapes["attn_k"], "attn_output": (HIDDEN, HIDDEN)}
        shapes |= {"ffn_gate": (WIDTH, HIDDEN), "ffn_up": (WIDTH, HIDDEN)}
        for index, (name, (rows, width)) in enumerate(shapes.items()):
            add(f"blk.{layer}.{name}.weight", rows, width, "Q4_1", 10 * layer + index + 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A GGUF file, and the directory it was converted into."""
    work = tmp_path_factory.mktemp("gguf")
    write_model(work / "model.gguf")
    directory = work / "base"
    directory.mkdir()
    seen: list[tuple[int, int]] = []
    convert(work / "model.gguf", directory, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2 + 9 * LAYERS, 2 + 9 * LAYERS)
    return work / "model.gguf", directory


def test_rounding_to_bfloat16_has_the_bits_of_torch() -> None:
    random = np.random.default_rng(0)
    bits = random.integers(0, 0x7F80_0000, 10_000, dtype=np.uint32)  # finite, of any exponent
    values = np.concatenate([bits, bits | 0x8000_0000, (bits & ~np.uint32(0xFFFF)) | 0x8000]).view(np.float32)
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(to_bfloat16(values), expected)


def test_the_reader_finds_what_the_gguf_package_finds(model: tuple[Path, Path]) -> None:
    file, _ = model
    ours, theirs = GgufFile(file), gguf.GGUFReader(file)
    assert ours.fields == {
        name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")
    }
    assert [tensor.name for tensor in ours.tensors] == [tensor.name for tensor in theirs.tensors]
    for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert np.array_equal(widened(mine.rows(0, mine.shape[0])), gguf.dequantize(other.data, other.tensor_type))
        assert mine.shape == tuple(int(size) for size in other.shape[::-1])


def test_q_and_k_rows_come_back_in_rotate_half_order(model: tuple[Path, Path]) -> None:
    file, directory = model
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    converted = load_file(directory / "model.safetensors")
    for short, heads in (("q", HEADS), ("k", KV_HEADS)):
        source = stored[f"blk.1.attn_{short}.weight"]
        interleaved: Any = gguf.dequantize(source.data, source.tensor_type)
        for head in range(heads):
            for pair in range(HEAD_DIM // 2):
                for half in (0, 1):
                    row = interleaved[head * HEAD_DIM + 2 * pair + half]
                    found = converted[f"model.layers.1.self_attn.{short}_proj.weight"]
                    expected = torch.from_numpy(row.copy()).to(torch.bfloat16)
                    assert torch.equal(found[head * HEAD_DIM + half * HEAD_DIM // 2 + pair], expected)


def test_the_converted_directory_is_a_base_that_runs(model: tuple[Path, Path]) -> None:
    _, directory = model
    loaded = load(directory)
    assert (loaded.spec.tie_embeddings, loaded.spec.rope.theta, loaded.spec.norm_eps) == (True, 1e5, 1e-5)
    logits = run_in_chunks(loaded, TOKENS % loaded.spec.vocab, [len(TOKENS)])
    assert bool(logits.isfinite().all())
    tokenizer = Tokenizer(directory)
    assert [tokenizer.piece(token_id) for token_id in tokenizer.encode("he 42")] == ["he", "Ġ", "4", "2"]
    assert tokenizer.eos_ids == (0,)
    assert tokenizer.special_ids == {0, 1}
    assert json.loads((directory / "tokenizer_config.json").read_text())["chat_template"] == TEMPLATE


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGML\x03\0\0\0", b"GGUF\x03\0\0\0" + b"\xff" * 32])
def test_what_is_not_gguf_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ModelUnsupported):
        GgufFile(tmp_path / "x.gguf")
