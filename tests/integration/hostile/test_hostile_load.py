"""A real server under bad input: each a clear error, the others' streams untouched, nothing leaked afterwards."""

import json
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from tests.models.tiny_tokenizers import save_byte_level
from tests.support.serving import running_server
from tests.support.tiny import ALL, make_adapter, make_base
from tests.support.waiting import wait_for

SHAPE = LoraConfig(r=4, lora_alpha=8, target_modules=ALL)
PROMPT = "the quick brown fox"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("hostile")
    base = make_base(folder / "base", vocab_size=330)
    save_byte_level(folder / "base")
    other = make_base(folder / "other", vocab_size=330, hidden_size=32, num_attention_heads=4)
    adapters = folder / "adapters"
    good = make_adapter(base, adapters / "good", SHAPE)
    make_adapter(other, adapters / "wrong-shape", SHAPE)
    for name in ("truncated", "nan", "no-config", "pickled", "qalora"):
        shutil.copytree(good, adapters / name)
    weights = adapters / "truncated" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-200])
    poisoned = load_file(adapters / "nan" / "adapter_model.safetensors")
    next(iter(poisoned.values()))[0, 0] = float("nan")
    save_file(poisoned, adapters / "nan" / "adapter_model.safetensors")
    (adapters / "no-config" / "adapter_config.json").unlink()
    (adapters / "pickled" / "adapter_model.safetensors").rename(adapters / "pickled" / "adapter_model.bin")
    config = json.loads((adapters / "qalora" / "adapter_config.json").read_text())
    (adapters / "qalora" / "adapter_config.json").write_text(json.dumps({**config, "use_qalora": True}))
    flags = ("--base", str(folder / "base"), "--adapter-root", str(adapters), "--set", "adapters.negative_cache_s=0")
    with running_server(folder / "log", *flags) as url:
        yield url


def generate(url: str, **parameters: Any) -> httpx2.Response:  # JSON values of several types
    return httpx2.post(f"{url}/generate", json={"inputs": PROMPT, "parameters": parameters}, timeout=60)


def stream(url: str, **parameters: Any) -> list[int]:  # JSON values of several types
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 150, "ignore_eos_token": True, **parameters}}
    with httpx2.stream("POST", f"{url}/generate_stream", json=body, timeout=60) as reply:
        assert reply.status_code == 200
        events = [json.loads(line.removeprefix("data: ")) for line in reply.iter_lines() if line.startswith("data: ")]
    return [event["token"]["id"] for event in events]


BROKEN = {
    "truncated": (422, "adapter_corrupt", "Adapter 'truncated' cannot be read: "),
    "nan": (422, "adapter_corrupt", "Adapter 'nan' cannot be read: "),
    "no-config": (422, "adapter_corrupt", "Adapter 'no-config' cannot be read: "),
    "pickled": (422, "adapter_unsafe_format", "Adapter 'pickled' has no safetensors weights"),
    "wrong-shape": (422, "adapter_incompatible", "Adapter 'wrong-shape' is not compatible with model 'base': "),
    "qalora": (422, "adapter_unsupported", "Adapter 'qalora' uses QA-LoRA (`use_qalora`), which this server does not"),
    "nowhere": (404, "adapter_not_found", "Adapter 'nowhere' was not found in source 'local'"),
    "../good": (422, "adapter_reference_invalid", "Input validation error: `adapter_id` must be a name"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_adapter_is_a_clear_error(server: str, name: str) -> None:
    status, code, text = BROKEN[name]
    reply = generate(server, adapter_id=name, max_new_tokens=2)
    assert (reply.status_code, reply.json()["code"]) == (status, code)
    assert reply.json()["error"].startswith(text)


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b'{"inputs": ', 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b'{"parameters": {}}', 422, "invalid_parameter"),
        (b'{"inputs": ""}', 422, "invalid_parameter"),
        (b'{"inputs": "x", "parameters": {"temperature": -1}}', 422, "invalid_parameter"),
        (b'{"inputs": "x", "parameters": {"best_of": 99, "do_sample": true}}', 422, "invalid_parameter"),
        (
            b'{"inputs": "x", "parameters": {"merged_adapters": {"ids": ["a"], "weights": [1, 2]}}}',
            422,
            "invalid_parameter",
        ),
        (json.dumps({"inputs": "fox " * 2000}).encode(), 422, "context_length_exceeded"),
        (b'{"inputs": "' + b"x" * (3 << 20) + b'"}', 413, "body_too_large"),
    ],
)
def test_a_bad_request_is_a_clear_error(server: str, content: bytes, status: int, code: str) -> None:
    reply = httpx2.post(f"{server}/generate", content=content, headers={"content-type": "application/json"}, timeout=60)
    assert reply.status_code == status
    assert reply.json()["code"] == code


def hang_up(url: str) -> None:
    """Begin a long stream, read its first bytes and close the connection."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"inputs": PROMPT, "parameters": {"max_new_tokens": 200, "ignore_eos_token": True}}).encode()
    head = f"POST /generate_stream HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}"
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        assert connection.recv(64).startswith(b"HTTP/1.1 200")


def gauges(url: str) -> dict[str, float]:
    lines = httpx2.get(f"{url}/metrics", timeout=30).text.splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if line.startswith("manylora_")]
    return {name: float(value) for name, value in pairs}


def test_bad_input_leaves_others_streams_untouched_and_nothing_behind(server: str) -> None:
    calm = {name: stream(server, adapter_id=name) for name in ("good", "")}
    with ThreadPoolExecutor(8) as pool:
        streams = {name: [pool.submit(stream, server, adapter_id=name) for _ in range(2)] for name in calm}
        trouble: list[Future[Any]] = [pool.submit(generate, server, adapter_id=name) for name in BROKEN]
        trouble += [pool.submit(hang_up, server) for _ in range(6)]
        for future in trouble:
            future.result()
        for name, expected in calm.items():
            assert [future.result() for future in streams[name]] == [expected, expected]
    wait_for(lambda: is_at_rest(gauges(server)))


def is_at_rest(left: dict[str, float]) -> bool:
    """Return whether a server has no work and one adapter; a reading has its engine's numbers before its edge's."""
    held = [left[f"manylora_{name}"] for name in ("in_flight", "kv_blocks_used", "loading")]
    return held == [0, 0, 0] and left['manylora_adapters{tier="device"}'] == 1
