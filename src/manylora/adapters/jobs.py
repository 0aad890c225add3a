"""The jobs of the ingest process and their outcomes, with their form as JSON lines."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

from manylora.adapter_ref import AdapterRef, SourceName, merged_ref
from manylora.adapters.base_shape import BaseShape
from manylora.adapters.packing.image import ImageFacts
from manylora.adapters.sources.source import Located
from manylora.errors import ManyloraError
from manylora.failure import Failure
from manylora.ids import Digest
from manylora.merging import MergeRecipe, MergeStrategy, SignMethod
from manylora.models.text.adapter_text import NO_TEXT


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestSettings:
    """The settings that all jobs share. `folder` is the disk tier's.

    dtype         of images: bfloat16, float16 or float32
    base_dir      the base's directory, for adapters that cannot be packed without its weights; empty: there is none
    memory_bytes  bytes that the jobs under way may take together, by the store's count; 0: no limit
    session       a value that changes with each start of the server, for sources without reliable marks of a version
    registry_url, registry_token  of a control plane from which uploads come; empty: they come from `registry_dir`
    is_strict, harmless_fields  `adapters.strict` and `adapters.harmless_fields`
    """

    shape: BaseShape
    folder: str
    dtype: str
    max_rank: int
    max_bytes: int
    parallel_loads: int
    roots: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    hub_endpoint: str = ""
    redirect_hosts: tuple[str, ...] = ()
    load_timeout_s: float = 60.0
    base_dir: str = ""
    registry_dir: str = ""
    registry_url: str = ""
    registry_token: str = ""
    pushed_dir: str = ""
    memory_bytes: int = 0
    allows_templates: bool = True
    session: str = ""
    is_strict: bool = False
    harmless_fields: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:  # JSON values of several types
        return {
            **{each.name: getattr(self, each.name) for each in fields(self)},
            "shape": self.shape.to_json(),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "IngestSettings":  # JSON values of several types
        names = ("roots", "stores", "redirect_hosts", "harmless_fields")
        lists = {name: tuple(values[name]) for name in names}
        return cls(**{**values, **lists, "shape": BaseShape.from_json(values["shape"])})


@dataclass(frozen=True, slots=True)
class LocateJob:
    """A job to find the current version of an adapter at a remote source."""

    number: int
    ref: AdapterRef

    def to_json(self) -> dict[str, Any]:  # JSON values of several types
        return {"number": self.number, "locate": _ref_to_json(self.ref)}


@dataclass(frozen=True, slots=True)
class IngestJob:
    """A job to bring one version of one adapter to the disk tier, which stores it under `name_key`."""

    number: int
    ref: AdapterRef
    stamp: str
    name_key: str

    def to_json(self) -> dict[str, Any]:  # JSON values of several types
        return {
            "number": self.number,
            "load": _ref_to_json(self.ref),
            "stamp": self.stamp,
            "name_key": self.name_key,
        }


@dataclass(frozen=True, slots=True)
class Found:
    """The outcome of a `LocateJob` that succeeded."""

    number: int
    located: Located


@dataclass(frozen=True, slots=True)
class Ingested:
    """The outcome of an `IngestJob` that succeeded: the job's file in the disk tier is a whole image.

    stage_ms                 milliseconds that fetch, check, pack and write took
    report                   the ingest report as text (`report.py`); empty: there is none
    text_digest, text_bytes  of the adapter's text, in the job's second file; empty and 0 if there is none
    """

    number: int
    facts: ImageFacts
    num_rows: int
    warnings: tuple[str, ...]
    stage_ms: dict[str, float]
    report: str = ""
    text_digest: str = NO_TEXT
    text_bytes: int = 0

    @property
    def digest(self) -> Digest:
        return self.facts.digest


@dataclass(frozen=True, slots=True)
class IngestFailure:
    """The outcome of a job of either kind that failed, with an error that the request's caller may see."""

    number: int
    error: ManyloraError


Job = LocateJob | IngestJob
Outcome = Found | Ingested | IngestFailure


class Ingest(Protocol):
    """The Protocol of an ingest: it finds adapters at remote sources, and brings adapters to the disk tier.

    No method blocks.
    """

    def submit(self, job: Job) -> None:
        """Begin a job. Jobs of both kinds share one series of numbers."""

    def abandon(self, number: int) -> None:
        """Give a job up. It has no outcome, and delays no other job from now on. Nothing happens if it has ended."""

    @property
    def is_busy(self) -> bool:
        """Return whether a poll has anything to do."""

    def poll(self) -> list[Outcome]:
        """Return the outcomes since the last call. Every job has exactly one, unless it is given up."""

    def close(self) -> None:
        """Stop. Jobs under way have no outcome."""


def job_from_json(values: dict[str, Any]) -> Job:  # JSON values of several types
    if "locate" in values:
        return LocateJob(values["number"], _ref_from_json(values["locate"]))
    return IngestJob(values["number"], _ref_from_json(values["load"]), values["stamp"], values["name_key"])


def _ref_to_json(ref: AdapterRef) -> list[Any]:  # strings, and the members and recipe of a merge
    merge = ref.merge and [[_ref_to_json(member) for member in ref.merge.members], asdict(ref.merge.recipe)]
    return [str(ref.source.value), ref.id, ref.token, merge, ref.tenant]


def _ref_from_json(values: list[Any]) -> AdapterRef:  # strings, and the members and recipe of a merge
    source, adapter_id, token, merge, tenant = values
    if merge is None:
        return AdapterRef(SourceName(source), adapter_id, token, tenant=tenant)
    recipe = MergeRecipe(
        tuple(merge[1]["weights"]),
        MergeStrategy(merge[1]["strategy"]),
        merge[1]["density"],
        SignMethod(merge[1]["signs"]),
    )
    return merged_ref([_ref_from_json(member) for member in merge[0]], recipe)


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:  # JSON values of several types
    if isinstance(outcome, Ingested | Found):
        return asdict(outcome)
    return {"number": outcome.number, **Failure.of(outcome.error).to_json()}


def outcome_from_json(values: dict[str, Any]) -> Outcome:  # JSON values of several types
    if "located" in values:
        return Found(values["number"], Located(**values["located"]))
    if "error" not in values:
        return Ingested(**{**values, "facts": ImageFacts(**values["facts"]), "warnings": tuple(values["warnings"])})
    return IngestFailure(values["number"], Failure.from_json(values).to_error())
