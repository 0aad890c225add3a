"""A real server, its control plane inside it: an adapter is uploaded over HTTP, and the next request runs on it."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from peft import LoraConfig

from tests.models.tiny_tokenizers import save_byte_level
from tests.support.serving import running_server
from tests.support.tiny import ALL, make_adapter, make_base

PARTS = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uploaded")
    base = make_base(folder / "Tiny-Base", vocab_size=330)
    save_byte_level(folder / "Tiny-Base")
    (folder / "adapters").mkdir()
    for seed in (1, 2):
        config = LoraConfig(r=4, lora_alpha=16, target_modules=ALL)
        make_adapter(base, folder / f"made-{seed}", config, seed=seed)
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx2.Client]:
    flags = ("--base", str(folder / "Tiny-Base"), "--adapter-root", str(folder / "adapters"))
    settings = ("--set", f"control.dir={folder / 'control'}", "--set", f"metering.dir={folder / 'metering'}")
    with (
        running_server(folder / "log", *flags, *settings) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
    ):
        yield client


def upload(client: httpx2.Client, made: Path) -> int:
    begun = client.post("/v2/adapters/upload", json={"repo": "triage"}).raise_for_status().json()
    for name in PARTS:
        client.put(begun["presignedUrls"][name], content=(made / name).read_bytes()).raise_for_status()
    done = client.put("/v2/adapters/upload/", json={"uploadToken": begun["uploadToken"]}).raise_for_status()
    return int(done.json()["tag"])


def generate(client: httpx2.Client, adapter_id: str | None) -> httpx2.Response:
    parameters = {"adapter_id": adapter_id, "max_new_tokens": 6, "ignore_eos_token": True, "details": True}
    return client.post("/generate", json={"inputs": "the quick brown fox", "parameters": parameters})


def tokens(reply: httpx2.Response) -> list[int]:
    assert reply.status_code == 200, reply.text
    return [token["id"] for token in reply.json()["details"]["tokens"]]


def test_an_upload_serves_the_next_request_and_an_alias_switches_it(client: httpx2.Client, folder: Path) -> None:
    client.post("/v2/repos", json={"name": "triage"}).raise_for_status()
    assert generate(client, "triage").status_code == 404
    assert [upload(client, folder / f"made-{seed}") for seed in (1, 2)] == [1, 2]
    first, second = (tokens(generate(client, f"triage/{version}")) for version in (1, 2))
    assert first != second != tokens(generate(client, None))
    assert tokens(generate(client, "triage")) == second
    for version, expected in ((1, first), (2, second), (1, first)):
        client.put("/v2/repos/triage/aliases/prod", json={"version": version}).raise_for_status()
        assert tokens(generate(client, "triage/prod")) == expected
    client.put("/v2/repos/triage/version/2", json={"archived": True}).raise_for_status()
    assert tokens(generate(client, "triage")) == first
    assert generate(client, "triage/2").status_code == 404
    client.delete("/v2/repos/triage").raise_for_status()
    assert generate(client, "triage/1").status_code == 404


def test_what_is_unfit_for_the_base_is_refused_when_it_is_uploaded(client: httpx2.Client, folder: Path) -> None:
    client.post("/v2/repos", json={"name": "triage", "existsOk": True}).raise_for_status()
    other = make_adapter(
        make_base(folder / "other", hidden_size=96, vocab_size=330),
        folder / "made-for-other",
        LoraConfig(r=4, target_modules=ALL),
        seed=3,
    )
    with pytest.raises(httpx2.HTTPStatusError) as caught:
        upload(client, other)
    told = caught.value.response.json()
    assert (told["code"], "is not compatible with model 'Tiny-Base'" in told["error"]) == ("adapter_incompatible", True)


def test_the_deployment_that_is_listed_answers_under_its_name(client: httpx2.Client) -> None:
    [shared] = client.get("/v2/deployments").raise_for_status().json()["data"]
    assert shared["name"] == "tiny-base"
    body = {"inputs": "the quick", "parameters": {"max_new_tokens": 2}}
    reply = client.post(f"/default/deployments/v2/llms/{shared['name']}/generate", json=body)
    assert (reply.status_code, reply.headers["x-model-id"]) == (200, "Tiny-Base"), reply.text
