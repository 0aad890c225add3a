"""The quantisation that a base's config.json names: the reader of its checkpoint, or None."""

from collections.abc import Callable, Mapping
from typing import Any

from manylora.errors import ModelUnsupported
from manylora.models.checkpoints.awq import parse_awq
from manylora.models.checkpoints.compressed_tensors import parse_compressed
from manylora.models.checkpoints.gptq import parse_gptq
from manylora.models.checkpoints.quantized import QuantizationScheme

_PARSERS: dict[str, Callable[[dict[str, Any]], QuantizationScheme]] = {
    "gptq": parse_gptq,
    "awq": parse_awq,
    "compressed-tensors": parse_compressed,
}


def read_scheme(config: Mapping[str, Any]) -> QuantizationScheme | None:
    """Return the reader of the quantised modules; None if the checkpoint has none.

    Args:    config, the parsed config.json
    Raises:  `ModelUnsupported` with the name of the method, or of the field and its value
    """
    fields = config.get("quantization_config")
    if fields is None:
        return None
    if not isinstance(fields, dict):
        raise ModelUnsupported(f"config.json: quantization_config = {fields!r} is not an object")
    method = fields.get("quant_method")
    if method not in _PARSERS:
        known = ", ".join(_PARSERS)
        raise ModelUnsupported(
            f"config.json: quantization_config.quant_method = {method!r} is not supported (known: {known})"
        )
    return _PARSERS[method](fields)
