"""The ingest report of a checked adapter."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from manylora.adapters.base_shape import BaseShape, Module, module_path
from manylora.adapters.peft.applying import COPIES, module_name
from manylora.adapters.peft.checkpoint import CheckedAdapter
from manylora.adapters.peft.config import LoraRule
from manylora.adapters.peft.fields import KNOWN_PEFT
from manylora.adapters.peft.patterns import Patterns
from manylora.adapters.peft.tensor_names import Part
from manylora.adapters.refusals import shown
from manylora.adapters.report import (
    MAX_GROUPS,
    MAX_NAMES,
    AppliedGroup,
    BaseCheck,
    GenerationPart,
    Groups,
    IngestReport,
    LeftOutGroup,
    TemplatePart,
    TokensPart,
)
from manylora.models.text.adapter_text import AdapterText, text_digest
from manylora.models.text.token_files import GENERATION_FILE, TEMPLATE_FILES, TOKENIZER_FILES

MAX_UNTOUCHED = 16
MAX_EXAMPLES = 8
_LABELS = {
    Part.A: "lora_A",
    Part.B: "lora_B",
    Part.BIAS: "lora_B.bias",
    Part.MAGNITUDE: "lora_magnitude_vector",
    Part.BASE_BIAS: "base_layer.bias",
    Part.TABLE: "weight",
    Part.BASE: "base_layer.weight",
    Part.TOKENS: "trainable_tokens_delta",
    Part.NORM: "weight",
    Part.HEAD: "weight",
    Part.HEAD_BIAS: "bias",
}


def report_of(adapter: CheckedAdapter, shape: BaseShape) -> IngestReport:
    """Return the tensors of an adapter's file that are applied and those that are left out, with the reason."""
    found = adapter.sorted_tensors
    applied, left_out = _applied(adapter), Groups()
    for name, reason in found.left_out.items():
        left_out.add(name, reason)
    report = IngestReport(
        num_tensors=len(found.names) + len(found.left_out),
        num_applied=len(found.names),
        num_left_out=len(found.left_out),
        applied=tuple(
            AppliedGroup(module=module, layers=layers, parts=parts, num_tensors=count, rank=rank, scale=scale)
            for (module, parts, rank, scale), layers, count in applied.items()
        ),
        applied_rest=applied.rest,
        left_out=tuple(
            LeftOutGroup(tensors=tensors, layers=layers, num_tensors=count, reason=reason)
            for (tensors, reason), layers, count in left_out.items()
        ),
        left_out_rest=left_out.rest,
        left_out_names=tuple(shown(name) for name in list(found.left_out)[:MAX_NAMES]),
        untouched=_untouched(adapter),
        num_added_rows=adapter.vocabulary - shape.vocab,
        num_trained_rows=sum(len(adapter.tokens[end].ids) for end in adapter.rule.token_ends(shape)),
        features=tuple(adapter.extra_features),
        harmless_fields=adapter.rule.harmless_fields,
        base=_base_check(adapter.rule.base_model_name, shape.name),
        peft_version=adapter.rule.peft_version,
        known_peft=KNOWN_PEFT,
    )
    return report.with_warnings(_warnings(adapter, report))


def report_without_base(rule: LoraRule, num_tensors: int) -> IngestReport:
    """Return the report of an adapter whose base is not served here. It lists no tensors as applied or left out."""
    return IngestReport(
        num_tensors=num_tensors,
        harmless_fields=rule.harmless_fields,
        base=_base_check(rule.base_model_name, ""),
        peft_version=rule.peft_version,
        known_peft=KNOWN_PEFT,
        warnings=("its base is not known here: the server of the base compares the tensors with it",),
    )


def merged_report(members: Sequence[IngestReport]) -> IngestReport:
    """Return the reports of a merge's members as one: the tensors of all members, in the groups of each."""
    first = members[0]
    applied = [group for member in members for group in member.applied]
    left_out = [group for member in members for group in member.left_out]
    return replace(
        first,
        num_tensors=sum(member.num_tensors for member in members),
        num_applied=sum(member.num_applied for member in members),
        num_left_out=sum(member.num_left_out for member in members),
        applied=tuple(applied[:MAX_GROUPS]),
        applied_rest=sum(member.applied_rest for member in members)
        + sum(group.num_tensors for group in applied[MAX_GROUPS:]),
        left_out=tuple(left_out[:MAX_GROUPS]),
        left_out_rest=sum(member.left_out_rest for member in members)
        + sum(group.num_tensors for group in left_out[MAX_GROUPS:]),
        left_out_names=tuple(name for member in members for name in member.left_out_names)[:MAX_NAMES],
        untouched=tuple(dict.fromkeys(text for member in members for text in member.untouched))[:MAX_UNTOUCHED],
        warnings=(),
        tokens=None,
        template=None,
        generation=None,
    ).with_warnings(text for member in members for text in member.warnings)


def _applied(adapter: CheckedAdapter) -> Groups:
    """Return the groups of applied tensors, keyed by (parts, rank, scale) of each module."""
    loras = {own.stack or own.module: own for own in adapter.modules}
    parts_of: dict[tuple[Module, bool], list[Part]] = {}  # True: a norm, whose module may equal a projection's
    for module, part in adapter.sorted_tensors.names.values():
        parts_of.setdefault((module, part is Part.NORM), []).append(part)
    groups = Groups()
    for (module, is_norm), parts in parts_of.items():
        own = None if is_norm else loras.get(module)
        labels = tuple(_LABELS[part] for part in Part if part in parts)
        path = module_name(module, parts[0])
        groups.add(path, labels, own and own.rank, own and own.scale, num_tensors=len(parts))
    return groups


def _untouched(adapter: CheckedAdapter) -> tuple[str, ...]:
    groups = Groups()
    for module in adapter.untouched:
        groups.add(module_path(module))
    found = [f"{path} ({layers})" if layers else path for (path,), layers, _ in groups.items()]
    return tuple(found[:MAX_UNTOUCHED])


def _base_check(declared: str, served: str) -> BaseCheck:
    last = declared.rstrip("/").rsplit("/", 1)[-1]
    is_same = last.lower() == served.lower() if last and served else None
    return BaseCheck(declared=declared, served=shown(served), is_same=is_same)


def _warnings(adapter: CheckedAdapter, report: IngestReport) -> Iterator[str]:
    """Yield a warning for each oddity that is allowed and probably a mistake."""
    base, rule = report.base, adapter.rule
    if base.is_same is False:
        last = base.declared.rstrip("/").rsplit("/", 1)[-1]
        yield f"it was trained on {last}, by its own words, and is served on {base.served}"
    surplus = [name for name, why in adapter.sorted_tensors.left_out.items() if why not in COPIES]
    if surplus:
        yield f"{len(surplus)} tensors that its config does not name are left out, the first `{shown(surplus[0])}`"
    if report.untouched:
        yield f"its config names modules that its file has nothing for: {', '.join(report.untouched)}"
    for field, keys, patterns in (
        ("rank_pattern", rule.rank_pattern, rule.rank_keys),
        ("alpha_pattern", rule.alpha_pattern, rule.alpha_keys),
    ):
        if unused := _unused(list(keys), patterns, adapter):
            yield f"`{field}` has keys that govern no module: {', '.join(map(shown, unused[:4]))}"
    if rule.harmless_fields:
        yield f"unknown fields passed by adapters.harmless_fields: {', '.join(rule.harmless_fields[:8])}"


def _unused(keys: list[str], patterns: Patterns, adapter: CheckedAdapter) -> list[str]:
    if not keys:
        return []
    names = [name for own in adapter.modules for name in own.names] + [module_path(own) for own in adapter.untouched]
    used = set(map(patterns.first_match, names))
    return [key for key in keys if key not in used]


def with_text(
    report: IngestReport, files: Mapping[str, bytes], text: AdapterText, *, is_forbidden: bool = False
) -> IngestReport:
    """Return the report with the parts of an adapter's text files; unchanged if it has none.

    `is_forbidden`: the operator does not allow adapters' templates.
    """
    tokenizer = tuple(name for name in files if name in TOKENIZER_FILES)
    holder = next((name for name in TEMPLATE_FILES if name in files), "")
    sizes = [len(template.encode()) for template in text.templates.values()]
    generation = GENERATION_FILE in files or text.end_ids is not None
    return replace(
        report,
        tokens=TokensPart(
            files=tokenizer,
            digest=text_digest(text.to_bytes()),
            num_added=len(text.tokens),
            num_changed=len(text.changed),
            examples=tuple(shown(token.content) for token in text.tokens[:MAX_EXAMPLES]),
        )
        if tokenizer
        else None,
        template=TemplatePart(
            file=holder, is_present=True, is_used=not is_forbidden, is_forbidden=is_forbidden, num_bytes=sum(sizes)
        )
        if sizes
        else None,
        generation=GenerationPart(eos_token_ids=text.end_ids or (), stop_strings=tuple(map(shown, text.stop_strings)))
        if generation
        else None,
    )
