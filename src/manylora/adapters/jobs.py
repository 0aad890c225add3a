"""What the store asks of the ingest process and what it gets back, with their form as JSON lines."""

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from manylora import errors
from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapters.base_shape import BaseShape
from manylora.adapters.image import ImageFacts
from manylora.errors import ManyloraError
from manylora.ids import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestSettings:
    """What every job has in common. `folder` is the disk tier's; `dtype` is the served one (bfloat16 or float32)."""

    shape: BaseShape
    roots: tuple[str, ...]
    folder: str
    dtype: str
    max_rank: int
    max_bytes: int
    parallel_loads: int

    def to_json(self) -> dict[str, Any]:  # JSON values of several types
        return {
            "shape": self.shape.to_json(),
            "roots": list(self.roots),
            **{name: getattr(self, name) for name in ("folder", "dtype", "max_rank", "max_bytes", "parallel_loads")},
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "IngestSettings":  # JSON values of several types
        return cls(**{**fields, "shape": BaseShape.from_json(fields["shape"]), "roots": tuple(fields["roots"])})


@dataclass(frozen=True, slots=True)
class IngestJob:
    """One version of one adapter to bring to the disk tier, which remembers it under `name_key`."""

    number: int
    ref: AdapterRef
    stamp: str
    name_key: str

    def to_json(self) -> dict[str, Any]:  # JSON values of several types
        return {
            "number": self.number,
            "source": str(self.ref.source),
            "id": self.ref.id,
            "stamp": self.stamp,
            "name_key": self.name_key,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "IngestJob":  # JSON values of several types
        ref = AdapterRef(SourceName(fields["source"]), fields["id"])
        return cls(fields["number"], ref, fields["stamp"], fields["name_key"])


@dataclass(frozen=True, slots=True)
class Ingested:
    """A job that ended well: the image lies in the disk tier's folder. `stage_ms` tells fetch, check, pack, write."""

    number: int
    facts: ImageFacts
    num_rows: int
    warnings: tuple[str, ...]
    stage_ms: dict[str, float]

    @property
    def digest(self) -> Digest:
        return self.facts.digest


@dataclass(frozen=True, slots=True)
class IngestFailure:
    """A job that ended with an error fit to be shown to the request's caller."""

    number: int
    error: ManyloraError


class Ingest(Protocol):
    """Brings adapters to the disk tier. No method blocks."""

    def submit(self, job: IngestJob) -> None:
        """Begin a job."""

    def abandon(self, number: int) -> None:
        """Give a job up: it never ends, and hinders no other job from now on. Nothing happens if it has ended."""

    def poll(self) -> list[Ingested | IngestFailure]:
        """The jobs that ended since the last call; every submitted job ends exactly once, unless it is given up."""

    def close(self) -> None:
        """Stop; jobs under way never end."""


def outcome_to_json(outcome: Ingested | IngestFailure) -> dict[str, Any]:  # JSON values of several types
    if isinstance(outcome, Ingested):
        return asdict(outcome)
    return {"number": outcome.number, "error": type(outcome.error).__name__, "message": outcome.error.message}


def outcome_from_json(fields: dict[str, Any]) -> Ingested | IngestFailure:  # JSON values of several types
    if "error" not in fields:
        return Ingested(**{**fields, "facts": ImageFacts(**fields["facts"]), "warnings": tuple(fields["warnings"])})
    kind = getattr(errors, fields["error"])
    assert issubclass(kind, ManyloraError)  # the process answers with names from errors.py only
    return IngestFailure(fields["number"], kind(fields["message"]))
