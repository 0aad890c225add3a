"""Adapters for tests: a tiny base, files written by hand (right or wrong), and images read back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapters.base_shape import PROJECTION_PATHS, BaseShape
from manylora.adapters.packing.base_weights import BaseWeights
from manylora.adapters.packing.pack import PackedAdapter, pack_adapter
from manylora.adapters.peft.checkpoint import AdapterLimits, check_adapter
from manylora.adapters.refusals import Refusals

HIDDEN, KV, INTERMEDIATE, LAYERS, VOCAB = 32, 16, 48, 3, 64
TINY = BaseShape(
    name="tiny",
    fingerprint="ab" * 32,
    num_layers=LAYERS,
    hidden=HIDDEN,
    vocab=VOCAB,
    projections=(
        (HIDDEN, HIDDEN),
        (KV, HIDDEN),
        (KV, HIDDEN),
        (HIDDEN, HIDDEN),
        (INTERMEDIATE, HIDDEN),
        (INTERMEDIATE, HIDDEN),
        (HIDDEN, INTERMEDIATE),
    ),
)
ALL = [path.rpartition(".")[2] for path in PROJECTION_PATHS]
REFUSE = Refusals("some/adapter", "local", "tiny")
LIMITS = AdapterLimits(max_rank=64, max_bytes=1 << 24)

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]
"""name → (dtype, shape, bytes), as they stand in a safetensors file."""


def local(adapter_id: str) -> AdapterRef:
    return AdapterRef(SourceName.LOCAL, adapter_id)


def name_of(layer: int, projection: int, part: str) -> str:
    return f"base_model.model.model.layers.{layer}.{PROJECTION_PATHS[projection]}.lora_{part}.weight"


def as_f32(values: np.ndarray[Any, Any]) -> tuple[str, tuple[int, ...], bytes]:
    return "F32", values.shape, values.astype("<f4").tobytes()


def lora_tensors(rank: int = 4, seed: int = 0, projections: tuple[int, ...] = (0, 1, 2, 3)) -> Tensors:
    """A and B of the given projections in every layer, random, float32."""
    random = np.random.default_rng(seed)
    tensors: Tensors = {}
    for layer in range(LAYERS):
        for projection in projections:
            sizes = TINY.projections[projection]
            assert sizes is not None
            tensors[name_of(layer, projection, "A")] = as_f32(random.standard_normal((rank, sizes[1])))
            tensors[name_of(layer, projection, "B")] = as_f32(random.standard_normal((sizes[0], rank)))
    return tensors


def safetensors_bytes(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> bytes:
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values())


def config_bytes(**fields: Any) -> bytes:  # any JSON
    return json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ALL, **fields}).encode()


def save_adapter(folder: Path, *, rank: int = 4, seed: int = 0, **fields: Any) -> Path:  # any JSON
    folder.mkdir(parents=True, exist_ok=True)
    # Written beside and renamed over, as tools that replace an adapter in use should.
    for name, data in (
        ("adapter_model.safetensors", safetensors_bytes(lora_tensors(rank, seed))),
        ("adapter_config.json", config_bytes(**{"r": rank, "target_modules": ALL[:4], **fields})),
    ):
        (folder / f"{name}.new").write_bytes(data)
        (folder / f"{name}.new").replace(folder / name)
    return folder


def packed(
    config: bytes,
    weights: bytes,
    *,
    dtype: str = "float32",
    shape: BaseShape = TINY,
    base: BaseWeights | None = None,
) -> PackedAdapter:
    checked = check_adapter(config, memoryview(weights), shape, LIMITS, REFUSE)
    return pack_adapter(checked, shape, dtype, REFUSE, base)


def unpacked(
    adapter: PackedAdapter, layer: int, projection: int, shape: BaseShape = TINY
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A (rank, in) and B (rank, out) of one module, from a float32 image."""
    body = np.frombuffer(adapter.body, dtype=np.float32)
    sizes = shape.projections[projection]
    assert sizes is not None
    offset_a, offset_b, rank = (int(value) for value in adapter.table[layer, projection])
    a = body[offset_a : offset_a + rank * sizes[1]].reshape(rank, sizes[1])
    return a, body[offset_b : offset_b + rank * sizes[0]].reshape(rank, sizes[0])
