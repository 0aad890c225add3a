"""A prompt of 100,000 tokens over HTTP beside running streams: bounded memory, streams that go on, the same tokens."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.models.tiny_tokenizers import save_byte_level
from tests.support.serving import running_server
from tests.support.tiny import make_base
from tests.support.waiting import wait_for

pytestmark = pytest.mark.long  # twenty seconds

PROMPT_TOKENS, LETTERS, POSITIONS = 100_000, 104_000, 131_072
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 16.0, "original_max_position_embeddings": 8192}
STREAMS = 3
MEMORY_MARGIN = 48 << 20
"""Bytes that the engine's process may take beside the keys and values: 24 MB were measured, for the prompt."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("long")
    make_base(
        folder / "base",
        vocab_size=330,
        hidden_size=16,
        intermediate_size=4096,  # so that attention is as large a part of a step as in a model of a billion
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=POSITIONS,
        rope_parameters=YARN,
    )
    save_byte_level(folder / "base")
    flags = ("--base", str(folder / "base"), "--set", "engine.guess_tokens=0")
    with running_server(folder / "log", *flags) as url:
        yield url


def long_reply(url: str) -> dict[str, Any]:
    inputs = "".join(chr(97 + (position * position // 7) % 26) for position in range(LETTERS))
    parameters = {"max_new_tokens": 4, "details": True, "ignore_eos_token": True}
    reply = httpx2.post(f"{url}/generate", json={"inputs": inputs, "parameters": parameters}, timeout=240)
    assert reply.status_code == 200, reply.text
    details: dict[str, Any] = reply.json()["details"]
    return details


def peak_bytes() -> int:
    """The most memory that a process below this one has had."""
    found = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(OSError):  # it has ended meanwhile
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            found = max([found, *(1024 * int(line.split()[1]) for line in lines if line[:6] == "VmHWM:")])
    return found


class Stream:
    """A reader of a stream that ends when it is told to."""

    def __init__(self, url: str, end: threading.Event) -> None:
        self.tokens = 0
        self._url, self._end = url, end

    def read(self) -> None:
        body = {"inputs": "ab", "parameters": {"max_new_tokens": 100_000, "ignore_eos_token": True}}
        with httpx2.stream("POST", f"{self._url}/generate_stream", json=body, timeout=60) as reply:
            assert reply.status_code == 200
            for line in reply.iter_lines():
                if line.startswith("data:"):
                    assert "token" in json.loads(line.removeprefix("data:"))
                    self.tokens += 1
                if self._end.is_set():
                    return


def test_a_long_prompt_is_computed_beside_streams_that_go_on(server: str) -> None:
    end = threading.Event()
    streams = [Stream(server, end) for _ in range(STREAMS)]
    with ThreadPoolExecutor(STREAMS) as pool:
        readers = [pool.submit(stream.read) for stream in streams]
        try:
            wait_for(lambda: all(stream.tokens > 10 for stream in streams))
            before, peak_before = [stream.tokens for stream in streams], peak_bytes()
            details = long_reply(server)
            gained = [stream.tokens - tokens for stream, tokens in zip(streams, before, strict=True)]
        finally:
            end.set()
        for reader in readers:
            reader.result()
    assert details["prompt_tokens"] >= PROMPT_TOKENS
    assert details["generated_tokens"] == 4
    assert min(gained) > 4 * PROMPT_TOKENS // 256  # a token a step: chunks behind a long context are smaller
    kv_bytes = POSITIONS * 2 * 8 * 2
    assert peak_bytes() - peak_before < kv_bytes + MEMORY_MARGIN
    again = long_reply(server)
    assert [token["id"] for token in again["tokens"]] == [token["id"] for token in details["tokens"]]
