"""The classification head of an adapter: its tensors, checked against the config and the base."""

from collections.abc import Mapping
from dataclasses import dataclass

from manylora.adapter_state import HeadKind
from manylora.adapters.base_shape import BaseShape, Module
from manylora.adapters.peft.config import LoraRule
from manylora.adapters.peft.safetensors_header import HeaderEntry
from manylora.adapters.peft.tensor_names import TASK_HEAD, TASK_HEAD_NAMES, Part
from manylora.adapters.refusals import Refusals

MAX_LABELS = 4_096


@dataclass(frozen=True, slots=True)
class CheckedHead:
    """A head whose shapes fit: `weight` (labels, hidden), `bias` (labels,) or None."""

    kind: HeadKind
    num_labels: int
    weight: HeaderEntry
    bias: HeaderEntry | None


def check_head(
    parts: Mapping[tuple[Module, Part], list[HeaderEntry]], rule: LoraRule, shape: BaseShape, refuse: Refusals
) -> CheckedHead | None:
    """Return the head of an adapter, or None if neither its task nor its file has one.

    Raises `AdapterCorrupt` for a head that the config names and the file lacks, which PEFT would start at random, or
    for one with a part alone; `AdapterIncompatible` for shapes that do not fit the base, or too many labels.
    """
    if rule.head is None:
        return None
    weight, bias = (parts[TASK_HEAD, part][0] if (TASK_HEAD, part) in parts else None for part in _PARTS)
    if weight is None:
        named = [name for name in TASK_HEAD_NAMES if rule.selection.saves_whole(name)]
        if bias is not None or named:
            raise refuse.corrupt(
                f"adapter_config.json has the task of a classification head, and the file has no "
                f"{' or '.join(f'{name}.weight' for name in TASK_HEAD_NAMES)}"
            )
        return None
    if len(weight.shape) != 2 or weight.shape[1] != shape.hidden or not 1 <= weight.shape[0] <= MAX_LABELS:
        raise refuse.incompatible(
            f"its classification head is {list(weight.shape)}, not [labels, {shape.hidden}] with 1 to {MAX_LABELS} "
            "labels"
        )
    num_labels = weight.shape[0]
    if bias is not None and bias.shape != (num_labels,):
        raise refuse.incompatible(f"the bias of its classification head is {list(bias.shape)}, not [{num_labels}]")
    return CheckedHead(rule.head, num_labels, weight, bias)


_PARTS = (Part.HEAD, Part.HEAD_BIAS)
