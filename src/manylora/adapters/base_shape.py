"""The shapes of the base model's layers, which adapters must fit. Imports no torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from manylora.kernels.projections import Projection, block_path, table_shapes
from manylora.models.checkpoint_files import ATTENTION_NORM, MLP_NORM, block_shapes
from manylora.models.spec import ModelSpec

PROJECTION_PATHS = tuple(projection.path for projection in Projection)
"""Module paths of the linear layers of a block without a mixture, in the order of the table of projections."""

_CHANGED = frozenset({ATTENTION_NORM, MLP_NORM, *(f"{path}.weight" for path in PROJECTION_PATHS)})

Module = tuple[int, int]
"""A module as (layer, projection), the latter by its index in the table of an image, or as one of the model's two ends,
whose numbers come after all layers.
"""
_BEYOND_LAYERS = 1 << 20
EMBED_MODULE: Module = (_BEYOND_LAYERS, 0)
HEAD_MODULE: Module = (_BEYOND_LAYERS, 1)
END_PATHS = {EMBED_MODULE: "model.embed_tokens", HEAD_MODULE: "lm_head"}


def module_path(module: Module) -> str:
    """Return the module's path inside the base model, which PEFT matches its patterns against."""
    return END_PATHS.get(module) or f"model.layers.{module[0]}.{block_path(module[1])}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseShape:
    """The shapes and the identity of the base model that adapters are checked against.

    name         for error messages
    fingerprint  identity of the base's weights; part of every adapter's digest
    projections  (out, in) of each linear layer of a block, in the order of the table of an image; None where the base
                 has none (the feed-forward layers that a mixture of experts replaces)
    is_tied      whether the output head is the embedding
    fixed        weights of a block that no adapter changes, by their path inside it: biases, norms of heads
    num_experts  experts of each block; 0: no mixture
    """

    name: str
    fingerprint: str
    num_layers: int
    hidden: int
    vocab: int
    projections: tuple[tuple[int, int] | None, ...]
    is_tied: bool = False
    fixed: tuple[str, ...] = ()
    num_experts: int = 0

    def has(self, projection: int) -> bool:
        """Return whether a block has the projection of this index in the table of an image."""
        return projection < len(self.projections) and self.projections[projection] is not None

    def to_json(self) -> dict[str, Any]:  # JSON values of several types
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "BaseShape":  # JSON values of several types
        shapes = tuple(None if shape is None else (shape[0], shape[1]) for shape in fields["projections"])
        return cls(**{**fields, "projections": shapes, "fixed": tuple(fields.get("fixed", ()))})


def base_shape(spec: ModelSpec, name: str, fingerprint: str) -> BaseShape:
    """Return the shapes that adapters of a base must fit, from the base's config.json alone."""
    num_experts = 0 if spec.experts is None else spec.experts.count
    return BaseShape(
        name=name,
        fingerprint=fingerprint,
        num_layers=spec.num_layers,
        hidden=spec.hidden,
        vocab=spec.vocab,
        projections=table_shapes(spec, num_experts),
        is_tied=spec.tie_embeddings,
        fixed=tuple(path for path in block_shapes(spec) if path not in _CHANGED),
        num_experts=num_experts,
    )
