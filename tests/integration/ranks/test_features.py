"""Each feature of the engine through the routes of a server: two ranks give the replies of one process."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from peft import LoraConfig

from manylora.models.text.tokenizer import Tokenizer
from tests.models.tiny_tokenizers import save_sentencepiece
from tests.support.classifiers import make_classifier
from tests.support.mixtral import every, make_mixtral, random_factors, save_by_peft, save_separate
from tests.support.serving import make_cache, running_server
from tests.support.text_adapters import make_text_base, speaking_adapter
from tests.support.tiny import ALL, TinyBase, make_adapter

pytestmark = pytest.mark.long  # `tests/wiring/test_ranks.py` has a quick member
TOLERANCE = 1e-4
"""Largest difference of a number in a reply between one process and two ranks."""
TEXT = "the quick brown fox over the lazy dog "
SETTINGS = (
    "model.kernels=reference",
    "model.rank_timeout_s=25",
    "engine.kv_bytes=1048576",
    "engine.block_size=4",
    "engine.max_running=8",
    "engine.max_step_tokens=32",  # prompts come in chunks
    "metering.ship_s=0.05",
)
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "target_modules": ALL},
    "alike": {"r": 4, "target_modules": ALL},
    "other": {"r": 2, "target_modules": ["q_proj", "down_proj"]},
    "dora": {"r": 3, "target_modules": ["embed_tokens", "lm_head", "q_proj", "o_proj", "down_proj"], "use_dora": True},
    "tables": {"r": 2, "target_modules": ["k_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "norms": {"r": 2, "target_modules": ["v_proj"], "modules_to_save": ["norm", "input_layernorm"]},
    "tokens": {"r": 2, "target_modules": ["v_proj"], "trainable_token_indices": [1, 5, 104, 198]},
    "activated": {"r": 4, "target_modules": ALL, "task_type": "CAUSAL_LM"},
    "scaled": {"r": 4, "target_modules": ALL, "use_rslora": True, "rank_pattern": {"q_proj": 7}},
}
"""Adapters by what they change beside the projections, as fields of PEFT's config."""
Ask = tuple[str, dict[str, Any]]


def make_folder(folder: Path) -> None:
    """Make the bases `Tiny` and `Mix`, and adapters of both."""
    adapters = folder / "adapters"
    base = make_text_base(folder / "Tiny")
    words = Tokenizer(base.directory).encode(TEXT)[4:6]
    for seed, (name, fields) in enumerate(KINDS.items(), 1):
        own = {**fields, "alora_invocation_tokens": words} if name == "activated" else fields
        make_adapter(base, adapters / name, LoraConfig(lora_alpha=16, **own), seed=seed)
    speaking_adapter(base, adapters / "speaking")
    make_heads(base, adapters)
    mixture = make_mixtral(folder / "Mix", is_fused=True, vocab=400)
    save_sentencepiece(mixture.directory)
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "gate.weight"]
    save_by_peft(mixture, adapters / "experts", r=4, target_modules=["q_proj"], target_parameters=parameters)
    save_separate(
        adapters / "single",
        random_factors(["gate", *every("w1", "w2", "w3")], 3),
        r=3,
        target_modules=["gate", "w1", "w2", "w3"],
    )


def make_heads(base: TinyBase, adapters: Path) -> None:
    for name, task in (("judge", "SEQ_CLS"), ("tagger", "TOKEN_CLS")):
        make_classifier(base, adapters / name, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type=task), 3)


def native(prompt: str = TEXT, **parameters: Any) -> Ask:
    own = {"max_new_tokens": 8, "ignore_eos_token": True, "details": True, "return_k_alternatives": 3}
    return "/generate", {"inputs": prompt, "parameters": {**own, **parameters}}


def completion(model: str = "lora", prompt: str = TEXT, **fields: Any) -> Ask:
    own = {"max_tokens": 8, "temperature": 0, "logprobs": 3, "ignore_eos": True}
    return "/v1/completions", {"model": model, "prompt": prompt, **own, **fields}


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
TWO = [{"id": "lora", "weight": 0.5}, {"id": "scaled", "weight": -1.5}]
MERGED = {"ids": ["lora", "alike"], "weights": [0.5, 0.7]}
ASKS: dict[str, Ask] = {
    "the base": native(),
    **{f"an adapter: {name}": native(adapter_id=name) for name in (*KINDS, "speaking")},
    **{f"a mixture: {name}": native("hello world", adapter_id=name) for name in ("Mix", "experts", "single")},
    "a prompt's scores: echo": completion(echo=True, max_tokens=4),
    "a prompt's scores: echo alone": completion("tables", echo=True, max_tokens=0),
    "a prompt's scores: details": native(adapter_id="dora", decoder_input_details=True),
    "a prompt's scores: mixture": native("hello world", adapter_id="experts", decoder_input_details=True),
    "several adapters": native(adapters=TWO),
    "several adapters with extras": native(adapters=[*TWO, {"id": "other"}], decoder_input_details=True),
    "a merge": native(merged_adapters={**MERGED, "merge_strategy": "linear"}),
    "a merge: ties": native(merged_adapters={**MERGED, "merge_strategy": "ties", "density": 0.6}),
    "a merge: cat": native(merged_adapters={**MERGED, "ids": ["lora", "other"], "merge_strategy": "cat"}),
    "an embedding": ("/v1/embeddings", {"model": "lora", "input": [TEXT * 2, "hello"]}),
    "an embedding: base": ("/embed", {"inputs": TEXT}),
    "an embedding: mixture": ("/v1/embeddings", {"model": "experts", "input": "hello world"}),
    "classes of a text": ("/classify", {"input": [TEXT, "hello"], "model": "judge"}),
    "classes of tokens": ("/classify", {"inputs": TEXT, "parameters": {"adapter_id": "tagger"}}),
    "a grammar: schema": native(adapter_id="lora", response_format={"type": "json_object", "schema": SCHEMA}),
    "a grammar: expression": completion(structured_outputs={"regex": "(hello|fox){3}"}),
    "a grammar: added tokens": completion("speaking", structured_outputs={"regex": "[a-z]{6}"}),
    "rules: bias": completion(logit_bias={"71": 9, "72": -100}),
    "rules: penalties": completion("dora", presence_penalty=0.4, frequency_penalty=0.3, repetition_penalty=1.3),
    "rules: draws": completion(temperature=0.9, top_p=0.8, n=3, seed=7),
    "rules: best of": native(adapter_id="lora", do_sample=True, temperature=0.7, top_k=9, seed=3),
    "a conversation": (
        "/v1/chat/completions",
        {
            "model": "speaking",
            "messages": [{"role": "user", "content": TEXT}],
            "max_tokens": 8,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 3,
        },
    ),
}
PASSING = {"id", "created", "system_fingerprint", "timings"}


@contextmanager
def client_of(folder: Path, degree: int) -> Iterator[httpx2.Client]:
    words = [f"--base={folder / name}" for name in ("Tiny", "Mix")]
    words += [f"--adapter-root={folder / 'adapters'}", f"--tensor-parallel={degree}"]
    words += [f"--set={each}" for each in (*SETTINGS, f"model.cache_dir={make_cache(folder / f'cache-{degree}')}")]
    log = folder / f"{degree}" / "log"
    log.parent.mkdir()
    with running_server(log, *words) as url, httpx2.Client(base_url=url, timeout=120) as client:
        yield client


def replies_of(folder: Path, degree: int) -> dict[str, tuple[int, Any]]:
    """Return status and JSON of each request, all of which a server gets at once."""

    def reply(name: str) -> tuple[int, Any]:
        found = client.post(ASKS[name][0], json=ASKS[name][1])
        return found.status_code, found.json()

    with client_of(folder, degree) as client, ThreadPoolExecutor(8) as pool:
        ranks = {"Tiny": degree, "Mix": degree} if degree > 1 else None
        assert client.get("/health").json().get("ranks") == ranks
        return dict(zip(ASKS, pool.map(reply, ASKS), strict=True))


@pytest.fixture(scope="module")
def replies(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[int, Any]]]:
    """Replies by request: of one process, and of two ranks."""
    folder = tmp_path_factory.mktemp("features")
    make_folder(folder)
    return [replies_of(folder, degree) for degree in (1, 2)]


@pytest.mark.parametrize("name", ASKS)
def test_two_ranks_give_the_reply_of_one_process(replies: list[dict[str, tuple[int, Any]]], name: str) -> None:
    (expected_status, expected), (status, found) = (each[name] for each in replies)
    assert (expected_status, status) == (200, 200), (expected, found)
    assert_near(found, expected, name)


def assert_near(found: Any, expected: Any, place: str) -> None:
    """Compare JSON: numbers within `TOLERANCE`, all else equal."""
    if isinstance(expected, Mapping):
        assert found.keys() == expected.keys(), place
        for key in expected.keys() - PASSING:
            assert_near(found[key], expected[key], f"{place} {key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for number, (mine, other) in enumerate(zip(found, expected, strict=True)):
            assert_near(mine, other, f"{place} {number}")
    else:
        assert found == pytest.approx(expected, abs=TOLERANCE), place


def test_the_adapters_give_replies_of_their_own(replies: list[dict[str, tuple[int, Any]]]) -> None:
    names = [name for name in ASKS if name.startswith(("the base", "an adapter"))]
    texts = {replies[1][name][1]["generated_text"] for name in names}
    assert len(texts) == len(names)
