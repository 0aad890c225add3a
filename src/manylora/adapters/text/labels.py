"""The names of the labels of an adapter's classification head, from the `config.json` beside its weights."""

import json
from collections.abc import Mapping

from manylora.adapters.refusals import Refusals, shown

LABELS_FILE = "config.json"
MAX_LABEL_BYTES = 256
PROBLEMS = ("", "single_label_classification", "multi_label_classification", "regression")


def read_labels(files: Mapping[str, bytes], num_labels: int, refuse: Refusals) -> tuple[tuple[str, ...], str]:
    """Return `id2label` in the order of the labels, empty without it, and `problem_type`.

    Raises `AdapterCorrupt` for a file that is no JSON object, and for names or a number of labels that are not those of
    the head; `AdapterUnsupported` for another `problem_type`.
    """
    try:
        content = json.loads(files.get(LABELS_FILE, b"{}"))
    except (ValueError, RecursionError) as error:
        raise refuse.corrupt(f"{LABELS_FILE} is not JSON") from error
    if not isinstance(content, dict):
        raise refuse.corrupt(f"{LABELS_FILE} is not a JSON object")
    problem = content.get("problem_type") or ""
    if problem not in PROBLEMS:
        raise refuse.unsupported(f"`problem_type` = {shown(problem)} in {LABELS_FILE}")
    stated = content.get("num_labels")
    if stated is not None and stated != num_labels:
        told = f"`num_labels` in {LABELS_FILE} is {shown(stated)}, its classification head has {num_labels} labels"
        raise refuse.corrupt(told)
    named = content.get("id2label")
    if named is None:
        return (), problem
    if not isinstance(named, dict) or set(named) != {str(label) for label in range(num_labels)}:
        count = len(named) if isinstance(named, dict) else "no"
        raise refuse.corrupt(
            f"`id2label` in {LABELS_FILE} names {count} labels, its classification head has {num_labels}"
        )
    labels = tuple(named[str(label)] for label in range(num_labels))
    if not all(isinstance(label, str) and _is_short(label) for label in labels):
        raise refuse.corrupt(f"`id2label` in {LABELS_FILE} has a label that is no text of 1 to {MAX_LABEL_BYTES} bytes")
    return labels, problem


def _is_short(label: str) -> bool:
    return 0 < len(label.encode("utf-8", "surrogatepass")) <= MAX_LABEL_BYTES and label.isprintable()
