"""The bodies of errors in both dialects."""

from typing_extensions import TypedDict


class NativeError(TypedDict):
    """An error of LoRAX's routes and of the control plane."""

    error: str
    error_type: str
    code: str


class OpenAIErrorBody(TypedDict):
    """The object `error` of an error under /v1."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(TypedDict):
    """An error of the routes under /v1."""

    error: OpenAIErrorBody
