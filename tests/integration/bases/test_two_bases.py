"""Two random bases of different vocabularies in one server over HTTP: names, mixed traffic, a death, usage by base."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from peft import LoraConfig

from manylora import LLM
from manylora.config.declaration import Setting
from tests.models.tiny_tokenizers import save_byte_level, save_sentencepiece
from tests.support.serving import READS, make_cache, running_server
from tests.support.tiny import ALL, TinyBase, make_adapter, make_base
from tests.support.waiting import has_word, listens, wait_for

pytestmark = pytest.mark.long

NEW_TOKENS = 6
PROMPTS = ("hello world", "the dog")
ADAPTERS = {"rough": ("a-one", "a-two"), "smooth": ("b-one",)}
DEPLOYMENT = "/default/deployments/v2/llms"


def save_adapter(base: TinyBase, folder: Path, seed: int, declared: str | None = None) -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=ALL, task_type="CAUSAL_LM")
    make_adapter(base, folder, config, seed=seed)
    if declared is not None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": declared}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bases `rough` and `smooth`, and adapters of each below `adapters`."""
    folder = tmp_path_factory.mktemp("bases")
    rough = make_base(folder / "rough", vocab_size=340, num_hidden_layers=2)
    save_byte_level(rough.directory)
    smooth = make_base(folder / "smooth", seed=1, vocab_size=400, hidden_size=60, num_hidden_layers=2)
    save_sentencepiece(smooth.directory)
    adapters = folder / "adapters"
    save_adapter(rough, adapters / "a-one", 1)
    save_adapter(rough, adapters / "a-two", 2)
    save_adapter(smooth, adapters / "b-one", 3)
    save_adapter(smooth, adapters / "stray", 4, "elsewhere/unknown")
    save_adapter(smooth, adapters / "plain", 5, "")
    save_adapter(rough, adapters / "liar", 6, "smooth")
    return folder


class TwoBases:
    """A client of the server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx2.Client(base_url=url, timeout=60)

    def close(self) -> None:
        self._client.close()

    def get(self, path: str) -> Any:
        reply = self._client.get(path)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def post(self, path: str, body: object, status: int = 200) -> Any:
        reply = self._client.post(path, json=body)
        assert reply.status_code == status, reply.text
        return reply.json()

    def status(self, path: str) -> int:
        return self._client.get(path).status_code

    def text(self, path: str) -> str:
        return self._client.get(path).text

    def complete(self, model: str, prompt: str, **more: object) -> str:
        body = {"model": model, "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0, **more}
        found = self.post("/v1/completions", body)
        return str(found["choices"][0]["text"])

    def settle(self) -> None:
        """Wait until the ledger has the usage of all requests before now: shipments keep their order."""
        body = {"model": "rough", "prompt": "hello", "max_tokens": 1, "temperature": 0}
        own = self._client.post("/v1/completions", json=body).headers["x-request-id"]
        wait_for(lambda: any(row["request_id"] == own for row in self.get("/v1/account/ledger?limit=1000")["rows"]))

    def refused(self, model: str, **more: object) -> str:
        body = {"model": model, "prompt": "hello", "max_tokens": 1, **more}
        return str(self.post("/v1/completions", body, 400)["error"]["message"])

    def generate(self, prompt: str, *, path: str = "/generate", **parameters: object) -> str:
        body = {"inputs": prompt, "parameters": {"max_new_tokens": NEW_TOKENS, **parameters}}
        return str(self.post(path, body)["generated_text"])


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[TwoBases]:
    cache = make_cache(folder / "cache")
    words = [*(f"--base={folder / base}" for base in ADAPTERS), f"--adapter-root={folder / 'adapters'}"]
    settings = [f"model.cache_dir={cache}", "model.kernels=reference", "metering.ship_s=0.05", READS]
    with running_server(folder / "log", *words, *(f"--set={each}" for each in settings), starts_engines=True) as url:
        client = TwoBases(url)
        try:
            yield client
        finally:
            client.close()


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[tuple[str, str | None, str], str]:
    """The reply of each base alone, by (base, adapter, prompt)."""
    found: dict[tuple[str, str | None, str], str] = {}
    for base, adapters in ADAPTERS.items():
        settings: dict[str, Setting] = {"model.kernels": "reference", "engine.kv_bytes": 1 << 22}
        with LLM(folder / base, adapters=folder / "adapters", settings=settings) as llm:
            for adapter in (None, *adapters):
                for prompt in PROMPTS:
                    found[base, adapter, prompt] = llm.generate(prompt, adapter, max_tokens=NEW_TOKENS).text
    return found


def test_the_start_prints_the_division_of_the_memory(server: TwoBases, folder: Path) -> None:
    printed = (folder / "log").read_text()
    assert "memory of 2 bases" in printed
    assert "rough, smooth are served at" in printed


def test_mixed_traffic_is_each_base_alone(server: TwoBases, alone: dict[tuple[str, str | None, str], str]) -> None:
    assert len({text for (_, _, prompt), text in alone.items() if prompt == PROMPTS[0]}) == 5
    asked = [*alone, *reversed(list(alone))]
    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(lambda each: server.complete(each[1] or each[0], each[2]), asked))
    assert found == [alone[each] for each in asked]


def test_each_dialect_names_bases_and_adapters(server: TwoBases, alone: dict[tuple[str, str | None, str], str]) -> None:
    prompt = PROMPTS[0]
    rough, smooth, one = alone["rough", None, prompt], alone["smooth", None, prompt], alone["smooth", "b-one", prompt]
    assert server.complete("smooth/b-one", prompt) == server.complete("smooth", prompt, adapter_id="b-one") == one
    assert server.complete("rough", prompt, adapter_id="smooth/b-one") == one  # `adapter_id` wins over `model`
    assert server.generate(prompt) == server.generate(prompt, adapter_id="rough") == rough
    assert server.generate(prompt, adapter_id="b-one") == server.generate(prompt, adapter_id="smooth/b-one") == one
    assert server.generate(prompt, adapter_id="smooth") == smooth
    for base, text in (("rough", rough), ("smooth", smooth)):
        path = f"{DEPLOYMENT}/{base}"
        assert server.generate(prompt, path=f"{path}/generate") == text
        assert server.get(f"{path}/info")["model_id"] == base
        assert server.get(f"{path}/health") == {"status": "ok"}
        assert server.post(f"{path}/tokenize", {"inputs": prompt}) != []
    assert server.generate(prompt, path=f"{DEPLOYMENT}/smooth/generate", adapter_id="b-one") == one
    pieces = [server.post("/tokenize", {"inputs": "hello", **naming}) for naming in ({}, {"adapter_id": "b-one"})]
    assert pieces[0] != pieces[1]
    vectors = [server.post("/v1/embeddings", {"model": each, "input": "a"})["data"][0] for each in ADAPTERS]
    sizes = [len(vector["embedding"]) for vector in vectors]
    assert sizes == [48, 60]
    body = {"model": "smooth", "input": "a", "dimensions": 48}
    assert len(server.post("/v1/embeddings", body)["data"][0]["embedding"]) == 48
    body["dimensions"] = 61
    assert "`dimensions` must be at most 60" in server.post("/v1/embeddings", body, 400)["error"]["message"]


def test_an_adapter_of_one_base_is_refused_on_another_by_name(server: TwoBases) -> None:
    native = {"inputs": "a", "parameters": {"adapter_id": "b-one"}}
    for refused in (
        server.refused("rough/b-one"),
        server.refused("rough", adapter_id="rough/b-one"),
        server.refused("rough", adapter_id="b-one"),
        server.post(f"{DEPLOYMENT}/rough/generate", native, 422)["error"],
    ):
        assert "Adapter 'b-one' is not compatible with model 'rough'" in refused
        assert "ask for `smooth/b-one`" in refused
    assert "ask for `smooth/stray`" in server.refused("stray")
    assert server.complete("smooth/stray", "hello") != server.complete("smooth", "hello")
    assert server.complete("plain", "hello") == server.complete("smooth/plain", "hello")
    assert "not compatible with model 'smooth'" in server.refused("liar")
    assert (
        "use the path of `smooth`"
        in server.post(f"{DEPLOYMENT}/rough/v1/completions", {"model": "smooth", "prompt": "a", "max_tokens": 1}, 400)[
            "error"
        ]["message"]
    )
    assert server.post("/v1/completions", {"model": "smooth/nothing", "prompt": "a"}, 404)["error"]["code"] is not None


def test_the_list_of_models_has_the_base_of_each_adapter(server: TwoBases) -> None:
    parents = {entry["id"]: entry["parent"] for entry in server.get("/v1/models")["data"]}
    assert list(parents)[:2] == ["rough", "smooth"]
    assert parents["rough"] is parents["smooth"] is None
    assert {name: parents[name] for name in ("a-one", "a-two", "b-one")} == {
        "a-one": "rough",
        "a-two": "rough",
        "b-one": "smooth",
    }
    assert server.get("/v1/models/b-one")["parent"] == "smooth"
    assert server.get("/v1/models/smooth") | {"created": 0} == {
        "id": "smooth",
        "object": "model",
        "created": 0,
        "owned_by": "manylora",
        "parent": None,
    }
    within = {entry["id"] for entry in server.get(f"{DEPLOYMENT}/smooth/v1/models")["data"]}
    assert {"smooth", "b-one", "liar"} <= within
    assert within.isdisjoint({"rough", "a-one"})


def test_operators_act_on_the_engine_of_the_adapters_base(server: TwoBases) -> None:
    done = server.post("/v1/adapters/b-one?wait=30", {"action": "preload"})
    assert (done["base"], done["state"]) == ("smooth", "on_device")
    known = {(entry["id"], entry["base"]) for entry in server.get("/v1/adapters")["data"] if entry["state"] != "absent"}
    assert ("b-one", "smooth") in known
    assert ("b-one", "rough") not in known
    for base, why in (("rough", "belongs to the base `smooth`"), ("x", "`base` must be a base")):
        refused = server.post(f"/v1/adapters/b-one?base={base}", {"action": "pin"}, 400)
        assert why in refused["error"]["message"]


def test_usage_is_recorded_by_base(server: TwoBases) -> None:
    def sums() -> dict[str, int]:
        page = server.get("/v1/account/usage?by=base")
        return {row["names"][0]: row["completion_tokens"] for row in page["usage"]}

    for base in ADAPTERS:
        server.complete(base, "hello", ignore_eos=True)
    server.settle()
    before = sums()
    assert ADAPTERS.keys() <= before.keys()
    server.complete("b-one", "hello", ignore_eos=True)
    wait_for(lambda: sums() != before)
    assert sums() == before | {"smooth": before["smooth"] + NEW_TOKENS}


def engines(server: TwoBases) -> list[int]:
    """The processes of the server's engines."""
    port = httpx2.URL(server.url).port
    own = next(each for each in psutil.Process().children(recursive=True) if listens(each, port))
    return [each.pid for each in own.children() if has_word(each, "engine_main")]


@contextlib.contextmanager
def no_engine_starts(folder: Path) -> Iterator[None]:
    """Keep an engine that has ended down, by hiding the configs of the bases."""
    configs = [folder / base / "config.json" for base in ADAPTERS]
    for config in configs:
        config.rename(config.with_suffix(".hidden"))
    try:
        yield
    finally:
        for config in configs:
            config.with_suffix(".hidden").rename(config)


def test_the_death_of_one_engine_leaves_the_other_serving(server: TwoBases, folder: Path) -> None:
    replies = {base: server.complete(base, "hello") for base in ADAPTERS}
    first, second = engines(server)
    assert server.text("/metrics").count("manylora_engine_up{base=") == 2
    with no_engine_starts(folder):
        os.kill(second, signal.SIGKILL)
        wait_for(lambda: "unhealthy" in server.get("/health")["bases"].values())
        [dead] = [base for base, state in server.get("/health")["bases"].items() if state != "ok"]
        [other] = ADAPTERS.keys() - {dead}
        # A probe may fail before the end of the process is noticed.
        wait_for(lambda: f'manylora_engine_up{{base="{dead}"}} 0.0' in server.text("/metrics"))
        assert server.complete(other, "hello") == replies[other]
        refused = server.post("/v1/completions", {"model": ADAPTERS[dead][0], "prompt": "hello"}, 503)
        assert refused["error"]["code"] == "deployment_unavailable"
        assert (server.status("/ready"), server.status(f"{DEPLOYMENT}/{dead}/ready")) == (200, 503)
    wait_for(lambda: server.status(f"{DEPLOYMENT}/{dead}/ready") == 200)
    assert server.complete(dead, "hello") == replies[dead]
    assert server.get("/health")["bases"] == dict.fromkeys(ADAPTERS, "ok")
    assert first in engines(server)
