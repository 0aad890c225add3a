"""The ingest report: an adapter's tensors that are applied, and those left out with the reason; of bounded size.

Every text from an adapter's files is escaped and cut (`refusals.shown`) before it enters a report, so a report can be
printed unchanged.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from manylora.adapters.refusals import shown

Json = dict[str, Any]  # JSON values of several types

MAX_GROUPS = 192
"""Limit on the groups of applied tensors, and on those of left-out ones; the tensors of further groups are counted."""
MAX_NAMES = 100
MAX_WARNINGS = 32
MAX_LAYERS_CHARACTERS = 120
MAX_REPORT_BYTES = 192 << 10
"""Limit on the report's bytes as JSON. The limits above keep it smaller."""
_LAYER = re.compile(r"(?<=\blayers\.)([0-9]{1,9})(?=\.)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedGroup:
    """Tensors that are applied in the same way.

    module       `model.layers.*.self_attn.q_proj`; a star stands for the layers
    layers       the layers' numbers as ranges, `0-15, 30`; empty for a module outside the layers
    parts        of each module: `lora_A`, `lora_B`, `lora_B.bias`, `lora_magnitude_vector`, `weight`, `tokens`
    rank, scale  of the LoRA of each module; None for a module without one
    """

    module: str
    layers: str
    parts: tuple[str, ...]
    num_tensors: int
    rank: int | None = None
    scale: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOutGroup:
    """Tensors that are left out for one reason.

    tensors  their name in the file, with a star for the layers
    """

    tensors: str
    layers: str
    num_tensors: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseCheck:
    """The base by the adapter's own config, and the served base; `is_same` is None where either is unknown."""

    declared: str = ""
    served: str = ""
    is_same: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensPart:
    """The adapter's tokenizer files.

    num_added    tokens that the base's tokenizer lacks
    num_changed  added tokens of the base that have other flags here
    digest       of the text files
    examples     texts of the first added tokens, escaped
    """

    files: tuple[str, ...] = ()
    digest: str = ""
    num_added: int = 0
    num_changed: int = 0
    examples: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplatePart:
    """The adapter's own chat template. `is_used` False: the operator forbids it, or `notes` has the reason."""

    file: str = ""
    is_present: bool = False
    is_used: bool = False
    is_forbidden: bool = False
    num_bytes: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationPart:
    """The applied values of the adapter's own generation config. `stop_strings` are escaped."""

    eos_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestReport:
    """Result of checking and packing one version of an adapter.

    num_tensors, num_applied, num_left_out  counts of the weights file's tensors
    applied_rest, left_out_rest             tensors of the groups beyond `MAX_GROUPS`
    left_out_names                          names of the first `MAX_NAMES` left-out tensors, as in the file
    untouched                               modules that the config names and the file has no tensors for, by groups
    num_added_rows, num_trained_rows        rows of the embedding or the output head: new token ids, trained ones
    features                                features of PEFT in use beside LoRA on linear layers
    harmless_fields                         unknown fields of the config that `adapters.harmless_fields` let pass
    peft_version, known_peft                the release of PEFT by the config, and the release that the checks know
    tokens, template, generation            the text files beside the weights; None if they were not read
    """

    num_tensors: int = 0
    num_applied: int = 0
    num_left_out: int = 0
    applied: tuple[AppliedGroup, ...] = ()
    applied_rest: int = 0
    left_out: tuple[LeftOutGroup, ...] = ()
    left_out_rest: int = 0
    left_out_names: tuple[str, ...] = ()
    untouched: tuple[str, ...] = ()
    num_added_rows: int = 0
    num_trained_rows: int = 0
    features: tuple[str, ...] = ()
    harmless_fields: tuple[str, ...] = ()
    base: BaseCheck = BaseCheck()
    peft_version: str = ""
    known_peft: str = ""
    warnings: tuple[str, ...] = ()
    tokens: TokensPart | None = None
    template: TemplatePart | None = None
    generation: GenerationPart | None = None

    def to_json(self) -> Json:
        return asdict(self)

    def to_text(self) -> str:
        """Return the report as JSON in one line of at most `MAX_REPORT_BYTES`."""
        text = _dumped(self)
        if len(text) > MAX_REPORT_BYTES:
            text = _dumped(self.without_lists())
        return text if len(text) <= MAX_REPORT_BYTES else _dumped(IngestReport(warnings=("the report is too large",)))

    def without_lists(self) -> "IngestReport":
        """Return the report with its counts alone."""
        return replace(
            self,
            applied=(),
            applied_rest=self.num_applied,
            left_out=(),
            left_out_rest=self.num_left_out,
            left_out_names=(),
            untouched=(),
        )

    def with_warnings(self, warnings: Iterable[str]) -> "IngestReport":
        return replace(self, warnings=tuple(dict.fromkeys((*self.warnings, *warnings)))[:MAX_WARNINGS])


def report_from_json(values: object) -> IngestReport | None:
    """Return a report from the JSON of this release or another; None for any other value."""
    if not isinstance(values, dict):
        return None
    try:
        return IngestReport(
            **{
                **_own(IngestReport, values),
                "applied": tuple(_made(AppliedGroup, each) for each in values.get("applied", ())),
                "left_out": tuple(_made(LeftOutGroup, each) for each in values.get("left_out", ())),
                "base": _made(BaseCheck, values.get("base") or {}),
                "tokens": _part(TokensPart, values.get("tokens")),
                "template": _part(TemplatePart, values.get("template")),
                "generation": _part(GenerationPart, values.get("generation")),
            }
        )
    except (TypeError, ValueError, AttributeError):
        return None


def report_from_text(text: str | bytes) -> IngestReport | None:
    """Return a report from the text of `to_text`; None for any other text. See `report_from_json`."""
    try:
        return report_from_json(json.loads(text))
    except (ValueError, RecursionError):
        return None


class Groups:
    """Groups tensors whose names differ in their layer alone, and counts them, by a key of the caller's."""

    def __init__(self) -> None:
        self._layers: dict[tuple[Any, ...], set[int]] = {}  # keyed by (pattern, *the caller's key)
        self._counts: dict[tuple[Any, ...], int] = {}
        self.rest = 0

    def add(self, name: str, *key: object, num_tensors: int = 1) -> None:
        """Count tensors under a module's path or a tensor's name in the file, and a hashable key."""
        layer = _LAYER.search(name)
        pattern = shown(name if layer is None else f"{name[: layer.start()]}*{name[layer.end() :]}")
        group = (pattern, *key)
        if group not in self._counts and len(self._counts) >= MAX_GROUPS:
            self.rest += num_tensors
            return
        self._counts[group] = self._counts.get(group, 0) + num_tensors
        layers = self._layers.setdefault(group, set())
        if layer is not None:
            layers.add(int(layer[1]))

    def items(self) -> Iterator[tuple[tuple[Any, ...], str, int]]:
        """Yield each group, its layers as ranges, and the number of its tensors, in the order of first occurrence."""
        return ((group, ranges(self._layers[group]), count) for group, count in self._counts.items())


def ranges(numbers: Iterable[int]) -> str:
    """Return numbers as ranges, `0-3, 7`, cut short at `MAX_LAYERS_CHARACTERS`."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)
    return text if len(text) <= MAX_LAYERS_CHARACTERS else text[:MAX_LAYERS_CHARACTERS].rpartition(",")[0] + ", …"


def _dumped(report: IngestReport) -> str:
    return json.dumps(report.to_json(), separators=(",", ":"))


def _own(kind: type[Any], values: Mapping[str, Any]) -> Json:
    """Return the values of a dataclass's own fields, lists as tuples. Fields of another release are dropped."""
    names = {each.name for each in fields(kind)}
    return {name: _tuples(value) for name, value in values.items() if name in names}


def _made(kind: type[Any], values: Mapping[str, Any]) -> Any:  # an instance of `kind`
    return kind(**_own(kind, values))


def _part(kind: type[Any], values: Mapping[str, Any] | None) -> Any:  # an instance of `kind`, or None
    return None if values is None else _made(kind, values)


def _tuples(value: object) -> object:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
