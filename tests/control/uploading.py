"""Uploads as a client makes them, onto a tiny base whose shapes the server knows."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2

from manylora.bench.faults.adapter_files import HIDDEN, INTERMEDIATE, KV, LAYERS, VOCAB, Files, seeds
from tests.control.plane import Plane

SEEDS = {files.name: files for files in seeds()}
PLAIN, ATTENTION = SEEDS["plain"], SEEDS["attention"]


def base_settings(folder: Path, **settings: Any) -> dict[str, Any]:  # values of several types
    """Settings of a server whose base is the one that the seeds fit."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HIDDEN // 8,
        "num_key_value_heads": KV // 8,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "hidden_act": "silu",
    }
    base = folder / "Tiny-Base"
    base.mkdir(exist_ok=True)
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return {"model.base": str(base), "adapters.hub_endpoint": "", **settings}


async def begin(plane: Plane, key: str, repo: str) -> dict[str, Any]:  # the reply's JSON
    reply = await plane.call("POST", "/v2/adapters/upload", {"repo": repo}, key=key)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


async def put(plane: Plane, url: str, data: bytes, **headers: str) -> httpx2.Response:
    """Send bytes to a signed address, as the SDK does: without a key."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await plane.client.put(url, content=data, headers={"content-type": "application/octet-stream", **named})


async def complete(plane: Plane, key: str, token: str) -> httpx2.Response:
    return await plane.call("PUT", "/v2/adapters/upload/", {"uploadToken": token}, key=key)


async def upload(
    plane: Plane, key: str, repo: str, files: Files = PLAIN, texts: Mapping[str, bytes] | None = None
) -> httpx2.Response:
    """The three steps; returns the reply to the last."""
    begun = await begin(plane, key, repo)
    parts = {"adapter_config.json": files.config, "adapter_model.safetensors": files.weights}
    for name, data in {**parts, **(texts or {})}.items():
        sent = await put(plane, begun["presignedUrls"][name], data)
        assert sent.status_code == 200, sent.text
    return await complete(plane, key, begun["uploadToken"])


async def new_repo(plane: Plane, key: str, name: str = "triage") -> dict[str, Any]:  # the reply's JSON
    reply = await plane.call("POST", "/v2/repos", {"name": name}, key=key)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())
