"""An operator at a real server with a real engine: every action over HTTP, and the verbs of the command line."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from peft import LoraConfig
from typer.testing import CliRunner

from manylora.cli import app
from tests.console.house import OPERATOR_PAGES, PAGES
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.serving import make_cache, running_server
from tests.support.tiny import ALL, make_adapter, make_base
from tests.support.waiting import wait_for

NAMES = ("first", "team/second", "third", "fourth", "fifth", "sixth")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("operating")
    base = make_base(folder / "base", vocab_size=330, max_position_embeddings=4096)
    save_byte_level(folder / "base")
    for seed, name in enumerate(NAMES):
        make_adapter(base, folder / "adapters" / name, LoraConfig(r=4 + seed, target_modules=ALL), seed=seed)
    narrow = make_adapter(base, folder / "adapters" / "narrow", LoraConfig(r=4, target_modules=ALL), seed=9)
    config = json.loads((narrow / "adapter_config.json").read_text())
    config |= {"target_modules": ["q_proj"], "base_model_name_or_path": "org/\x1b[31mother"}
    (narrow / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapters" / "broken").mkdir()
    (folder / "adapters" / "broken" / "adapter_config.json").write_text("{}")
    make_cache(folder / "cache")
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx2.Client]:
    flags = ("--base", str(folder / "base"), "--adapter-root", str(folder / "adapters"))
    with (
        running_server(folder / "log", *flags, "--set", f"model.cache_dir={folder / 'cache'}") as url,
        httpx2.Client(base_url=url, timeout=60) as client,
    ):
        yield client


def act(client: httpx2.Client, name: str, action: str, *, wait: float = 30, status: int = 200) -> dict[str, Any]:
    path = f"/v1/adapters/{name}?wait={wait}"
    reply = client.delete(path) if action == "delete" else client.post(path, json={"action": action})
    assert reply.status_code == status, reply.text
    found: dict[str, Any] = reply.json()
    return found


def generate(client: httpx2.Client, name: str) -> httpx2.Response:
    parameters = {"adapter_id": name, "max_new_tokens": 3, "ignore_eos_token": True}
    return client.post("/generate", json={"inputs": "the quick", "parameters": parameters})


def metric(client: httpx2.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.rsplit(" ", 1)[0] == name)


def test_the_first_request_finds_a_preloaded_adapter_in_memory(client: httpx2.Client) -> None:
    info = act(client, "first", "preload")
    assert (info["state"], info["rank"], info["hits"], info["pins"]) == ("on_device", 4, 0, 0)
    assert info["num_bytes"] > 0
    assert info["stage_ms"]
    reply = generate(client, "first")
    assert (reply.headers["x-adapter-tier"], reply.headers["x-adapter-load-time"]) == ("cpu", "0")
    seen = client.get("/v1/adapters/first").json()
    assert (seen["hits"], seen["pins"], seen["digest"]) == (1, 0, info["digest"])
    assert seen["last_use_s"] < 60


def test_a_pinned_adapter_is_not_evicted_until_it_is_unpinned(client: httpx2.Client) -> None:
    assert act(client, "team/second", "pin")["is_pinned"]
    assert metric(client, "manylora_adapters_pinned") == 1
    refusal = act(client, "team/second", "evict", status=409)
    assert refusal["error"]["code"] == "adapter_in_use"
    assert not act(client, "team/second", "unpin")["is_pinned"]
    before = metric(client, 'manylora_adapters{tier="device"}')
    assert act(client, "team/second", "evict")["state"] == "absent"
    assert metric(client, 'manylora_adapters{tier="device"}') == before - 1
    assert generate(client, "team/second").status_code == 200


def test_pins_of_a_catalogue_are_set_once_kept_and_ended_by_a_pruning(client: httpx2.Client, tmp_path: Path) -> None:
    file = tmp_path / "catalogue.yaml"

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, [*words, "--url", str(client.base_url)])
        assert result.exit_code == 0, result.output
        return result.output

    run("export", "-o", str(file))
    assert "pins: []" in file.read_text(encoding="utf-8")
    file.write_text("pins: [first, local://team/second]\n", encoding="utf-8")
    shown = run("apply", "-f", str(file), "--dry-run")
    assert "pin local://first" in shown
    assert metric(client, "manylora_adapters_pinned") == 0, "nothing was done"
    assert "done: 2 steps" in run("apply", "-f", str(file))
    assert metric(client, "manylora_adapters_pinned") == 2
    assert "nothing to do" in run("apply", "-f", str(file), "--prune")
    file.write_text("pins: [first]\n", encoding="utf-8")
    assert "nothing to do" in run("apply", "-f", str(file)), "without a pruning none ends"
    assert "unpin local://team/second" in run("apply", "-f", str(file), "--prune")
    run("export", "-o", str(file))
    assert "local://first" in file.read_text(encoding="utf-8")
    assert "nothing to do" in run("apply", "-f", str(file), "--prune"), "nor has an export anything to do"
    file.write_text("pins: []\n", encoding="utf-8")
    run("apply", "-f", str(file), "--prune")
    assert metric(client, "manylora_adapters_pinned") == 0


def test_the_address_that_a_start_prints_leads_to_every_page_of_the_console(
    client: httpx2.Client, folder: Path
) -> None:
    [address] = re.findall(r"^console: (\S+)$", (folder / "log").read_text(encoding="utf-8"), re.MULTILINE)
    assert address == f"{str(client.base_url).rstrip('/')}/console"
    found, waiting = set[str](), {httpx2.URL(address).path}
    while waiting:
        path = waiting.pop()
        found.add(path)
        reply = client.get(path)
        assert reply.status_code == 200, (path, reply.text)
        links = re.findall(r'href="(/console[^"?#]*)', reply.text)
        waiting |= {link for link in links if "/static/" not in link} - found
    own = {f"/console{path.partition('?')[0]}" for path in (*PAGES.values(), *OPERATOR_PAGES.values())}
    assert own - found == {"/console/sign-in-settings", "/console/operator/tenants/acme"}, "no keys, and no such tenant"
    figures = client.get("/console/operator/fleet/figures").json()
    assert figures.keys() == {"in_flight", "waiting", "tokens"}


def test_verifying_reads_the_packed_image_again(client: httpx2.Client) -> None:
    act(client, "third", "preload")
    assert act(client, "third", "verify")["is_verified"] is True


def test_a_deleted_adapter_is_unknown_from_then_on(client: httpx2.Client) -> None:
    act(client, "fourth", "preload")
    before = metric(client, 'manylora_adapter_bytes{tier="disk"}')
    gone = act(client, "fourth", "delete")
    assert (gone["state"], gone["pins"]) == ("absent", 0)
    wait_for(lambda: metric(client, 'manylora_adapter_bytes{tier="disk"}') < before)
    assert generate(client, "fourth").status_code == 404
    assert client.get("/v1/adapters/fourth").status_code == 404
    assert "fourth" not in [entry["id"] for entry in client.get("/v1/adapters").json()["data"]]
    assert "fourth" not in [entry["id"] for entry in client.get("/v1/models").json()["data"]]


def test_a_request_under_way_keeps_a_deleted_adapter_until_it_ends(client: httpx2.Client) -> None:
    # So many that the engine still generates when the delete comes, however busy the machine is.
    parameters = {"adapter_id": "fifth", "max_new_tokens": 2000, "ignore_eos_token": True}
    body = {"inputs": "the quick", "parameters": parameters}
    with client.stream("POST", "/generate_stream", json=body) as reply:
        events = reply.iter_lines()
        assert next(events).startswith("data: ")
        begun = act(client, "fifth", "delete", wait=0, status=202)
        assert (begun["is_deleted"], begun["pins"]) == (True, 1)
        assert generate(client, "fifth").status_code == 404
        assert sum(line.startswith("data: ") for line in events) == 1999
    wait_for(lambda: client.get("/v1/adapters/fifth").status_code == 404)


def test_what_cannot_be_loaded_says_why(client: httpx2.Client) -> None:
    reply = client.post("/v1/adapters/broken?wait=30", json={"action": "preload"})
    assert "Adapter 'broken' cannot be read" in reply.text
    missing = client.post("/v1/adapters/nothing", json={"action": "preload"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "adapter_not_found")


def test_the_command_line_does_the_same(client: httpx2.Client) -> None:
    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["adapters", *words, "--url", str(client.base_url)])
        return result.exit_code, result.output

    for verb, end in (("preload", " is on_device"), ("pin", ", pinned"), ("verify", ", verified"), ("unpin", "")):
        code, output = run(verb, "sixth")
        assert (code, output.startswith("done: local:sixth is on_device")) == (0, True), output
        assert end in output
    assert "sixth" in run("ls", "--state", "on_device")[1]
    assert "load: read" in run("show", "sixth")[1]
    assert run("evict", "sixth") == (0, "done: local:sixth is absent\n")
    assert run("rm", "--yes", "sixth")[0] == 0
    assert run("show", "sixth") == (1, "manylora: Adapter 'sixth' was not found in source 'local'\n")
    assert run("preload", "broken")[0] == 1


def test_the_ingest_report_tells_what_is_applied_and_what_is_left_out(client: httpx2.Client) -> None:
    assert client.get("/v1/adapters/narrow").json()["report"] is None
    report = act(client, "narrow", "preload")["report"]
    assert (report["num_applied"], report["num_left_out"]) == (6, 36)
    assert client.get("/v1/adapters/narrow").json()["report"] == report
    told = CliRunner().invoke(app, ["adapters", "show", "narrow", "--url", str(client.base_url)])
    assert told.exit_code == 0
    assert "\x1b" not in told.stdout
    text = " ".join(told.stdout.split())
    assert "6 applied, 36 left out, of 42" in text
    assert "model.layers.*.self_attn.q_proj 0-2 lora_A, lora_B 4 2" in text
    assert "model.layers.*.mlp.up_proj.lora_B.weight 0-2 `target_modules` does not name its module" in text
    assert r"warning: it was trained on \x1b[31mother" in text
