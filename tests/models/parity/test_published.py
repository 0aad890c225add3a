"""Published config.json files load, by their fields and their sizes, as transformers 4 and 5 write them."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from manylora.models.architectures import ARCHITECTURES
from manylora.models.fetch.catalog import find
from manylora.models.fetch.known_bases import KNOWN_BASES
from manylora.models.spec import parse_spec
from tests.models.parity.page import PAGE, with_bases
from tests.models.parity.published import PARAMETERS, PUBLISHED, VERIFY
from tests.models.parity.rows import ROWS

CLASSES: dict[str, Any] = {
    f"{config.__name__.removesuffix('Config')}ForCausalLM": config
    for config in (LlamaConfig, MistralConfig, MixtralConfig, Qwen2Config, Qwen3Config, SmolLM3Config)
}
FOURTH: dict[str, Any] = {
    "return_dict": True,
    "output_hidden_states": False,
    "output_attentions": False,
    "torchscript": False,
    "torch_dtype": None,
    "use_bfloat16": False,
    "tf_legacy_loss": False,
    "pruned_heads": {},
    "tie_word_embeddings": False,
    "chunk_size_feed_forward": 0,
    "is_encoder_decoder": False,
    "is_decoder": False,
    "cross_attention_hidden_size": None,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
    "max_length": 20,
    "min_length": 0,
    "do_sample": False,
    "early_stopping": False,
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "num_return_sequences": 1,
    "output_scores": False,
    "return_dict_in_generate": False,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "remove_invalid_values": False,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "finetuning_task": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "tokenizer_class": None,
    "prefix": None,
    "sep_token_id": None,
    "decoder_start_token_id": None,
    "task_specific_params": None,
    "problem_type": None,
    "_name_or_path": "",
    "_attn_implementation_autoset": False,
}
"""The fields that the common class of transformers 4 has, with its values: some tools save all of them."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_loads_and_has_its_number_of_weights(name: str) -> None:
    assert parse_spec(PUBLISHED[name], {}).parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", [base.name for base in KNOWN_BASES])
def test_transformers_makes_the_number_of_weights_that_the_catalog_computes(name: str) -> None:
    config = find(name).config  # type: ignore[union-attr]  # a name of the catalog
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CLASSES[config["architectures"][0]](**config))
    assert model.num_parameters() == parse_spec(config, {}).parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_5_writes_the_same_model_with_other_fields(name: str) -> None:
    old = {field: value for field, value in PUBLISHED[name].items() if field not in ("auto_map", "torch_dtype")}
    new = CLASSES[old["architectures"][0]](**old).to_dict()
    assert "rope_parameters" in new
    assert parse_spec(new, {}) == parse_spec(old, {})


@pytest.mark.parametrize("architecture", CLASSES)
def test_every_field_that_a_class_of_transformers_writes_is_understood(architecture: str) -> None:
    written = {**CLASSES[architecture]().to_dict(), "architectures": [architecture]}
    spec = parse_spec(written, {})
    assert spec.architecture == architecture
    assert parse_spec({**FOURTH, **written}, {}) == spec


def test_every_base_of_the_catalog_has_a_config_and_a_row() -> None:
    assert {base.name for base in KNOWN_BASES} <= PUBLISHED.keys()
    assert {name for row in ROWS.values() for name in row.bases} == PUBLISHED.keys() == PARAMETERS.keys()
    assert VERIFY.keys() <= PUBLISHED.keys()
    assert all(field in PUBLISHED[name] for name, fields in VERIFY.items() for field in fields)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_has_the_features_of_its_bases(name: str) -> None:
    """The tiny model agrees with the published config in all that is no size."""
    [row] = [row for row in ROWS.values() if name in row.bases]
    architecture = PUBLISHED[name]["architectures"][0]
    assert CLASSES[architecture] is row.config
    tiny = parse_spec({**row.config(**row.tiny).to_dict(), "architectures": [architecture]}, {})
    full = parse_spec(PUBLISHED[name], {})
    assert tiny.heads / tiny.kv_heads == full.heads / full.kv_heads
    assert tiny.tie_embeddings == full.tie_embeddings
    assert tiny.biased == full.biased
    assert tiny.has_head_norms == full.has_head_norms
    assert tiny.rope.kind == full.rope.kind
    assert tiny.rope.factor == full.rope.factor
    assert "rope_theta" in VERIFY.get(name, ()) or tiny.rope.theta == full.rope.theta
    assert (tiny.sliding_window is None) == (full.sliding_window is None)
    assert bool(tiny.unrotated_layers) == bool(full.unrotated_layers)
    assert tiny.experts == full.experts
    assert (tiny.vocab % 16 == 0) == (full.vocab % 64 == 0)


def test_the_page_has_a_line_for_each_base() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_bases(page), "run `make pages`"


def test_the_page_names_every_architecture() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [name for name in ARCHITECTURES if f"| `{name}` |" not in page] == []
