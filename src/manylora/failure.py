"""An error between two processes: the name of its class in `errors/`, and its message.

Every boundary between processes uses this one form: the engine's messages, the ingest process, the check of an upload
and the process of heavy reads.
"""

from dataclasses import dataclass
from typing import Any

from manylora import errors
from manylora.errors import EngineFault, ManyloraError


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One error as plain values.

    error      name of a class in `errors/`
    message    text for the caller
    parameter  request field that the error names; None: no field
    """

    error: str
    message: str
    parameter: str | None = None

    @classmethod
    def of(cls, error: ManyloraError) -> "Failure":
        return cls(error=type(error).__name__, message=error.message, parameter=error.parameter)

    @property
    def kind(self) -> type[ManyloraError]:
        """Class of the error; `EngineFault` if `errors/` has no class of that name."""
        kind = getattr(errors, self.error, None)
        return kind if isinstance(kind, type) and issubclass(kind, ManyloraError) else EngineFault

    def to_error(self) -> ManyloraError:
        return self.kind(self.message, parameter=self.parameter)

    def to_json(self) -> dict[str, str | None]:
        return {"error": self.error, "message": self.message, "parameter": self.parameter}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Failure":  # JSON values of several types
        """Return the failure that `to_json` has written. Other keys of `values` belong to the caller."""
        return cls(error=values["error"], message=values["message"], parameter=values["parameter"])
