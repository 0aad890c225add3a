"""The root of the tree of errors, and the row that each error has in the HTTP dialects."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """The HTTP reply for one kind of failure.

    native_status, native_type   status and `error_type` of LoRAX-style replies
    openai_status, openai_type   status and `error.type` of OpenAI-style replies
    code                         stable, the same in both
    retry_after_s                sent as `Retry-After` when not None
    """

    native_status: int
    native_type: str
    openai_status: int
    openai_type: str
    code: str
    retry_after_s: int | None = None


INVALID = "invalid_request_error"
SERVER = "server_error"


class ManyloraError(Exception):
    """Base of everything manylora raises on purpose. `message` is fit to be shown to the caller."""

    row: ClassVar[ErrorRow] = ErrorRow(500, "generation", 500, SERVER, "engine_error")

    def __init__(self, message: str, *, parameter: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.parameter = parameter

    @property
    def retry_after_s(self) -> float | None:
        """Seconds after which the same request may succeed; None: the request has to be changed."""
        return self.row.retry_after_s

    @property
    def is_retryable(self) -> bool:
        """Return whether the same request may succeed later without a change."""
        return self.retry_after_s is not None
