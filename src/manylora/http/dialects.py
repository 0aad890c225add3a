"""The reply for a failure: LoRAX's or OpenAI's body, status and headers, and its form inside a stream."""

import math

from manylora.errors import (
    AdapterCapacity,
    AdapterNotFound,
    EngineFault,
    IncompleteGeneration,
    InvalidApiKey,
    LimitExceeded,
    ManyloraError,
    Overloaded,
    QuotaExhausted,
    RequestRejected,
)
from manylora.http.paths import Dialect

STREAM_TYPES = ("generation", "incomplete_generation", "overloaded", "validation")
FIXED_TEXTS = {
    Overloaded: "Model is overloaded",
    AdapterCapacity: "Model is overloaded",
    IncompleteGeneration: "Incomplete generation",
}
ENGINE_PREFIX = "Request failed during generation: "
VALIDATION_PREFIX = "Input validation error: "


def status_of(error: ManyloraError, dialect: Dialect) -> int:
    return error.row.openai_status if dialect is Dialect.OPENAI else error.row.native_status


def headers_of(error: ManyloraError) -> dict[str, str]:
    """Return the headers of a refusal: `Retry-After` where the same request may succeed later, and the limits."""
    headers: dict[str, str] = {}
    if (retry_s := error.retry_after_s) is not None:
        headers = {"retry-after": str(max(1, math.ceil(retry_s))), "retry-after-ms": str(math.ceil(1000 * retry_s))}
    if isinstance(error, LimitExceeded):
        headers |= {"x-envoy-ratelimited": "true", **error.headers}
    if isinstance(error, QuotaExhausted) or (isinstance(error, LimitExceeded) and not error.is_retryable):
        headers["x-should-retry"] = "false"
    if isinstance(error, InvalidApiKey):
        headers["www-authenticate"] = "Bearer"
    return headers


def body_of(error: ManyloraError, dialect: Dialect, model: str | None = None) -> dict[str, object]:
    """Return the JSON body. `model`: the name that an OpenAI caller gave, for the text about an unknown model.

    The operators' routes name no model: there an unknown adapter has its own row.
    """
    row, text = error.row, _text(error)
    if dialect is Dialect.NATIVE:
        is_prefixed = row.native_status == 422 and row.native_type == "validation"
        return {
            "error": VALIDATION_PREFIX + text if is_prefixed else text,
            "error_type": row.native_type,
            "code": row.code,
        }
    parameter, code = error.parameter, row.code
    if isinstance(error, AdapterNotFound) and model is not None:
        text = f"The model `{model}` does not exist or you do not have access to it."
        parameter, code = "model", "model_not_found"
    return {"error": {"message": text, "type": row.openai_type, "param": parameter, "code": code}}


def stream_body_of(error: ManyloraError, dialect: Dialect, model: str | None = None) -> dict[str, object]:
    """Return the body as the last event of a stream. Native clients know four types there."""
    body = body_of(error, dialect, model)
    if dialect is Dialect.NATIVE and body["error_type"] not in STREAM_TYPES:
        is_repeatable = error.is_retryable
        is_fault_of_caller = isinstance(error, RequestRejected)
        body["error_type"] = (
            "overloaded" if is_repeatable else "validation" if is_fault_of_caller else "incomplete_generation"
        )
    return body


def _text(error: ManyloraError) -> str:
    for kind, text in FIXED_TEXTS.items():
        if isinstance(error, kind):
            return text
    if isinstance(error, EngineFault) and not error.message.startswith(ENGINE_PREFIX):
        return ENGINE_PREFIX + error.message
    return error.message
