"""What replies say of an adapter's way to the device: cold, packed and resident, on every route that generates."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from peft import LoraConfig

from tests.adapters.fake_hub import HttpServer, Repository
from tests.conftest import thinned
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.serving import make_cache, running_server
from tests.support.tiny import ALL, make_adapter, make_base

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
NATIVE: dict[str, object] = {"inputs": "the quick brown fox"}
ROUTES: dict[str, tuple[str, dict[str, object]]] = {
    "generate": ("/generate", NATIVE),
    "generate-stream": ("/generate_stream", NATIVE),
    "root": ("/", NATIVE),
    "root-stream": ("/", {**NATIVE, "stream": True}),
    "completions": ("/v1/completions", {"prompt": "the quick"}),
    "completions-stream": ("/v1/completions", {"prompt": "the quick", "stream": True}),
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
    "chat-stream": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}], "stream": True}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and for every route an adapter of its own, so that each meets it cold."""
    folder = tmp_path_factory.mktemp("headers")
    base = make_base(folder / "base", vocab_size=330)
    save_byte_level(folder / "base")
    settings = json.loads((folder / "base" / "tokenizer_config.json").read_text())
    (folder / "base" / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    for seed, name in enumerate(ROUTES):
        for source in ("local", "hub"):
            shape = LoraConfig(r=4, lora_alpha=8, target_modules=ALL)
            make_adapter(base, folder / source / name, shape, seed=2 * seed + (source == "hub"))
    make_cache(folder / "cache")
    return folder


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[str]:
    server = HttpServer(folder / "hub")
    for name in ROUTES:
        repository = server.repositories[f"org/{name}"] = Repository()
        repository.push({file.name: file.read_bytes() for file in (folder / "hub" / name).glob("adapter_*")})
    yield f"http://127.0.0.1:{server.port}"
    server.close()


@pytest.fixture(scope="module", params=["fresh", "restarted"])
def server(folder: Path, hub: str, request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A server, and how it finds local adapters: the second one inherits what the first one packed."""
    flags = ("--base", str(folder / "base"), "--adapter-root", str(folder / "local"))
    own = ("--set", f"model.cache_dir={folder / 'cache'}", "--set", f"adapters.hub_endpoint={hub}")
    with running_server(folder / f"log-{request.param}", *flags, *own) as url:
        yield url, request.param


def headers_of(url: str, route: str, adapter_id: str, source: str) -> dict[str, int | str]:
    """The head of one reply whose body was read to its end; times as numbers."""
    path, body = ROUTES[route]
    named: dict[str, object] = {"adapter_id": adapter_id, "adapter_source": source}
    if path.startswith("/v1"):
        body = {**body, **named, "max_tokens": 4}
    else:
        body = {**body, "parameters": {**named, "max_new_tokens": 4}}
    with httpx2.stream("POST", url + path, json=body, timeout=60) as reply:
        text = b"".join(reply.iter_bytes())
    assert reply.status_code == 200, text
    assert (reply.headers["content-type"] == "text/event-stream") == route.endswith("-stream")
    return {name: int(value) if value.isdigit() else value for name, value in reply.headers.items()}


def check_times(headers: dict[str, int | str], *, is_cold: bool) -> None:
    """Each figure contains the one before; they are rounded one by one, so that a millisecond may be missing."""
    load_ms, queue_ms = headers["x-adapter-load-time"], headers["x-queue-time"]
    first_ms, validation_ms = headers["x-time-to-first-token"], headers["x-validation-time"]
    assert isinstance(load_ms, int)
    assert isinstance(queue_ms, int)
    assert isinstance(first_ms, int)
    assert isinstance(validation_ms, int)
    assert (load_ms > 0) == is_cold
    assert queue_ms >= load_ms - 1
    assert first_ms >= validation_ms + queue_ms - 2  # from the request's arrival, not from its first step
    total_ms = headers.get("x-total-time", first_ms)
    assert isinstance(total_ms, int)
    assert total_ms >= first_ms


@pytest.mark.parametrize("route", thinned(ROUTES, 3))
def test_a_local_adapter_is_found_on_disk_and_then_in_memory(server: tuple[str, str], route: str) -> None:
    url, life = server
    first, second = (headers_of(url, route, route, "local") for _ in range(2))
    assert (first["x-adapter-id"], first["x-adapter-source"], first["x-adapter-tier"]) == (route, "local", "disk")
    if life == "fresh":
        check_times(first, is_cold=True)
    assert (second["x-adapter-tier"], second["x-adapter-load-time"]) == ("cpu", 0)
    check_times(second, is_cold=False)


@pytest.mark.parametrize("route", ROUTES)
def test_an_adapter_of_a_hub_is_remote_and_then_in_memory(server: tuple[str, str], route: str) -> None:
    url, life = server
    first, second = (headers_of(url, route, f"org/{route}", "hub") for _ in range(2))
    # A server that has just started asks the hub which version there is before it can look on its disk.
    assert (first["x-adapter-id"], first["x-adapter-source"], first["x-adapter-tier"]) == (
        f"org/{route}",
        "hub",
        "remote",
    )
    if life == "fresh":
        check_times(first, is_cold=True)
    assert (second["x-adapter-tier"], second["x-adapter-load-time"]) == ("cpu", 0)
    check_times(second, is_cold=False)


@pytest.mark.parametrize("route", thinned(ROUTES, 3))
def test_the_base_has_no_adapter_headers(server: tuple[str, str], route: str) -> None:
    headers = headers_of(server[0], route, "", "")
    assert not {"x-adapter-id", "x-adapter-source", "x-adapter-tier", "x-adapter-load-time"} & set(headers)
    assert isinstance(headers["x-time-to-first-token"], int)
