"""The sections of `docs/benchmarks.md` on products and weights: bf16 pairs, quantised weights, a mixture of experts."""

from collections import defaultdict
from pathlib import Path

from benchmarks.page.page import Record, source, table


def products(record: Record, pictures: Path) -> str:
    """Return the section: for each shape the time of `native` ÷ that of `native-bf16`, by rows multiplied at once."""
    shapes: dict[tuple[int, int], dict[int, float]] = defaultdict(dict)
    for each in record["results"]:
        shapes[each["inputs"], each["outputs"]][each["rows"]] = each["native_s"] / each["native_bf16_s"]
    counts = sorted({rows for ratios in shapes.values() for rows in ratios})
    head = ("inputs × outputs", *(f"{rows} row{'s' if rows > 1 else ''}" for rows in counts))
    body = [
        (f"{inputs} × {outputs}", *(f"{ratios[rows]:.2f}" if rows in ratios else "" for rows in counts))
        for (inputs, outputs), ratios in shapes.items()
    ]
    lines = ["## Linear layers: float32 activations ÷ bf16 pairs, time", "", source(record)]
    return "\n".join([*lines, table(head, body)])


def experts(record: Record, pictures: Path) -> str:
    """Return the section: the time of a mixture of experts ÷ that of the same operations with one weight."""
    formats: dict[str, dict[int, list[float]]] = defaultdict(dict)
    for each in record["results"]:
        formats[each["format"]][each["rows"]] = each["mixture_by_dense"]
    counts = sorted({rows for ratios in formats.values() for rows in ratios})
    head = ("format", *(f"{rows} row{'s' if rows > 1 else ''}" for rows in counts))
    body = [
        (name, *("{1:.2f} ({0:.2f}–{2:.2f})".format(*ratios[rows]) for rows in counts))
        for name, ratios in formats.items()
    ]
    lines = ["## Mixture of 8 experts, 2 a row ÷ dense layers of the same operations, time", "", source(record)]
    return "\n".join([*lines, table(head, body)])


def quantised(record: Record, pictures: Path) -> str:
    """Return the section: for one row the time over the read of the bytes, for more rows bf16's time ÷ it."""
    forms: dict[tuple[int, int, str], dict[int, Record]] = defaultdict(dict)
    for each in record["results"]:
        forms[each["inputs"], each["outputs"], each["form"]][each["rows"]] = each
    counts = sorted({rows for ratios in forms.values() for rows in ratios})
    head = (
        "inputs × outputs",
        "weights",
        "1 row ÷ read of its bytes",
        *(f"bf16 ÷ it, {rows} rows" for rows in counts[1:]),
    )
    body = [
        (
            f"{inputs} × {outputs}",
            form,
            f"{found[counts[0]]['over_read']['median']:.2f}",
            *(f"{found[rows]['bf16_over']['median']:.2f}" for rows in counts[1:]),
        )
        for (inputs, outputs, form), found in forms.items()
        if form != "bf16"
    ]
    return "\n".join(["## Products of int8 and int4 weights", "", source(record), table(head, body)])


def int4_quality(record: Record, pictures: Path) -> str:
    """Return the section: the loss of quality of int4 weights."""
    return "\n".join(["## Quality of int4 beside bf16", "", source(record), quality_table(record, "int4")])


def quality_table(record: Record, form: str) -> str:
    """Return the table: perplexity and triage accuracy of a form of the weights beside bf16."""
    found = record["quality"]
    rows = [
        ("perplexity", f"{found['perplexity_bf16']:.3f}", f"{found[f'perplexity_{form}']:.3f}"),
        ("triage accuracy", f"{found['triage_accuracy_bf16']:.1%}", f"{found[f'triage_accuracy_{form}']:.1%}"),
    ]
    return table(("quality", "bf16", form), rows)
