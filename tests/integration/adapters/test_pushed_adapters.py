"""A real server to which trainers push adapters: the next request has the new weights, and nothing old is left."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save

from tests.conftest import long
from tests.control.control_process import EDGE_TOKEN, running_control
from tests.forks import COMMAND, Fork, forks
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.serving import make_cache, running_server, wait_for_url
from tests.support.tiny import make_adapter, make_base
from tests.support.waiting import PATIENCE_S, listens, wait_for

SIZE = 330
BYTES = {"content-type": "application/octet-stream"}
CONFIG = "adapter_config.json"


class Pushing:
    """The server's folders, its client, and two adapters as one file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        base = make_base(folder / "base", vocab_size=SIZE)
        save_byte_level(folder / "base")
        make_adapter(base, folder / "adapters" / "near", LoraConfig(r=2, target_modules=["q_proj"]), seed=3)
        self.files = [
            make_adapter(
                base,
                folder / f"made-{seed}",
                LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"]),
                seed=seed,
            )
            for seed in (1, 2)
        ]
        self.bodies = [as_one(file) for file in self.files]
        self.client = httpx2.Client(timeout=PATIENCE_S)

    def push(self, body: bytes, name: str = "fresh", tenant: str = "acme", **headers: str) -> httpx2.Response:
        return self.client.post(
            f"/{tenant}/deployments/v2/llms/base/v1/adapters/{name}/tensors", content=body, headers={**BYTES, **headers}
        )

    def delete(self, name: str = "fresh", tenant: str = "acme") -> httpx2.Response:
        return self.client.delete(f"/{tenant}/deployments/v2/llms/base/v1/adapters/{name}/tensors")

    def generate(self, name: str = "fresh", tenant: str = "acme", **more: Any) -> httpx2.Response:
        parameters = {"adapter_id": name, "max_new_tokens": 6, "ignore_eos_token": True, "details": True, **more}
        body = {"inputs": "the quick brown fox jumps over the lazy dog", "parameters": parameters}
        return self.client.post(f"/{tenant}/deployments/v2/llms/base/generate", json=body)

    def tokens(self, **more: Any) -> list[int]:
        reply = self.generate(**more)
        assert reply.status_code == 200, reply.text
        return [token["id"] for token in reply.json()["details"]["tokens"]]

    def pushed_files(self) -> int:
        return sum(file.is_file() for file in (self.folder / "metering" / "pushed").rglob("*"))


def as_one(folder: Path, change: float = 1.0) -> bytes:
    tensors = {name: change * tensor for name, tensor in load_file(folder / "adapter_model.safetensors").items()}
    return save(tensors, metadata={"format": "pt", CONFIG: (folder / CONFIG).read_text()})


@pytest.fixture(scope="module")
def pushing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushing]:
    made = Pushing(tmp_path_factory.mktemp("pushing"))
    folder = made.folder
    flags = ("--base", str(folder / "base"), "--adapter-root", str(folder / "adapters"))
    settings = {
        "model.cache_dir": make_cache(folder / "cache"),
        "adapters.pushed_count": 3,
        "adapters.max_bytes": 1 << 20,
    }
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    with running_server(folder / "log", *flags, *words) as url, httpx2.Client(base_url=url, timeout=60) as client:
        made.client = client
        yield made


def test_the_next_request_has_the_weights_of_the_last_push(pushing: Pushing) -> None:
    assert pushing.generate().status_code == 404
    replies = []
    for body in (*pushing.bodies, pushing.bodies[0]):
        reply = pushing.push(body)
        assert (reply.status_code, reply.json()["state"]) == (200, "on_device"), reply.text
        replies.append((reply.json()["digest"], pushing.tokens()))
    assert replies[0] == replies[2] != replies[1]
    assert replies[0][1] != replies[1][1]
    used = pushing.generate(adapter_source="pushed")
    assert used.headers["x-adapter-source"] == "pushed"
    assert used.headers["x-adapter-id"].startswith("fresh/")
    assert pushing.generate(tenant="globex").status_code == 404
    models = pushing.client.get("/acme/deployments/v2/llms/base/v1/models").json()["data"]
    assert "fresh" in {model["id"] for model in models}
    mixed = {"adapter_id": None, "adapters": [{"id": "fresh", "weight": 0.5}, {"id": "near"}]}
    assert pushing.tokens(**mixed) != replies[0][1]
    assert pushing.delete().status_code == 200
    assert (pushing.generate().status_code, pushing.delete().status_code) == (404, 404)


def test_each_wrong_push_is_refused_and_leaves_what_was_there(pushing: Pushing) -> None:
    good = pushing.push(pushing.bodies[0])
    expected = pushing.tokens()
    tensors = load_file(pushing.files[0] / "adapter_model.safetensors")
    config = json.loads((pushing.files[0] / CONFIG).read_text())
    foreign = {name: torch.zeros(3, 3) for name in tensors}
    loop = json.dumps({**config, "peft_type": "IA3"})
    for body, status, words in (
        (b"", 400, "safetensors"),
        (b"\x80\x02pickle", 400, "safetensors"),
        (b"\xff" * 8 + b"x", 400, "over 16777216"),
        (save(tensors), 400, "no `adapter_config.json`"),
        (save(tensors, metadata={CONFIG: "{"}), 400, "adapter_config.json"),
        (save(tensors, metadata={CONFIG: loop}), 400, "peft_type"),
        (save(foreign, metadata={CONFIG: json.dumps(config)}), 400, "48 to 48"),
        (pushing.bodies[0][:-7], 400, "fresh"),
        (bytes((1 << 20) + 1), 413, "adapters.max_bytes"),
    ):
        reply = pushing.push(body)
        assert (reply.status_code, words in reply.text) == (status, True), (body[:80], reply.status_code, reply.text)
        assert pushing.tokens() == expected
    body = pushing.bodies[1]
    assert pushing.push(body, **{"content-type": "application/json"}).status_code == 415
    assert "gzip" in pushing.push(body, **{"content-encoding": "gzip"}).text
    assert (pushing.push(body, "near").status_code, pushing.push(body, "base").status_code) == (409, 409)
    assert pushing.push(body, "a..b").status_code == 400
    assert [pushing.push(body, f"more-{number}").status_code for number in range(3)] == [200, 200, 403]
    assert [pushing.delete(f"more-{number}").status_code for number in range(2)] == [200, 200]
    assert good.status_code == 200
    assert pushing.delete().status_code == 200


@pytest.mark.parametrize("count", long(100))
def test_pushes_in_a_row_leave_no_memory_and_no_file(pushing: Pushing, count: int) -> None:
    bodies = [as_one(pushing.files[0], 1 + number / 100) for number in range(20 + count)]
    port = pushing.client.base_url.port

    def processes() -> list[psutil.Process]:
        own = next(each for each in psutil.Process().children(recursive=True) if listens(each, port))
        return [own, *own.children(recursive=True)]

    def memory() -> int:
        total = 0
        for process in processes():
            with suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    for body in bodies[:20]:
        assert pushing.push(body).status_code == 200
    before = memory()
    images = pushing.folder / "cache" / "adapters"

    def num_files() -> int:
        return sum(file.is_file() for file in images.rglob("*"))

    files_before = num_files()
    for body in bodies[20:]:
        assert pushing.push(body).status_code == 200
    wait_for(lambda: memory() - before < 24 << 20)
    wait_for(lambda: num_files() <= files_before + 6)
    wait_for(lambda: pushing.pushed_files() <= 3 * 3)  # the present version, the one before it, and one that goes
    assert pushing.delete().status_code == 200


@pytest.mark.long
def test_pushes_race_with_requests_and_deletes(pushing: Pushing) -> None:
    found: dict[str, set[int]] = {"push": set(), "generate": set(), "delete": set()}
    strange: set[str] = set()
    done = threading.Event()

    def repeat(kind: str, count: int) -> None:
        for number in range(count):
            if kind == "push":
                found[kind].add(pushing.push(pushing.bodies[number % 2]).status_code)
            elif kind == "delete":
                done.wait(0.05)
                found[kind].add(pushing.delete().status_code)
            else:
                reply = pushing.generate()
                found[kind].add(reply.status_code)
                strange.update({reply.text} if reply.status_code not in (200, 404) else ())

    threads = [
        threading.Thread(target=repeat, args=(kind, count))
        for kind, count in (("push", 12), ("push", 12), ("generate", 30), ("generate", 30), ("delete", 8))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["push"] == {200}
    assert strange == set()
    assert found["delete"] <= {200, 404}
    pushing.push(pushing.bodies[0])
    assert pushing.generate().status_code == 200
    pushing.delete()


@contextmanager
def edge(folder: Path, base: Path, plane: str) -> Iterator[tuple[Fork, httpx2.Client]]:
    """A server that a test may kill."""
    settings = {
        "control.url": plane,
        "control.edge_token": EDGE_TOKEN,
        "metering.dir": folder / "metering",
        "storage.dir": folder / "storage",
        "adapters.registry_dir": folder / "uploads",
    }
    if not (folder / "cache").exists():
        make_cache(folder / "cache")
    words = ["serve", "--port", "0", "--base", str(base), "--set", f"model.cache_dir={folder / 'cache'}"]
    for name, value in settings.items():
        words += ["--set", f"{name}={value}"]
    log = folder / f"log-{len(list(folder.iterdir()))}"
    process = forks().start(COMMAND, words, output=log, errors=log)
    try:
        with httpx2.Client(base_url=wait_for_url(process, log), timeout=60) as client:
            yield process, client
    finally:
        process.kill()
        process.wait()


def tokens_of(client: httpx2.Client) -> list[int]:
    parameters = {"adapter_id": "fresh", "max_new_tokens": 6, "ignore_eos_token": True, "details": True}
    body = {"inputs": "the quick brown fox jumps over the lazy dog", "parameters": parameters}
    reply = client.post("/generate", json=body)
    assert reply.status_code == 200, reply.text
    return [token["id"] for token in reply.json()["details"]["tokens"]]


@pytest.mark.long
def test_a_push_is_served_by_both_servers_and_after_a_kill(tmp_path: Path) -> None:
    bodies = Pushing(tmp_path).bodies
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with ExitStack() as stack:
        plane = stack.enter_context(running_control(tmp_path / "control"))
        first, one = stack.enter_context(edge(tmp_path / "one", tmp_path / "base", plane.url))
        _, two = stack.enter_context(edge(tmp_path / "two", tmp_path / "base", plane.url))
        path, told = "/v1/adapters/fresh/tensors", []
        for body in bodies:
            assert one.post(path, content=body, headers=BYTES).status_code == 200
            told.append(tokens_of(two))
            assert tokens_of(one) == told[-1]
        assert told[0] != told[1]
        assert two.post(path, content=bodies[0], headers=BYTES).status_code == 200
        assert tokens_of(one) == told[0]
        os.kill(first.pid, signal.SIGKILL)
        first.wait(PATIENCE_S)
        assert tokens_of(two) == told[0]
        _, one = stack.enter_context(edge(tmp_path / "one", tmp_path / "base", plane.url))
        assert tokens_of(one) == told[0]
        assert one.delete(path).status_code == 200
        assert two.post("/generate", json={"inputs": "x", "parameters": {"adapter_id": "fresh"}}).status_code == 404
