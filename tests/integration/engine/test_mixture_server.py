"""A mixture of experts over HTTP: adapters of experts and router beside the base, and their refusal on a dense base."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from manylora import LLM
from manylora.models.text.tokenizer import Tokenizer
from tests.models.test_llama import save_random
from tests.models.tiny_tokenizers import save_sentencepiece
from tests.support.mixtral import (
    HIDDEN,
    TinyMixtral,
    every,
    logits_of,
    make_mixtral,
    peft_logits,
    random_factors,
    save_by_peft,
    save_separate,
)
from tests.support.serving import make_cache, running_server

PROMPTS = ["hello world", "the dog", "hello hello the fox jumps"]
PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "gate.weight"]
VOCAB, NEW_TOKENS = 400, 5
REFUSAL = "which the model does not have"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral, a Mistral of its sizes, and adapters of the Mixtral."""
    folder = tmp_path_factory.mktemp("mixture")
    base = make_mixtral(folder / "mixtral", vocab=VOCAB)
    save_sentencepiece(base.directory)
    save_by_peft(base, folder / "adapters/fused", r=4, target_modules=["q_proj"], target_parameters=PARAMETERS)
    save_separate(folder / "adapters/single", random_factors(every("w2"), 3), r=3, target_modules=["w2"])
    save_separate(folder / "adapters/router", random_factors(["gate"], 2), r=2, target_modules=["gate"])
    dense = {"hidden_size": HIDDEN, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6}
    config = MistralConfig(vocab_size=VOCAB, num_key_value_heads=2, max_position_embeddings=64, **dense)
    save_random(folder / "mistral", MistralForCausalLM(config))
    save_sentencepiece(folder / "mistral")
    return folder


def flags(folder: Path, base: str) -> list[str]:
    return [
        "--base",
        str(folder / base),
        "--adapter-root",
        str(folder / "adapters"),
        "--set",
        "model.kernels=reference",
    ]


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    cache = make_cache(folder / "cache")
    with running_server(folder / "log", *flags(folder, "mixtral"), f"--set=model.cache_dir={cache}") as url:
        yield url


def generate(url: str, prompt: str, adapter: str | None) -> list[int]:
    parameters: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "details": True}
    if adapter is not None:
        parameters |= {"adapter_id": adapter, "adapter_source": "local"}
    reply = httpx2.post(f"{url}/generate", json={"inputs": prompt, "parameters": parameters}, timeout=60)
    assert reply.status_code == 200, reply.text
    return [token["id"] for token in reply.json()["details"]["tokens"]]


@pytest.mark.long
def test_replies_of_a_mixture_are_those_of_transformers_and_of_the_engine_alone(server: str, folder: Path) -> None:
    base = TinyMixtral(folder / "mixtral")
    asked = [(prompt, adapter) for prompt in PROMPTS for adapter in (None, "fused", "single", "router")]
    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(lambda each: generate(server, *each), asked))
    tokenizer = Tokenizer(base.directory)
    for (prompt, adapter), ids in zip(asked, found, strict=True):
        before = tokenizer.encode(prompt)
        tokens = [*before, *ids]
        logits = peft_logits(base, folder / "adapters" / adapter, tokens) if adapter else logits_of(base.load(), tokens)
        chosen = logits[len(before) - 1 : -1]
        assert len(chosen) == NEW_TOKENS
        best = chosen.max(dim=-1).values
        assert (best - chosen[range(NEW_TOKENS), torch.tensor(ids)]).max() <= 2e-3  # adapters are served in bfloat16
    settings = {"model.kernels": "reference", "model.cache_dir": str(make_cache(folder / "alone"))}
    with LLM(base.directory, adapters=folder / "adapters", settings=settings) as llm:
        for (prompt, adapter), ids in zip(asked, found, strict=True):
            assert list(llm.generate(prompt, adapter, max_tokens=NEW_TOKENS).token_ids) == ids


@pytest.mark.long  # two more starts; `tests/wiring/test_mixture.py` has the refusal
def test_an_adapter_of_a_mixture_is_refused_by_name_on_a_dense_base(folder: Path) -> None:
    cache = make_cache(folder / "dense")
    own = [*flags(folder, "mistral"), f"--set=model.cache_dir={cache}"]
    with running_server(folder / "dense.log", *own) as url:
        for route, body in (
            ("/generate", {"inputs": "hello", "parameters": {"adapter_id": "single", "adapter_source": "local"}}),
            ("/v1/completions", {"prompt": "hello", "model": "single"}),
        ):
            reply = httpx2.post(f"{url}{route}", json=body, timeout=60)
            assert reply.status_code in (400, 422)
            assert f"experts.0.w2, {REFUSAL}" in reply.text
    words = ["generate", "hello", "--raw", "--adapter", "single", *own[:4]]
    ended = subprocess.run(
        [sys.executable, "-m", "manylora", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "MANYLORA_MODEL_CACHE_DIR": str(cache), "MANYLORA_MODEL_KERNELS": "reference"},
    )
    assert ended.returncode == 1, ended.stderr
    assert f"experts.0.w2, {REFUSAL}" in " ".join(ended.stderr.split())
