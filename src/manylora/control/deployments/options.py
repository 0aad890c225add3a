"""The settings of replicas in a deployment's configuration: those that its replicas follow, read and checked."""

from collections.abc import Mapping
from typing import Any

from manylora.config.checks import QUANTIZE
from manylora.control.deployments.placer import Options
from manylora.errors import InvalidParameter

MOST_TOKENS = 10_000_000


def options_of(base: str, config: Mapping[str, Any]) -> Options:  # JSON values of several types
    """Return the settings in a client's configuration. Raises `InvalidParameter` for values that no replica can have.

    `maxTotalTokens` is the longest sequence, and `quantization` the form of the weights. Other keys are kept for the
    client, and no replica reads them.
    """
    tokens = config.get("maxTotalTokens") or 0
    if isinstance(tokens, float) and tokens.is_integer():
        tokens = int(tokens)
    if type(tokens) is not int or not (tokens == 0 or 2 <= tokens <= MOST_TOKENS):
        raise InvalidParameter(
            f"`maxTotalTokens` must be a whole number, 2 to {MOST_TOKENS}", parameter="config.maxTotalTokens"
        )
    quantize = config.get("quantization") or ""
    if quantize and quantize not in QUANTIZE:
        raise InvalidParameter(
            f"`quantization` must be one of {', '.join(QUANTIZE)}. Given: {str(quantize)[:80]!r}",
            parameter="config.quantization",
        )
    return Options(base=base, max_model_len=tokens, quantize=quantize)
