"""A real server with a registry: each tenant's uploads by name and number, and tokens that an adapter adds."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from peft import LoraConfig

from manylora.adapters.sources.upload_folders import Registry
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.peft_grid import Case, save_case
from tests.support.serving import running_server
from tests.support.tiny import ALL, make_adapter, make_base

SIZE, ADDED = 330, 4


def upload(registry: Registry, tenant: str, repo: str, folder: Path) -> int:
    names = ("adapter_config.json", "adapter_model.safetensors")
    config, weights = ((folder / name).read_bytes() for name in names)
    return registry.add(tenant, repo, config, weights)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    folder = tmp_path_factory.mktemp("registry")
    base = make_base(folder / "base", vocab_size=SIZE)
    save_byte_level(folder / "base")
    registry = Registry(folder / "registry")
    for seed in (1, 2):
        made = make_adapter(
            base, folder / f"made-{seed}", LoraConfig(r=4, lora_alpha=16, target_modules=ALL), seed=seed
        )
        upload(registry, "acme", "triage", made)
    make_adapter(base, folder / "adapters" / "near", LoraConfig(r=2, target_modules=ALL), seed=3)
    save_case(Case({"r": 4, "target_modules": ["q_proj"]}, added=ADDED), base, folder / "added", seed=4)
    upload(registry, "acme", "added", folder / "added")
    flags = ("--base", str(folder / "base"), "--adapter-root", str(folder / "adapters"))
    settings = ("--set", f"adapters.registry_dir={folder / 'registry'}")
    with (
        running_server(folder / "log", *flags, *settings) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
    ):
        yield client


def generate(client: httpx2.Client, adapter_id: str, tenant: str = "acme", **more: str) -> httpx2.Response:
    parameters = {"adapter_id": adapter_id, "max_new_tokens": 6, "ignore_eos_token": True, "details": True, **more}
    body = {"inputs": "the quick brown fox", "parameters": parameters}
    return client.post(f"/{tenant}/deployments/v2/llms/base/generate", json=body)


def tokens(reply: httpx2.Response) -> list[int]:
    assert reply.status_code == 200, reply.text
    return [token["id"] for token in reply.json()["details"]["tokens"]]


def test_a_repository_is_its_newest_version_and_a_number_that_one(client: httpx2.Client) -> None:
    newest = generate(client, "triage")
    assert tokens(newest)
    assert newest.headers["x-adapter-source"] == "pbase"
    assert (
        tokens(newest)
        == tokens(generate(client, "triage/2"))
        == tokens(generate(client, "triage", adapter_source="pbase"))
    )
    assert tokens(newest) != tokens(generate(client, "triage/1"))


def test_a_tenant_finds_its_own_alone(client: httpx2.Client) -> None:
    for adapter_id in ("triage", "triage/1"):
        reply = generate(client, adapter_id, tenant="globex", adapter_source="pbase")
        assert (reply.status_code, reply.json()["code"]) == (404, "adapter_not_found")
    assert generate(client, "triage", tenant="globex").status_code == 404
    names = {tenant: _models(client, tenant) for tenant in ("acme", "globex")}
    assert names["acme"] == {"base", "near", "triage", "triage/1", "triage/2", "added", "added/1"}
    assert names["globex"] == {"base", "near"}


def _models(client: httpx2.Client, tenant: str) -> set[str]:
    return {model["id"] for model in client.get(f"/{tenant}/deployments/v2/llms/base/v1/models").json()["data"]}


def test_a_local_adapter_is_every_tenants_that_has_no_repository_of_that_name(client: httpx2.Client) -> None:
    assert generate(client, "near").headers["x-adapter-source"] == "local"


def test_added_tokens_are_taken_for_their_adapter_alone(client: httpx2.Client) -> None:
    def ask(model: str, prompt: list[int]) -> httpx2.Response:
        body = {"model": model, "prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
        return client.post("/acme/deployments/v2/llms/base/v1/completions", json=body)

    assert ask("added", [5, SIZE, SIZE + ADDED - 1]).status_code == 200
    for model, prompt in (("added", [SIZE + ADDED]), ("triage", [SIZE]), ("", [SIZE]), ("added", [SIZE + 5000])):
        reply = ask(model, prompt)
        assert reply.status_code == 400, model
        assert "token ids must be >= 0 and < " in reply.json()["error"]["message"]
