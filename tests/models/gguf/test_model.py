"""A GGUF file as a base: the logits of transformers, metadata that mean another model, and damaged files."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    Qwen3MoeForCausalLM,
    SmolLM3ForCausalLM,
)

from manylora.errors import ManyloraError, ModelNotFound, ModelUnsupported
from manylora.models.checkpoint_files import checked_entries, fingerprint, storage_formats
from manylora.models.checkpoints.stored import widened
from manylora.models.fetch.catalog import resolve, served_name
from manylora.models.fetch.gguf_import import write_texts
from manylora.models.fetch.pull import pull
from manylora.models.gguf.file import GgufFile
from manylora.models.gguf.parts import read_model
from manylora.models.gguf.tensors import read_gguf
from manylora.models.spec import read_spec
from manylora.models.text.tokenizer import Tokenizer
from manylora.models.weights import load_weights
from tests.kernels.cases import native
from tests.kernels.eager import eager
from tests.models.gguf.tiny_gguf import Kind, write_model
from tests.models.test_llama import SMALL, TOKENS, TOLERANCE, expected_logits, load, run_in_chunks

CONFIG: dict[str, Any] = {**SMALL, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}


def random_model(**changes: Any) -> Any:  # transformers is not type-checked here
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**CONFIG, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=1.0 if parameter.ndim == 1 else 0.0, std=0.15)
    return model.eval()


def save(file: Path, model: Any, **options: Any) -> Path:
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("inv_freq")}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    write_model(file, {**CONFIG, **options.pop("config", {})}, tensors, **options)
    return file


CHANGES: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "wide_heads": {"head_dim": 32},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "rope_theta": 1e4,
        }
    },
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_theta": 1e4,
        }
    },
}


def add_scaling(name: str, model: Any) -> Callable[[gguf.GGUFWriter], None]:
    def add(writer: gguf.GGUFWriter) -> None:
        if name == "llama3":
            plain = 1e4 ** -(torch.arange(0, 16, 2).float() / 16)
            factors = plain / model.model.rotary_emb.inv_freq
            writer.add_tensor("rope_freqs.weight", factors.numpy().astype(np.float32))
        elif name in ("linear", "yarn"):
            writer.add_rope_scaling_type(gguf.RopeScalingType(name))
            writer.add_rope_scaling_factor(4.0)
            if name == "yarn":
                writer.add_rope_scaling_orig_ctx_len(64)

    return add


@pytest.mark.parametrize("name", CHANGES)
def test_a_gguf_file_gives_the_logits_of_its_model(name: str, tmp_path: Path) -> None:
    oracle = random_model(**CHANGES[name])
    config = {"head_dim": 32} if name == "wide_heads" else {}
    file = save(tmp_path / "tiny.gguf", oracle, config=config, change=add_scaling(name, oracle))
    directory = pull(str(file), tmp_path / "cache")
    found = run_in_chunks(load(directory), TOKENS, [len(TOKENS)])
    torch.testing.assert_close(found, expected_logits(oracle, TOKENS), rtol=0, atol=TOLERANCE)


ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "rms_norm_eps": 1e-6}
SMOLLM3 = {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0, **ROTARY}  # in place of ids in 128,256 tokens
FAMILIES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "mistral": ("llama", MistralForCausalLM, {"sliding_window": 7}),
    "llama with biases": ("llama", LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}),
    "mixtral": ("llama", MixtralForCausalLM, {"num_local_experts": 4, "num_experts_per_tok": 2, **ROTARY}),
    "qwen2": ("qwen2", Qwen2ForCausalLM, {}),
    "qwen3": ("qwen3", Qwen3ForCausalLM, {"head_dim": 32}),
    "qwen3moe": (
        "qwen3moe",
        Qwen3MoeForCausalLM,
        {
            "head_dim": 32,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
        },
    ),
    "smollm3": ("smollm3", SmolLM3ForCausalLM, {"num_hidden_layers": 5, "no_rope_layer_interval": 4, **SMOLLM3}),
    "smollm3 with biases": ("smollm3", SmolLM3ForCausalLM, {"attention_bias": True, "mlp_bias": True, **SMOLLM3}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_each_architecture_gives_the_logits_of_its_model(name: str, tmp_path: Path) -> None:
    architecture, make, fields = FAMILIES[name]
    oracle = make(make.config_class(**{**CONFIG, **fields}))
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.normal_(mean=1.0 if parameter.ndim == 1 else 0.0, std=0.15)

    def own_fields(writer: gguf.GGUFWriter) -> None:
        if "sliding_window" in fields:
            writer.add_sliding_window(fields["sliding_window"])
        if "num_local_experts" in fields:
            writer.add_expert_count(fields["num_local_experts"])
            writer.add_expert_used_count(fields["num_experts_per_tok"])
        if "num_experts" in fields:
            writer.add_expert_count(fields["num_experts"])
            writer.add_expert_used_count(fields["num_experts_per_tok"])
            writer.add_expert_feed_forward_length(fields["moe_intermediate_size"])

    file = save(tmp_path / "tiny.gguf", oracle.eval(), architecture=architecture, config=fields, change=own_fields)
    found = run_in_chunks(load(pull(str(file), tmp_path / "cache")), TOKENS, [len(TOKENS)])
    torch.testing.assert_close(found, expected_logits(oracle, TOKENS), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "F16", "BF16"])
def test_a_quantised_file_gives_the_weights_of_the_gguf_package(kind: str, tmp_path: Path) -> None:
    file = save(tmp_path / "tiny.gguf", random_model(), kind=kind)
    directory = resolve(str(file), tmp_path / "cache")
    entries = checked_entries(directory, read_spec(directory))
    assert storage_formats(entries) == f"{kind}, F32"
    for tensor in gguf.GGUFReader(file).tensors:
        if tensor.name in ("blk.1.attn_v.weight", "blk.0.ffn_down.weight", "token_embd.weight"):
            names = {"blk.1.attn_v.weight": "model.layers.1.self_attn.v_proj.weight"}
            names |= {"blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight"}
            stored = entries[names.get(tensor.name, "model.embed_tokens.weight")]
            expected = gguf.dequantize(tensor.data, tensor.tensor_type)
            assert np.array_equal(widened(stored.rows(3, stored.shape[0])), expected[3:])


def test_rows_of_heads_are_the_same_read_whole_and_in_pieces(tmp_path: Path) -> None:
    directory = resolve(str(save(tmp_path / "tiny.gguf", random_model())), tmp_path / "cache")
    stored = checked_entries(directory, read_spec(directory))["model.layers.0.self_attn.q_proj.weight"]
    whole = stored.rows(0, 64)
    pieces = [stored.rows(first, min(64, first + 7)) for first in range(0, 64, 7)]
    assert np.array_equal(np.concatenate(pieces), whole)


def test_a_folder_with_one_file_means_that_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    file = save(tmp_path / "folder" / "tiny-Q8_0.gguf", random_model())
    directory = resolve(str(tmp_path / "folder"), tmp_path / "cache")
    assert directory == resolve(str(file), tmp_path / "cache") == pull(str(directory), tmp_path / "cache")
    assert served_name(str(file), directory) == "tiny-Q8_0"
    assert served_name(str(tmp_path / "folder"), directory) == "folder"
    assert served_name(f"{tmp_path}/folder/", directory) == "folder"
    assert Tokenizer(directory).eos_ids == (0,)
    (tmp_path / "folder" / "other.gguf").write_bytes(b"")
    with pytest.raises(ModelUnsupported, match=r"other\.gguf, tiny-Q8_0\.gguf"):
        resolve(str(tmp_path / "folder"), tmp_path / "cache")


@pytest.mark.parametrize(("kind", "warned"), [("BF16", []), ("F16", ["from=F16 to=bfloat16"]), ("F32", ["from=F32"])])
def test_rounded_weights_are_told_and_float32_of_norms_and_routers_is_not(
    kind: str, warned: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    oracle = MixtralForCausalLM(MixtralConfig(**{**CONFIG, **experts, **ROTARY}))

    def own_fields(writer: gguf.GGUFWriter) -> None:
        writer.add_expert_count(4)
        writer.add_expert_used_count(2)

    kinds = {f"blk.{layer}.ffn_gate_inp.weight": "F32" for layer in range(2)}
    file = save(tmp_path / "tiny.gguf", oracle, config=experts, kind=kind, kinds=kinds, change=own_fields)
    directory = resolve(str(file), tmp_path / "cache")
    load_weights(directory, read_spec(directory), eager(native(2)))
    found = [record.getMessage() for record in caplog.records if "rounded" in record.getMessage()]
    assert len(found) == len(warned)
    assert all(said in message for said, message in zip(warned, found, strict=True))


@pytest.mark.parametrize("find", [resolve, pull])
def test_a_file_that_is_not_there_is_no_repository(find: Callable[[str, Path], Path], tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"there is no file org/model\.gguf"):
        find("org/model.gguf", tmp_path)


def test_files_beside_it_count_before_the_metadata(tmp_path: Path) -> None:
    file = save(tmp_path / "tiny.gguf", random_model())
    before = resolve(str(file), tmp_path / "cache")
    config = json.loads((before / "config.json").read_text()) | {"eos_token_id": 7}
    (tmp_path / "config.json").write_text(json.dumps(config))
    after = resolve(str(file), tmp_path / "cache")
    assert after != before
    assert read_spec(after).eos_token_ids == (7,)


def test_a_gguf_file_beside_safetensors_is_refused(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    save(tmp_path / "tiny.gguf", random_model())
    with pytest.raises(ModelUnsupported, match=r"model\.safetensors and tiny\.gguf"):
        checked_entries(tmp_path, read_spec(tmp_path))


def test_the_fingerprint_depends_on_the_file(tmp_path: Path) -> None:
    found: set[str] = set()
    for name, model in (("one", random_model()), ("two", random_model(rms_norm_eps=1e-6))):
        with torch.no_grad():
            model.lm_head.weight[0, 0] = len(name) + len(found)
        directory = resolve(str(save(tmp_path / f"{name}.gguf", model)), tmp_path / "cache")
        found.add(fingerprint(directory, read_spec(directory)))
    assert len(found) == 2


# ── files that are refused ───────────────────────────────────────────────────────────────────────────────────────────

REFUSED: dict[str, tuple[Callable[[gguf.GGUFWriter], object], str]] = {
    "experts without a choice": (lambda writer: writer.add_expert_count(8), "llama.expert_used_count = None"),
    "scaled logits": (lambda writer: writer.add_logit_scale(0.5), "llama.logit_scale = 0.5"),
    "experts that all rows share": (lambda writer: writer.add_expert_shared_count(1), "llama.expert_shared_count = 1"),
    "half of a head": (lambda writer: writer.add_rope_dimension_count(8), "llama.rope.dimension_count = 8"),
    "long rope": (
        lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE),
        "llama.rope.scaling.type = 'longrope'",
    ),
    "other factors": (
        lambda writer: writer.add_tensor("rope_freqs.weight", np.linspace(1, 8, 8, dtype=np.float32)),
        "put the model's config.json beside",
    ),
    "a count that is a text": (
        lambda writer: writer.add_string("split.count", "3"),
        "split.count = '3' must be a number",
    ),
    "a part of a model": (lambda writer: writer.add_uint16("split.count", 3), "one of 3 parts"),
    "a tensor of two bits": (
        lambda writer: writer.add_tensor("blk.9.ffn_up.weight", np.zeros((1, 84), np.uint8), raw_dtype=Kind.Q2_K),
        "blk.9.ffn_up.weight has the storage type Q2_K",
    ),
    "a tensor of an i-quant": (
        lambda writer: writer.add_tensor("blk.9.ffn_up.weight", np.zeros((1, 136), np.uint8), raw_dtype=Kind.IQ4_XS),
        "IQ4_XS",
    ),
    "a tensor of another model": (
        lambda writer: writer.add_tensor("blk.0.ssm_conv1d.weight", np.zeros((2, 4), np.float32)),
        "blk.0.ssm_conv1d.weight belongs to no supported architecture",
    ),
    "an expert of a dense model": (
        lambda writer: writer.add_tensor("blk.0.ffn_gate.3.weight", np.zeros((2, 4), np.float32)),
        "does not use: model.layers.0.block_sparse_moe.experts.3.w1.weight",
    ),
    "a layer too many": (
        lambda writer: writer.add_tensor("blk.2.ffn_up.weight", np.zeros((2, 4), np.float32)),
        "does not use: model.layers.2.mlp.up_proj.weight",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_means_another_model_is_refused_by_name(name: str, tmp_path: Path) -> None:
    change, said = REFUSED[name]
    file = save(tmp_path / "tiny.gguf", random_model(), change=change)
    with pytest.raises(ModelUnsupported) as caught:
        pull(str(file), tmp_path / "cache")
    assert said in caught.value.message
    assert "tiny.gguf" in caught.value.message or "checkpoint" in caught.value.message


@pytest.mark.parametrize("name", ["gemma2", "qwen2moe"])
def test_another_architecture_is_refused_by_name(name: str, tmp_path: Path) -> None:
    file = save(tmp_path / "tiny.gguf", random_model(), architecture=name)
    with pytest.raises(ModelUnsupported, match=rf"general\.architecture = '{name}'"):
        resolve(str(file), tmp_path / "cache")


def replace(data: bytes, name: bytes, change: Callable[[bytes], bytes], size: int) -> bytes:
    """Change the bytes after a name in the table of tensors."""
    at = data.index(name) + len(name)
    return data[:at] + change(data[at : at + size]) + data[at + size :]


NAME = b"blk.1.ffn_norm.weight"  # followed by dimensions (4), size (8), type (4) and offset (8)
DAMAGES: dict[str, tuple[Callable[[bytes], bytes], list[str]]] = {
    "cut short": (lambda data: data[:-100], ["ends at byte", "fetch it again"]),
    "cut inside the metadata": (lambda data: data[:300], []),
    "empty": (lambda data: b"", ["cannot be read as GGUF"]),
    "another magic": (lambda data: b"GGML" + data[4:], ["version 2 or 3"]),
    "version 1": (lambda data: data[:4] + b"\1" + data[5:], ["version 2 or 3"]),
    "an offset beyond the file": (
        lambda data: replace(data, NAME, lambda entry: entry[:16] + (1 << 40).to_bytes(8, "little"), 24),
        [NAME.decode(), "ends at byte"],
    ),
    "an offset of another tensor": (
        lambda data: replace(data, NAME, lambda entry: entry[:16] + bytes(8), 24),
        ["overlap"],
    ),
    "an offset between the lines": (
        lambda data: replace(data, NAME, lambda entry: entry[:16] + (4).to_bytes(8, "little"), 24),
        [NAME.decode(), "offset 4"],
    ),
    "a huge size": (
        lambda data: replace(data, NAME, lambda entry: entry[:4] + (1 << 60).to_bytes(8, "little"), 12),
        [NAME.decode(), "ends at byte"],
    ),
    "many dimensions": (lambda data: replace(data, NAME, lambda entry: b"\xff\xff\xff\xff", 4), ["4294967295"]),
    "an unknown type": (
        lambda data: replace(data, NAME, lambda entry: entry[:12] + (99).to_bytes(4, "little"), 16),
        [NAME.decode(), "number 99"],
    ),
    "a name twice": (lambda data: data.replace(NAME, NAME.replace(b"1", b"0")), ["blk.0.ffn_norm.weight twice"]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_refused_with_file_and_value(name: str, tmp_path: Path) -> None:
    change, said = DAMAGES[name]
    file = save(tmp_path / "tiny.gguf", random_model())
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ModelUnsupported) as caught:
        GgufFile(file)
    assert [part for part in (str(file), *said) if part not in caught.value.message] == [], caught.value.message


@pytest.mark.parametrize("name", ["gone.gguf", "folder.gguf"])
def test_what_is_no_file_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(ManyloraError, match=name):
        GgufFile(tmp_path / name)


def test_three_hundred_mutants_are_read_or_refused(tmp_path: Path) -> None:
    """Bytes of the metadata changed, removed and added: no other exception, and no time or memory without bound."""
    data = save(tmp_path / "whole.gguf", random_model()).read_bytes()
    draw, end = random.Random(0), data.index(NAME) + 200
    file, found = tmp_path / "mutant.gguf", 0
    for number in range(300):
        mutant = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(end)
            numbers = (0, 1, 5, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
            new = (
                draw.randbytes(1),
                draw.choice(numbers).to_bytes(8, "little"),
                b"",
                draw.randbytes(draw.randint(1, 9)),
            )
            mutant[at : at + draw.choice((0, 1, 8))] = draw.choice(new)
        file.write_bytes(mutant)
        try:
            texts = tmp_path / str(number)
            texts.mkdir()
            write_texts(read_model(file), texts)
            read_gguf(file)
            found += 1
        except ModelUnsupported:
            continue
    assert 0 < found < 300
