"""Rotary angles: the fields of config.json, checked, and the inverse frequencies that follow from them.

Kinds: default, linear, dynamic, llama3, yarn. It reads both spellings: `rope_scaling` with `type` or `rope_type`
beside a top-level `rope_theta`, and the newer `rope_parameters` that holds all of them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manylora.models.config_fields import refusal

_DEFAULT_THETA = 10_000.0  # the file format's own default, for files older than the field

# The fields of each kind. Another field would change the angles in a way that is not computed, or be a mistake.
_NEUTRAL = {"type", "rope_type", "rope_theta", "partial_rotary_factor"}
_FIELDS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "beta_fast",
        "beta_slow",
        "truncate",
        "finetuned",  # written by the first YaRN models; a fact of their training that changes no angle
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """The rotary embedding of one model.

    kind                     default, linear, dynamic, llama3 or yarn
    original_max_positions   context length of pre-training (llama3, yarn)
    attention_factor         cos and sin are multiplied by it (yarn; 1.0 elsewhere)

    `dynamic` (NTK) changes no angle up to `max_position_embeddings`. Beyond it every angle depends on the length of the
    whole request, which cached keys cannot follow. The model serves up to that length, where it is exact.
    """

    kind: str
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_positions: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def inverse_frequencies(self, head_dim: int) -> NDArray[np.float32]:
        """Return the angle per position of each pair: (head_dim // 2,) float32.

        Source: llama3: Llama 3.1's reference code; yarn: arXiv 2309.00071, section 3.2; linear: arXiv 2306.15595.
        Computed step by step in float32, as the models were trained; `transformers` is the oracle in the tests.
        """
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        plain = (np.float32(1.0) / np.float32(self.theta) ** exponents).astype(np.float32)
        if self.kind == "linear":
            return (plain / np.float32(self.factor)).astype(np.float32)
        if self.kind == "llama3":
            return self._llama3(plain)
        if self.kind == "yarn":
            return self._yarn(plain, head_dim)
        return plain

    def _llama3(self, plain: NDArray[np.float32]) -> NDArray[np.float32]:
        """Keep short wavelengths, stretch long ones by `factor`, blend between."""
        wavelength = 2 * math.pi / plain
        turns = self.original_max_positions / wavelength
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blend = np.clip(blend, 0.0, 1.0)
        return ((1 - blend) * plain / self.factor + blend * plain).astype(np.float32)

    def _yarn(self, plain: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
        """Interpolate dimensions that turn less than `beta_slow` times, keep those over `beta_fast`, ramp between."""

        def dimension_of(turns: float) -> float:
            span = math.log(self.original_max_positions / (turns * 2 * math.pi))
            return head_dim * span / (2 * math.log(self.theta))

        low, high = dimension_of(self.beta_fast), dimension_of(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        width = high - low if high != low else 0.001  # the paper's ramp has no width to divide by when both meet
        ramp = np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / width, 0.0, 1.0).astype(np.float32)
        stretched = plain / np.float32(self.factor)
        blended: NDArray[np.float32] = (stretched * ramp + plain * (1 - ramp)).astype(np.float32)
        return blended


def parse_rope(config: Mapping[str, Any]) -> RopeSpec:
    """Read the rotary embedding from a parsed config.json. Raises `ModelUnsupported` with field and value."""
    where = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    fields = config.get(where) or {}
    if config.get("rope_scaling") not in (None, {}, fields):
        raise refusal("rope_scaling", config["rope_scaling"], "differs from rope_parameters; remove one of them")
    if not isinstance(fields, Mapping):
        raise refusal(where, fields, "is not an object")
    kind = fields.get("rope_type") or fields.get("type") or "default"
    _check_fields(config, fields, where, kind)
    theta = _number(fields, where, "rope_theta", config.get("rope_theta") or _DEFAULT_THETA)
    if kind == "default":
        return RopeSpec(kind=kind, theta=theta)
    if kind in ("linear", "dynamic"):
        return RopeSpec(kind=kind, theta=theta, factor=_number(fields, where, "factor"))
    # Some families keep the first training's length beside max_position_embeddings; transformers prefers that one.
    name = "original_max_position_embeddings"
    if config.get(name) is not None:
        fields, where = {**fields, name: config[name]}, "rope"
    original = int(_number(fields, where, name, config.get("max_position_embeddings")))
    parse = _parse_llama3 if kind == "llama3" else _parse_yarn
    return parse(fields, where, theta, original)


def _check_fields(config: Mapping[str, Any], fields: Mapping[str, Any], where: str, kind: str) -> None:
    """Refuse a kind and fields that the angles do not support. Raises `ModelUnsupported`."""
    if not isinstance(kind, str) or kind not in _FIELDS:
        known = ", ".join(_FIELDS)
        raise refusal(f"{where}.rope_type", kind, f"is not supported (known: {known})")
    for name, value in fields.items():
        if name not in _FIELDS[kind] | _NEUTRAL and value is not None:
            raise refusal(f"{where}.{name}", value, f"is not understood for rope_type {kind!r}")
    for source in (config, fields):
        if source.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise refusal("partial_rotary_factor", source["partial_rotary_factor"], "is not supported (only 1.0)")


def _number(fields: Mapping[str, Any], where: str, name: str, default: float | None = None) -> float:
    value = fields.get(name)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise refusal(f"{where}.{name}", value, "must be a positive number")
    return float(value)


def _parse_llama3(fields: Mapping[str, Any], where: str, theta: float, original: int) -> RopeSpec:
    low, high = _number(fields, where, "low_freq_factor"), _number(fields, where, "high_freq_factor")
    if not high > low:
        raise refusal(f"{where}.high_freq_factor", high, f"must exceed the low one, {low}")
    return RopeSpec(
        kind="llama3",
        theta=theta,
        factor=_number(fields, where, "factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_positions=original,
    )


def _parse_yarn(fields: Mapping[str, Any], where: str, theta: float, original: int) -> RopeSpec:
    factor = _number(fields, where, "factor")
    return RopeSpec(
        kind="yarn",
        theta=theta,
        factor=factor,
        original_max_positions=original,
        attention_factor=_attention_factor(fields, where, factor),
        beta_fast=_number(fields, where, "beta_fast", 32.0),
        beta_slow=_number(fields, where, "beta_slow", 1.0),
        truncate=fields.get("truncate") is not False,
    )


def _attention_factor(fields: Mapping[str, Any], where: str, factor: float) -> float:
    """Return YaRN's temperature as a factor on cos and sin: given, or 0.1·ln(factor) + 1, or a ratio of two such."""
    if fields.get("attention_factor") is not None:
        return _number(fields, where, "attention_factor")

    def temperature(scale: float = 1.0) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if fields.get("mscale") and fields.get("mscale_all_dim"):
        return temperature(_number(fields, where, "mscale")) / temperature(_number(fields, where, "mscale_all_dim"))
    return temperature()
