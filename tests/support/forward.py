"""One forward pass over prompts side by side, each with its adapter or none: what tests compare with PEFT's logits."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from manylora.adapter_ref import SourceName
from manylora.adapters.base_shape import base_shape
from manylora.adapters.packing.base_weights import BaseWeights
from manylora.adapters.packing.pack import pack_adapter
from manylora.adapters.peft.checkpoint import AdapterLimits, check_adapter
from manylora.adapters.refusals import Refusals
from manylora.engine.activation import active_from
from manylora.ids import Digest
from manylora.kernels.interface import Kernels
from manylora.kernels.lora_batch import LoraSegment, PlacedAdapter
from manylora.kernels.operands import AttentionBatch, StepInput
from manylora.kernels.select import select_kernels
from manylora.models.llama import LlamaModel
from manylora.models.spec import ModelSpec, read_spec
from manylora.models.weights import load_weights

BLOCK = 4


class ReadyAdapter(NamedTuple):
    """A packed adapter's weights, and the tokens that activate it."""

    weights: PlacedAdapter
    invocation_tokens: tuple[int, ...]


Mixed = list[tuple[ReadyAdapter, float]]
"""Adapters of the same rows with their weights."""
Prompts = Sequence[tuple[list[int], ReadyAdapter | Mixed | None]]


def load_model(base: Path, back_end: str, threads: int = 2) -> LlamaModel:
    kernels, spec = select_kernels(back_end, threads), read_spec(base)
    return LlamaModel(spec, load_weights(base, spec, kernels), kernels)


def place(folder: Path, spec: ModelSpec, kernels: Kernels, base: Path) -> ReadyAdapter:
    """Bring a PEFT folder through check and pack to where the kernels read it."""
    refuse = Refusals(folder.name, SourceName.LOCAL, "tiny")
    shape = base_shape(spec, "tiny", "0" * 64)
    checked = check_adapter(
        (folder / "adapter_config.json").read_bytes(),
        memoryview((folder / "adapter_model.safetensors").read_bytes()),
        shape,
        AdapterLimits(max_rank=256, max_bytes=1 << 30),
        refuse,
    )
    dtype = str(kernels.lora_dtype).removeprefix("torch.")
    packed = pack_adapter(checked, shape, dtype, refuse, BaseWeights(base, is_tied=spec.tie_embeddings))
    body = torch.from_numpy(np.frombuffer(bytes(packed.body), dtype=np.uint8).copy()).view(kernels.lora_dtype)
    weights = PlacedAdapter(Digest(packed.digest), body, packed.table, packed.extras)
    return ReadyAdapter(weights, packed.invocation_tokens)


def one_step(model: LlamaModel, sequences: Prompts) -> tuple[StepInput, list[int]]:
    """All prompts side by side in one step, every row's logits wanted; returns the first row of each as well."""
    starts: list[int] = []
    segments: list[LoraSegment] = []
    positions: list[int] = []
    slots: list[int] = []
    owners: list[int] = []
    tokens: list[int] = []
    blocks = -(-max(len(prompt) for prompt, _ in sequences) // BLOCK)
    tables = torch.arange(len(sequences) * blocks, dtype=torch.int32).reshape(len(sequences), blocks)
    for index, (prompt, placed) in enumerate(sequences):
        start = len(tokens)
        starts.append(start)
        tokens.extend(prompt)
        positions.extend(range(len(prompt)))
        slots.extend(index * blocks * BLOCK + position for position in range(len(prompt)))
        owners.extend([index] * len(prompt))
        if isinstance(placed, list):
            segments += [LoraSegment(start, len(tokens), ready.weights, weight) for ready, weight in placed]
        elif placed is not None and (first := active_from(prompt, placed.invocation_tokens)) is not None:
            segments.append(LoraSegment(start + first, len(tokens), placed.weights))
    attention = AttentionBatch(
        positions=torch.tensor(positions, dtype=torch.int32),
        slots=torch.tensor(slots),
        row_sequence=torch.tensor(owners, dtype=torch.int32),
        block_tables=tables,
    )
    own = tuple(segment for segment in segments if segment.adapter.extras.size)
    vocabulary = max((segment.adapter.vocabulary for segment in own), default=0)
    ids = torch.tensor(tokens)
    step = StepInput(
        token_ids=torch.where(ids < model.spec.vocab, ids, 0),
        logit_rows=torch.arange(len(tokens)),
        attention=attention,
        lora=model.kernels.prepare_lora(tuple(segments), own, vocabulary),
        own_ids=ids,
    )
    return step, starts


def run(model: LlamaModel, sequences: Prompts) -> list[Tensor]:
    """Logits of each sequence, from one forward pass over all of them."""
    step, starts = one_step(model, sequences)
    kv = model.kernels.new_kv(
        layers=model.spec.num_layers,
        num_blocks=int(step.attention.block_tables.max()) + 1,
        block_size=BLOCK,
        kv_heads=model.own_spec.kv_heads,
        head_dim=model.spec.head_dim,
    )
    logits = model.forward(step, kv)
    return [logits[start : start + len(prompt)] for start, (prompt, _) in zip(starts, sequences, strict=True)]
