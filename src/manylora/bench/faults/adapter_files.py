"""Small valid adapters in memory, file by file, for a tiny base: the input of the ingest's fuzzing and of the swaps."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from manylora.adapters.base_shape import BaseShape, Module, module_path

Fields = dict[str, Any]  # JSON values of several types
Array = np.ndarray[Any, Any]
HIDDEN, KV, INTERMEDIATE, LAYERS, VOCAB = 32, 16, 48, 3, 64
SHAPE = BaseShape(
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
"""The shape of the base that the seeds below fit."""
ENDS = ["q_proj", "lm_head", "embed_tokens"]
SAVED = ["lm_head", "embed_tokens"]


@dataclass(frozen=True, slots=True)
class Files:
    """The two files of an adapter, and the header and body from which its weights were written."""

    name: str
    config: bytes
    weights: bytes

    @property
    def fields(self) -> Fields:
        return dict(json.loads(self.config))

    @property
    def header(self) -> Fields:
        return dict(json.loads(self.weights[8 : self._body]))

    @property
    def body(self) -> bytes:
        return self.weights[self._body :]

    @property
    def _body(self) -> int:
        return 8 + int.from_bytes(self.weights[:8], "little")

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_config.json").write_bytes(self.config)
        (folder / "adapter_model.safetensors").write_bytes(self.weights)

    def with_config(self, config: object) -> "Files":
        text = config if isinstance(config, bytes) else json.dumps(config).encode()
        return Files(self.name, text, self.weights)

    def with_weights(self, weights: bytes) -> "Files":
        return Files(self.name, self.config, weights)

    def with_header(self, header: object, body: bytes | None = None) -> "Files":
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return self.with_weights(len(text).to_bytes(8, "little") + text + (self.body if body is None else body))


def seeds() -> list[Files]:
    """Return adapters as PEFT writes them: three dtypes, several ranks, several sets of modules, rare parts."""
    attention, every = range(4), range(7)
    head = {"base_model.model.lm_head.lora_A.weight": (2, HIDDEN), "base_model.model.lm_head.lora_B.weight": (VOCAB, 2)}
    embedding = {
        "base_model.model.model.embed_tokens.lora_embedding_A": (2, VOCAB),
        "base_model.model.model.embed_tokens.lora_embedding_B": (HIDDEN, 2),
    }
    tokens = {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": (3, HIDDEN)}
    saved = {
        "base_model.model.lm_head.modules_to_save.weight": (VOCAB + 2, HIDDEN),
        "base_model.model.model.embed_tokens.modules_to_save.weight": (VOCAB + 2, HIDDEN),
        "base_model.model.model.norm.weight": (HIDDEN,),
        "base_model.model.model.layers.1.input_layernorm.weight": (HIDDEN,),
    }
    first = {f"base_model.model.{module_path((0, 0))}": (HIDDEN,)}
    magnitudes = {f"{path}.lora_magnitude_vector": shape for path, shape in first.items()}
    biases = {f"{path}.lora_B.bias": shape for path, shape in first.items()}
    return [
        _seed("plain", "F32", 2, _modules([0]), {}),
        _seed("attention", "BF16", 4, _modules(attention), {"use_rslora": True}),
        _seed("everything", "F16", 8, _modules(every), {"lora_alpha": 16, "target_modules": "all-linear"}),
        _seed("patterns", "F32", 4, _modules([0, 1]), {"alpha_pattern": {"q_proj": 3, r".*0\.self_attn\.k_proj": 9.5}}),
        _seed("dora", "F32", 2, [(0, 0)], {"use_dora": True}, magnitudes),
        _seed("biased", "F32", 2, [(0, 0)], {"lora_bias": True}, biases),
        _seed("ends", "F32", 2, _modules([0]), {"target_modules": ENDS}, {**head, **embedding}),
        _seed("tokens", "BF16", 2, _modules([6]), {"trainable_token_indices": [3, 60, 7]}, tokens),
        _seed("saved", "F16", 2, _modules([3]), {"modules_to_save": SAVED}, saved),
        _seed("activated", "F32", 2, _modules([0, 2]), {"alora_invocation_tokens": [5, 6]}),
    ]


def _modules(projections: Sequence[int]) -> list[Module]:
    return [(layer, projection) for layer in range(LAYERS) for projection in projections]


def _seed(
    name: str,
    dtype: str,
    rank: int,
    modules: Sequence[Module],
    fields: Fields,
    more: Mapping[str, tuple[int, ...]] | None = None,
) -> Files:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, projection in modules:
        sizes = SHAPE.projections[projection]
        assert sizes is not None  # this base has them all
        path = f"base_model.model.{module_path((layer, projection))}"
        shapes[f"{path}.lora_A.weight"] = (rank, sizes[1])
        shapes[f"{path}.lora_B.weight"] = (sizes[0], rank)
    random = np.random.default_rng(len(name))
    tensors = {tensor: np.abs(random.standard_normal(shape)) for tensor, shape in {**shapes, **(more or {})}.items()}
    return from_tensors(name, tensors, {"r": rank, "lora_alpha": 8, **fields}, dtype)


def from_tensors(name: str, tensors: Mapping[str, Array], fields: Fields, dtype: str = "F32") -> Files:
    """Return an adapter of these tensors, with these fields in its config."""
    header: Fields = {"__metadata__": {"format": "pt"}}
    body = b""
    for tensor, values in tensors.items():
        data = _as(dtype, values)
        offsets = [len(body), len(body) + len(data)]
        header[tensor] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": offsets}
        body += data
    named = sorted({tensor.split(".lora_")[0].rpartition(".")[2] for tensor in tensors if ".lora_" in tensor})
    config = {"peft_type": "LORA", "base_model_name_or_path": "org/tiny", "target_modules": named, **fields}
    return Files(name, b"", b"").with_config(config).with_header(header, body)


def _as(dtype: str, values: Array) -> bytes:
    if dtype == "F16":
        return values.astype("<f2").tobytes()
    wide = values.astype("<f4")
    return wide.tobytes() if dtype == "F32" else wide.view("<u2")[..., 1::2].tobytes()
