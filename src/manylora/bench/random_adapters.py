"""Adapters of random weights in PEFT's format, for loads: only their shapes matter."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from manylora.adapters.base_shape import PROJECTION_PATHS
from manylora.kernels.projections import Projection
from manylora.models.spec import ModelSpec

ATTENTION = (Projection.Q, Projection.K, Projection.V, Projection.O)


def write_adapters(
    root: Path,
    spec: ModelSpec,
    count: int,
    ranks: Sequence[int],
    base: str,
    projections: Sequence[Projection] = ATTENTION,
    *,
    first_seed: int = 0,
) -> list[str]:
    """Write `count` adapters below `root`, the ranks in turn; return their names."""
    names = [f"random-{index:04d}" for index in range(first_seed, first_seed + count)]
    for index, name in enumerate(names):
        _write(root / name, spec, ranks[index % len(ranks)], base, projections, first_seed + index)
    return names


def _write(folder: Path, spec: ModelSpec, rank: int, base: str, projections: Sequence[Projection], seed: int) -> None:
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(spec.num_layers):
        for projection in projections:
            out, in_ = projection.shape(spec)
            path = f"base_model.model.model.layers.{layer}.{PROJECTION_PATHS[projection]}"
            tensors[f"{path}.lora_A.weight"] = (torch.randn(rank, in_, generator=random) * 0.02).bfloat16()
            tensors[f"{path}.lora_B.weight"] = (torch.randn(out, rank, generator=random) * 0.02).bfloat16()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": [PROJECTION_PATHS[projection].rpartition(".")[2] for projection in projections],
        "base_model_name_or_path": base,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
