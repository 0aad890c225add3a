"""Embeddings and classes over HTTP, from a server with its engine in a process of its own."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
from peft import LoraConfig, PeftModel
from transformers import AutoTokenizer, pipeline

from tests.models.tiny_tokenizers import save_byte_level
from tests.support.classifiers import load_classifier, make_classifier, oracle_classes, oracle_hidden
from tests.support.serving import make_cache, running_server
from tests.support.tiny import ALL, BYTE_LEVEL_VOCAB, TinyBase, make_adapter, make_base

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TEXTS = ["the quick brown fox jumps over the lazy dog", "hello two words né"]
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> TinyBase:
    folder = tmp_path_factory.mktemp("routes")
    base = make_base(folder / "base", vocab_size=BYTE_LEVEL_VOCAB)
    save_byte_level(base.directory)
    adapters = folder / "adapters"
    make_adapter(base, adapters / "plain", LoraConfig(r=4, lora_alpha=8, target_modules=ALL), seed=1)
    texts = LoraConfig(r=6, lora_alpha=9, target_modules=ALL, task_type="SEQ_CLS")
    make_classifier(base, adapters / "texts", texts, 2, seed=2)
    tokens = LoraConfig(r=12, lora_alpha=12, target_modules=["q_proj", "down_proj"], task_type="TOKEN_CLS")
    make_classifier(base, adapters / "tokens", tokens, len(LABELS), seed=3)
    names = {str(index): label for index, label in enumerate(LABELS)}
    (adapters / "tokens" / "config.json").write_text(json.dumps({"id2label": names}))
    make_classifier(base, adapters / "misnamed", tokens, 3, seed=3)
    (adapters / "misnamed" / "config.json").write_text(json.dumps({"id2label": names}))
    return base


@pytest.fixture(scope="module")
def url(base: TinyBase) -> Iterator[str]:
    folder = base.directory.parent
    flags = ("--base", str(base.directory), "--adapter-root", str(folder / "adapters"))
    own = ("--set", f"model.cache_dir={make_cache(folder / 'cache')}", "--set", "model.kernels=reference")
    with running_server(folder / "log", *flags, *own) as url:
        yield url


def post(url: str, path: str, body: dict[str, Any]) -> Any:  # JSON of the server
    reply = httpx2.post(url + path, json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    return reply.json()


def ids_of(base: TinyBase, text: str) -> list[int]:
    found: list[int] = AutoTokenizer.from_pretrained(base.directory)(text)["input_ids"]
    return found


@pytest.mark.parametrize("name", [None, "plain"])
def test_embeddings_are_the_mean_hidden_states_of_transformers(url: str, base: TinyBase, name: str | None) -> None:
    named = {} if name is None else {"adapter_id": name}
    reply = post(url, "/v1/embeddings", {"input": TEXTS, **named})
    folder = None if name is None else base.directory.parent / "adapters" / name
    for text, entry in zip(TEXTS, reply["data"], strict=True):
        mean = oracle_hidden(base, folder, ids_of(base, text)).double().numpy().mean(axis=0)
        expected = mean / np.linalg.norm(mean)
        assert np.abs(np.array(entry["embedding"]) - expected).max() <= TOLERANCE
        alone = post(url, "/embed", {"inputs": text, "parameters": named})["embeddings"]
        assert np.abs(np.array(alone) - expected).max() <= TOLERANCE
    assert reply["usage"]["prompt_tokens"] == sum(len(ids_of(base, text)) for text in TEXTS)


def test_classes_of_texts_are_those_of_peft(url: str, base: TinyBase) -> None:
    reply = post(url, "/classify", {"input": TEXTS, "model": "texts"})
    for text, entry in zip(TEXTS, reply["data"], strict=True):
        folder = base.directory.parent / "adapters" / "texts"
        probs = oracle_classes(base, folder, "SEQ_CLS", 2, ids_of(base, text)).softmax(dim=-1)
        assert entry["probs"] == pytest.approx(probs.tolist(), abs=TOLERANCE)
        assert entry["label"] == f"LABEL_{int(probs.argmax())}"


def test_entities_are_those_of_the_pipeline_of_transformers(url: str, base: TinyBase) -> None:
    adapted = PeftModel.from_pretrained(
        load_classifier(base, "TOKEN_CLS", len(LABELS)), base.directory.parent / "adapters" / "tokens"
    )
    model: Any = adapted.get_base_model()
    model.config.id2label = dict(enumerate(LABELS))
    tokenizer = AutoTokenizer.from_pretrained(base.directory)
    find = pipeline("token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="simple")
    batch = post(url, "/classify_batch", {"inputs": TEXTS, "adapter_id": "tokens"})
    alone = post(url, "/classify", {"inputs": TEXTS[0], "adapter_id": "tokens"})
    assert [each["word"] for each in batch[0]] == [each["word"] for each in alone]
    for text, found in zip(TEXTS, batch, strict=True):
        expected = find(text)
        assert [(each["entity_group"], each["start"], each["end"]) for each in found] == [
            (each["entity_group"], each["start"], each["end"]) for each in expected
        ]
        assert [each["score"] for each in found] == pytest.approx([float(each["score"]) for each in expected], abs=1e-4)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/classify", {"inputs": "Hi"}, 422, "the base model has no classification head"),
        ("/classify", {"input": "Hi", "model": "plain"}, 422, "Adapter 'plain' has no classification head"),
        ("/classify", {"inputs": "Hi", "adapter_id": "texts"}, 422, "Adapter 'texts' gives classes of whole texts"),
        ("/classify", {"input": "Hi", "adapter_id": "tokens"}, 422, "Adapter 'tokens' gives classes of tokens"),
        ("/classify", {"inputs": "Hi", "adapter_id": "misnamed"}, 422, "`id2label` in config.json names 5 labels"),
        ("/generate", {"inputs": "Hi", "parameters": {"adapter_id": "texts"}}, 422, "generates no text"),
        ("/v1/completions", {"prompt": "Hi", "model": "texts"}, 400, "generates no text"),
        ("/v1/embeddings", {"input": "Hi", "model": "nobody"}, 404, "nobody"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    url: str, path: str, body: dict[str, Any], status: int, message: str
) -> None:
    reply = httpx2.post(url + path, json=body, timeout=60)
    assert reply.status_code == status
    assert message in reply.text
