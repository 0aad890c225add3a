"""Reading checkpoints: shards, checks with errors that name the tensor, and the base's fingerprint."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from manylora.errors import ModelNotFound, ModelUnsupported
from manylora.kernels.reference import ReferenceKernels
from manylora.models.checkpoint_files import fingerprint, read_entries
from manylora.models.spec import read_spec
from manylora.models.weights import load_weights
from tests.models.test_llama import SMALL, TOKENS, TOLERANCE, expected_logits, load, run_in_chunks, save_random


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_random(tmp_path, LlamaForCausalLM(LlamaConfig(**SMALL)))
    return tmp_path


def rewrite(base: Path, change: Any) -> None:  # a function of the dict of tensors, which returns nothing of use
    tensors = load_file(base / "model.safetensors")
    change(tensors)
    save_file(tensors, base / "model.safetensors")


def load_all(base: Path) -> object:
    return load_weights(base, read_spec(base), ReferenceKernels())


def test_a_sharded_checkpoint_gives_the_same_logits(tmp_path: Path) -> None:
    oracle = save_random(tmp_path, LlamaForCausalLM(LlamaConfig(**SMALL)), max_shard_size="60KB")
    assert len({entry.file for entry in read_entries(tmp_path).values()}) > 2
    found = run_in_chunks(load(tmp_path), TOKENS, [len(TOKENS)])
    torch.testing.assert_close(found, expected_logits(oracle, TOKENS), rtol=0, atol=TOLERANCE)


def test_a_tied_head_is_the_embedding_itself(tmp_path: Path) -> None:
    save_random(tmp_path, LlamaForCausalLM(LlamaConfig(**{**SMALL, "tie_word_embeddings": True})))
    weights = load(tmp_path).weights
    assert weights.head is weights.embed


def test_a_second_copy_of_a_tied_head_is_ignored(tmp_path: Path) -> None:
    save_random(tmp_path, LlamaForCausalLM(LlamaConfig(**{**SMALL, "tie_word_embeddings": True})))

    def add_head(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    rewrite(tmp_path, add_head)
    load_all(tmp_path)


def test_a_missing_tensor_is_named(base: Path) -> None:
    rewrite(base, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelUnsupported, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        load_all(base)


def test_an_unexpected_tensor_is_named(base: Path) -> None:
    rewrite(base, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(48)}))
    with pytest.raises(ModelUnsupported, match=r"does not use: model\.layers\.0\.self_attn\.q_proj\.bias"):
        load_all(base)


def test_frequencies_in_old_checkpoints_are_ignored(base: Path) -> None:
    rewrite(base, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}))
    load_all(base)


def test_a_wrong_shape_is_named_with_both_shapes(base: Path) -> None:
    rewrite(base, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(47)}))
    with pytest.raises(ModelUnsupported, match=r"model\.norm\.weight .* \(47,\); config\.json means \(48,\)"):
        load_all(base)


def test_integer_weights_are_refused(base: Path) -> None:
    rewrite(base, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(48, dtype=torch.int8)}))
    with pytest.raises(ModelUnsupported, match="is I8"):
        load_all(base)


@pytest.mark.parametrize("kept", [4, 1000, -1])
def test_a_truncated_file_is_refused(base: Path, kept: int) -> None:
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelUnsupported, match="fetch the model again"):
        load_all(base)


def test_a_file_that_is_something_else_is_refused(base: Path) -> None:
    (base / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0not json")
    with pytest.raises(ModelUnsupported, match="not a safetensors file"):
        load_all(base)


def test_pickled_weights_are_not_opened(base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(ModelNotFound, match=r"pytorch_model\.bin is pickled and never opened"):
        load_all(base)


def test_the_command_in_the_refusal_of_pickles_converts_them(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_file(base / "model.safetensors")
    torch.save(expected, base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound) as caught:
        load_all(base)
    program, *flags, code, directory = shlex.split(caught.value.message.partition("by: ")[2])
    assert (program, flags) == (sys.executable, ["-P", "-c"])
    monkeypatch.setattr(sys, "argv", ["-c", directory])
    exec(code, {})
    found = load_file(base / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    load_all(base)  # pickles beside safetensors do no harm


@pytest.mark.parametrize(
    ("name", "error"), [("../elsewhere.safetensors", ModelUnsupported), ("model-1.safetensors", ModelNotFound)]
)
def test_an_index_names_files_of_its_own_directory_that_exist(base: Path, name: str, error: type[Exception]) -> None:
    (base / "model.safetensors").unlink()
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(error):
        load_all(base)


def test_rounding_to_the_kernels_dtype_is_logged(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    def halve(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.half() for name, tensor in tensors.items()})

    rewrite(base, halve)
    load_weights(base, read_spec(base), ReferenceKernels(torch.bfloat16))
    assert "from=F16 to=bfloat16" in caplog.text
    caplog.clear()
    load_weights(base, read_spec(base), ReferenceKernels(torch.float32))
    assert caplog.text == ""


def test_the_fingerprint_names_the_content_not_the_place(base: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for file in base.iterdir():
        (elsewhere / file.name).write_bytes(file.read_bytes())
    first = fingerprint(base, read_spec(base))
    assert len(first) == 64
    assert fingerprint(elsewhere, read_spec(elsewhere)) == first
    rewrite(elsewhere, lambda tensors: tensors["model.norm.weight"].add_(1))
    assert fingerprint(elsewhere, read_spec(elsewhere)) != first


def test_the_fingerprint_depends_on_the_configuration(base: Path) -> None:
    first = fingerprint(base, read_spec(base))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert fingerprint(base, read_spec(base)) != first
