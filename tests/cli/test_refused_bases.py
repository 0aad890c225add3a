"""Bases that cannot be served: each ends `serve` with 1 and the name, before memory is taken.

`test_start_failures.py` has the one without enough memory.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from manylora.system.resources import has_cuda_device
from tests.conftest import thinned
from tests.forks import forks
from tests.models.test_llama import SMALL, save_random
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.serving import make_cache


def fields(**changes: Any) -> Callable[[Path], None]:  # values of config.json
    """A change of config.json."""

    def change(base: Path) -> None:
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps({**config, **changes}))

    return change


def with_fewer_rows(base: Path) -> None:
    (base / "model.safetensors").unlink()
    save_random(base, LlamaForCausalLM(LlamaConfig(**{**SMALL, "vocab_size": 300})))


@dataclass(frozen=True)
class Refusal:
    """change: of a base that is served; said: in the last line; flags: settings beside the base."""

    said: tuple[str, ...]
    change: Callable[[Path], object] = lambda base: None
    flags: tuple[str, ...] = ()


REFUSALS = {
    "architecture": Refusal(
        ("GPTNeoXForCausalLM", "LlamaForCausalLM"), fields(architectures=["GPTNeoXForCausalLM"], model_type="gpt_neox")
    ),
    "rope type": Refusal(
        ("longrope",), fields(rope_scaling={"rope_type": "longrope", "factor": 4.0}, rope_parameters=None)
    ),
    "quantisation": Refusal(("bitsandbytes",), fields(quantization_config={"quant_method": "bitsandbytes"})),
    "bits": Refusal(
        ("bits = 3",),
        fields(quantization_config={"quant_method": "gptq", "bits": 3, "group_size": 32, "desc_act": False}),
    ),
    "tokenizer of another vocabulary": Refusal(("30 tokens have no row", "300 rows"), with_fewer_rows),
    "kernels": Refusal(("model.kernels", "cuda"), flags=("model.kernels=cuda",)),
    "card": Refusal(("model.device cuda:1", "no CUDA card", "use model.device cpu"), flags=("model.device=cuda:1",)),
}


def changed(model: Path, base: Path, refusal: Refusal) -> None:
    """Make the folder `base` with the files of a base that is served, and change it."""
    base.mkdir()
    for file in model.iterdir():
        if file.suffix == ".safetensors":
            (base / file.name).symlink_to(file)
        else:
            (base / file.name).write_bytes(file.read_bytes())
    refusal.change(base)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_served(tmp_path_factory.mktemp("model"))


def save_served(directory: Path) -> Path:
    """Save a base that is served, and return its folder."""
    save_random(directory, LlamaForCausalLM(LlamaConfig(**{**SMALL, "vocab_size": 331})))
    return save_byte_level(directory)


@pytest.mark.parametrize("name", thinned(REFUSALS, 3))
def test_a_base_that_cannot_be_served_is_refused_by_name(name: str, model: Path, tmp_path: Path) -> None:
    refusal, base = REFUSALS[name], tmp_path / "base"
    if name == "card" and has_cuda_device():
        pytest.skip("this machine has a card")
    changed(model, base, refusal)
    cache = make_cache(tmp_path / "cache")
    settings = [f"model.cache_dir={cache}", f"metering.dir={tmp_path / 'm'}", *refusal.flags]
    words = ["serve", "--base", str(base), "--port", "0", *(f"--set={each}" for each in settings)]
    ended = forks().run(words, folder=tmp_path)
    assert ended.returncode == 1, ended.stderr
    assert "weights loaded" not in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr
    line = ended.stderr.strip().splitlines()[-1]
    for part in refusal.said:
        assert part in line
