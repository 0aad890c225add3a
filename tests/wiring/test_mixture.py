"""A mixture of experts from its files to a reply, with adapters of its experts by way of the ingest process."""

from pathlib import Path

import pytest

from manylora import LLM
from manylora.errors import AdapterIncompatible
from manylora.models.text.tokenizer import Tokenizer
from tests.models.tiny_tokenizers import save_sentencepiece
from tests.support.mixtral import (
    every,
    logits_of,
    make_mixtral,
    peft_logits,
    random_factors,
    save_by_peft,
    save_separate,
)
from tests.support.text_adapters import make_text_base

PROMPT = "hello world"
PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "gate.weight"]


def test_replies_of_a_mixture_are_those_of_transformers_and_peft(tmp_path: Path) -> None:
    base = make_mixtral(tmp_path / "Tiny", is_fused=True, vocab=400)
    save_sentencepiece(base.directory)
    adapters = {
        "fused": save_by_peft(base, tmp_path / "adapters/fused", r=4, target_parameters=PARAMETERS),
        "single": save_separate(
            tmp_path / "adapters/single", random_factors(every("w2"), 3), r=3, target_modules=["w2"]
        ),
    }
    settings = {"model.kernels": "reference", "model.cache_dir": str(tmp_path / "cache")}
    with LLM(base.directory, adapters=tmp_path / "adapters", settings=settings) as llm:
        names = (None, *adapters)
        outputs = llm.generate([PROMPT] * 3, list(names), max_tokens=5)
    prompt = Tokenizer(base.directory).encode(PROMPT)
    for name, output in zip(names, outputs, strict=True):
        tokens = [*prompt, *output.token_ids]
        logits = peft_logits(base, adapters[name], tokens) if name else logits_of(base.load(), tokens)
        chosen = logits[len(prompt) - 1 : -1]
        assert len(chosen) == 5
        best, found = chosen.max(dim=-1).values, chosen[range(5), list(output.token_ids)]
        assert (best - found).max() <= 2e-3  # adapters are served in bfloat16


def test_an_adapter_of_experts_is_refused_on_a_dense_base(tmp_path: Path) -> None:
    base = make_text_base(tmp_path / "Tiny")
    save_separate(tmp_path / "adapters/single", random_factors(every("w2"), 3), r=3, target_modules=["w2"])
    settings = {"model.kernels": "reference", "model.cache_dir": str(tmp_path / "cache")}
    with (
        LLM(base.directory, adapters=tmp_path / "adapters", settings=settings) as llm,
        pytest.raises(AdapterIncompatible, match=r"experts\.0\.w2, which the model does not have"),
    ):
        llm.generate(PROMPT, "single", max_tokens=2)
