"""Structured output over HTTP, from a server with its engine in a process of its own and room for few sequences."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import jsonschema_rs
import pytest

from manylora.bench.faults.tiny_base import write_tiny_base
from tests.integration.grammars.test_structured_output import FEW_BYTES, INTENT, LONG
from tests.support.serving import make_cache, running_server

FORM = {"type": "json_schema", "json_schema": {"name": "reply", "schema": INTENT}}
COMPLETION = {"prompt": "x", "max_tokens": 60, "temperature": 1.0, "seed": 3, "response_format": FORM}
PARAMETERS = {
    "max_new_tokens": 60,
    "do_sample": True,
    "seed": 3,
    "response_format": {"type": "json_schema", "schema": INTENT},
}
SEQUENCES = 6


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    folder = tmp_path_factory.mktemp("grammar-routes")
    base = write_tiny_base(folder / "tiny")
    settings = {
        "model.cache_dir": make_cache(folder / "cache"),
        "model.kernels": "native",
        "model.threads": 1,
        "engine.kv_bytes": FEW_BYTES,
        "engine.max_model_len": 128,
    }
    flags = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    with (
        running_server(folder / "log", "--base", str(base), *flags) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
    ):
        yield client


def post(client: httpx2.Client, path: str, body: dict[str, Any]) -> Any:  # JSON of the server
    reply = client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def events(client: httpx2.Client, path: str, body: dict[str, Any]) -> list[Any]:
    text = client.post(path, json=body).text
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def is_intent(text: str) -> bool:
    return bool(jsonschema_rs.is_valid(INTENT, json.loads(text)))


def test_each_choice_of_a_stream_has_the_form(client: httpx2.Client) -> None:
    texts = {0: "", 1: "", 2: ""}
    for event in events(client, "/v1/completions", {**COMPLETION, "n": 3, "stream": True}):
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
    whole = post(client, "/v1/completions", {**COMPLETION, "n": 3})
    assert texts == {choice["index"]: choice["text"] for choice in whole["choices"]}
    assert all(is_intent(text) for text in texts.values())


def test_the_best_of_several_has_the_form(client: httpx2.Client) -> None:
    (choice,) = post(client, "/v1/completions", {**COMPLETION, "best_of": 3})["choices"]
    assert is_intent(choice["text"])


def test_a_stop_string_cuts_the_form(client: httpx2.Client) -> None:
    (choice,) = post(client, "/v1/completions", {**COMPLETION, "stop": ['"level"']})["choices"]
    assert choice["finish_reason"] == "stop"
    assert re.fullmatch('{"intent":"(up|down)",', choice["text"])


def test_the_tokens_of_lorax_s_stream_make_the_form(client: httpx2.Client) -> None:
    found = events(client, "/generate_stream", {"inputs": "x", "parameters": PARAMETERS})
    text = found[-1]["generated_text"]
    assert is_intent(text)
    assert "".join(event["token"]["text"] for event in found if not event["token"]["special"]) == text
    assert post(client, "/generate", {"inputs": "x", "parameters": PARAMETERS})["generated_text"] == text


def test_preempted_replies_have_the_tokens_of_those_alone(client: httpx2.Client) -> None:
    def text(seed: int) -> str:
        form = {"type": "json_schema", "json_schema": {"name": "reply", "schema": {**LONG, "minItems": 6}}}
        body = {**COMPLETION, "prompt": f"prompt {seed}", "seed": seed, "response_format": form}
        return str(post(client, "/v1/completions", body)["choices"][0]["text"])

    def preemptions() -> float:
        found = re.search(r"^manylora_preemptions(?:_total)? (\S+)", client.get("/metrics").text, re.MULTILINE)
        assert found is not None
        return float(found[1])

    alone = [text(seed) for seed in range(SEQUENCES)]
    before = preemptions()
    with ThreadPoolExecutor(SEQUENCES) as pool:
        for _ in range(3):
            assert list(pool.map(text, range(SEQUENCES))) == alone
    assert preemptions() > before


def test_a_caller_who_leaves_takes_its_grammar_along(client: httpx2.Client) -> None:
    endless = {"type": "array", "items": {"enum": [1, 2]}, "minItems": 100}
    form = {"type": "json_schema", "json_schema": {"name": "reply", "schema": endless}}
    body = {**COMPLETION, "max_tokens": 100, "stream": True, "response_format": form}
    with client.stream("POST", "/v1/completions", json=body) as reply:
        next(reply.iter_lines())
    assert is_intent(post(client, "/v1/completions", COMPLETION)["choices"][0]["text"])


def test_the_metrics_tell_what_became_of_grammars(client: httpx2.Client) -> None:
    def told() -> dict[str, float]:
        text = client.get("/metrics").text
        found = re.findall(r"^manylora_(grammar\S*) (\S+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in found}

    def ask(pattern: str, **more: Any) -> int:
        body = {"prompt": "x", "max_tokens": 8, "guided_regex": pattern, **more}
        return client.post("/v1/completions", json=body).status_code

    before = told()
    assert [ask("me[tr]+ics"), ask("me[tr]+ics"), ask("me(")] == [200, 200, 400]
    assert ask("me[tr]+ics", allowed_token_ids=[3]) == 400, "its rules together leave no token"
    after = told()
    changes = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert changes.pop("grammar_compile_seconds") > 0
    assert changes.pop("grammars_kept") == 1
    assert changes.pop("grammar_bytes") > 0
    assert changes == {
        "grammars_compiled": 1,
        "grammar_hits": 2,
        'grammar_refusals{reason="invalid"}': 1,
        "grammar_dead_ends": 1,
    }
