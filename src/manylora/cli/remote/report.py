"""Output of an ingest report, for `adapters show` and `repos show`."""

from collections.abc import Sequence
from typing import Any

import typer

from manylora.cli.remote.output import print_fields, print_table, say

Info = dict[str, Any]  # JSON of the server: `adapters/report.py`

NO_REPORT = "no report: packed or uploaded by an older release, or not yet"


def print_report(report: Info | None) -> None:
    """Print which tensors of an adapter are applied, which are left out, and why."""
    typer.echo("")
    if report is None:
        print_fields({"ingest report": NO_REPORT})
        return
    print_fields(_fields(report))
    _print_groups(report)
    for warning in report["warnings"]:
        say(f"warning: {warning}")


def _fields(report: Info) -> dict[str, str]:
    base = report["base"]
    same = {True: "the served one", False: f"not the served one, {base['served']}", None: "not compared"}
    fields = {
        "tensors": f"{report['num_applied']} applied, {report['num_left_out']} left out, of {report['num_tensors']}",
        "trained on": f"{base['declared']} ({same[base['is_same']]})" if base["declared"] else "-",
        "saved by": f"PEFT {report['peft_version'] or '?'}; fields known are those of PEFT {report['known_peft']}",
        "features": ", ".join(report["features"]),
        "added rows": str(report["num_added_rows"] or ""),
        "trained rows": str(report["num_trained_rows"] or ""),
        "no tensors for": ", ".join(report["untouched"]),
        "harmless fields": ", ".join(report["harmless_fields"]),
        "left out": ", ".join(report["left_out_names"][:3]) + (", …" if report["num_left_out"] > 3 else ""),
    }
    return {name: text for name, text in {**fields, **_texts(report)}.items() if text}


def _texts(report: Info) -> dict[str, str]:
    """Return the fields of the files beside the weights, as far as they were read."""
    found = {name: report.get(name) or {} for name in ("tokens", "template", "generation")}
    return {
        name: "; ".join(f"{field} {_value(value)}" for field, value in part.items() if value not in ("", [], None))
        for name, part in found.items()
    }


def _value(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _print_groups(report: Info) -> None:
    applied = [
        (
            each["module"],
            each["layers"] or "-",
            ", ".join(each["parts"]),
            str(each["rank"] or "-"),
            "-" if each["scale"] is None else f"{each['scale']:g}",
        )
        for each in report["applied"]
    ]
    _print("applied", ("module", "layers", "parts", "rank", "scale"), applied, report["applied_rest"])
    left_out = [(each["tensors"], each["layers"] or "-", each["reason"]) for each in report["left_out"]]
    _print("left out", ("tensors left out", "layers", "why"), left_out, report["left_out_rest"])


def _print(what: str, columns: Sequence[str], rows: Sequence[Sequence[str]], rest: int) -> None:
    if rows:
        typer.echo("")
        print_table(columns, rows, numbers=("rank", "scale"))
    if rest:
        say(f"{rest} more tensors {what}")
