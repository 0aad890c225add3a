"""`manylora export-usage`: hourly usage of a running server for a billing system, each sum sent once."""

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from manylora.cli.remote.client import DEFAULT_URL, KeyOption, RemoteServer, UrlOption, path_of
from manylora.cli.remote.output import fail, say

ENDINGS = {"cloudevents": "jsonl", "stripe": "jsonl", "csv": "csv"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def export_usage(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that gets a file for each export.")],
    form: Annotated[str, typer.Option(help="cloudevents (OpenMeter), stripe (meter events) or csv.")] = "cloudevents",
    sink: Annotated[str, typer.Option(help="A name for the receiver; each has a cursor of its own.")] = "default",
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Write the hourly usage that was not exported yet, with the operator's key; a repetition writes nothing twice."""
    if form not in ENDINGS:
        fail(f"--form must be one of {', '.join(ENDINGS)}. Given: {form!r}")
    server, path = RemoteServer(url=url, key=key), "/admin/billing/exports" + path_of(sink)
    num_events = 0
    while True:
        body = server.ask("GET", path, expects="events", query={"form": form}).json()
        if body["begin_ms"] >= body["end_ms"]:
            break
        if body["events"]:
            begun = f"usage-{sink}-{body['begin_ms']}-"
            file = out / f"{begun}{body['end_ms']}.{ENDINGS[form]}"
            num_events += _write(file, form, _pages(server, path, form, body))
        bounds = {name: body[name] for name in ("begin_ms", "end_ms", "pages") if name in body}
        if not server.ask("POST", path, expects="is_new", body=bounds).json()["is_new"]:
            taken_ms = server.ask("GET", path, expects="events", query={"form": form}).json()["begin_ms"]
            if body["events"] and taken_ms != body["end_ms"]:
                file.unlink(missing_ok=True)  # a faster export took fewer hours, and the next one takes the others
            break
        if body["events"]:
            _remove_others(out, begun, file)
    say(f"done: {num_events} sums")


def _remove_others(out: Path, begun: str, file: Path) -> None:
    """Remove files of runs that ended before their acknowledgement: the acknowledged file has their sums, too."""
    for other in out.iterdir():
        if other.name.startswith(begun) and other.name != file.name and other.suffix == file.suffix:
            other.unlink(missing_ok=True)


def _pages(server: RemoteServer, path: str, form: str, first: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Yield the events of each page of an export, the first of which is known."""
    yield first["events"]
    for page in range(2, first.get("pages", 1) + 1):
        query = {"form": form, "page": page, "end_ms": first["end_ms"]}
        yield server.ask("GET", path, expects="events", query=query).json()["events"]


def _lines(form: str, events: list[dict[str, Any]], *, is_first: bool) -> str:
    if form != "csv":
        return "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(events[0]), lineterminator="\n")
    if is_first:
        writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in event.items()} for event in events)
    return stream.getvalue()


def _cell(value: object) -> object:
    """Return a text that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _write(file: Path, form: str, pages: Iterator[list[dict[str, Any]]]) -> int:
    """Write a whole file or none, and return its events: a file of that name that was cut short is replaced."""
    count = 0
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        own = file.with_name(f".{file.name}.{os.getpid()}")
        with own.open("w", encoding="utf-8", newline="") as stream:
            for events in pages:
                stream.write(_lines(form, events, is_first=not count))
                count += len(events)
        own.replace(file)
        return count
    except OSError as error:
        fail(f"{file} cannot be written: {error.strerror}")
