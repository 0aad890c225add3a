"""`manylora apply` and `manylora export`: the declared state of a server, with the operator's key."""

import json as json_library
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manylora.cli.catalogue.pins import PinStep, pin_steps, pinned_names, set_pin
from manylora.cli.catalogue.yaml_lines import YamlFile
from manylora.cli.remote.client import DEFAULT_URL, JsonOption, KeyOption, RemoteServer, UrlOption
from manylora.cli.remote.output import fail, say
from manylora.system.failures import cause_of
from manylora.system.printable import printable_json

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

CATALOGUE = "/admin/catalogue"
APPLY_WAIT_S = 600.0
MARKS = {"create": "+", "change": "~", "delete": "-"}
Json = dict[str, Any]  # JSON values of several types


def apply(
    file: Annotated[Path, typer.Option("-f", "--file", metavar="FILE", help="The catalogue, in YAML or JSON.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan alone.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Delete what the lists of the file do not declare.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation of deletions.")] = False,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Put the declared state of a file in force: print the plan, then do its steps.

    The same file again changes nothing. A plan that has changed since it was printed is refused as a whole. A step that
    fails ends the run; the next run does the rest.
    """
    catalogue = read_catalogue(file)
    server = RemoteServer(url=url, key=key)
    pins = catalogue.pop("pins", None)
    shown = _put(server, catalogue, dry_run=True, prune=prune)
    steps = [] if pins is None else pin_steps(pinned_names(server), pins, prune=prune)
    if not json:
        _print_plan(shown["plan"], steps)
    deletions = [step for step in shown["plan"] if step["verb"] == "delete"]
    if deletions and not dry_run and not yes:
        typer.confirm(f"Delete {len(deletions)} objects at {url} for ever?", abort=True)
    reply = shown if dry_run else _put(server, catalogue, dry_run=False, prune=prune, digest=shown["digest"])
    done = [] if dry_run or reply["failed"] else [step for step in steps if set_pin(server, step)]
    if json:
        told = [step.json() for step in steps]
        typer.echo(
            printable_json(json_library.dumps({**reply, "pins": told, "pinsDone": len(done)}, ensure_ascii=False))
        )
    elif not dry_run:
        _print_outcome(reply, len(done))
    if reply["failed"] or len(done) < len(steps) * (not dry_run):
        raise typer.Exit(1)


def export(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write a file. Default: print.")
    ] = None,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Print the state of a server as a catalogue, in YAML: no keys, no balances, no weights of adapters."""
    server = RemoteServer(url=url, key=key)
    found = server.ask("GET", CATALOGUE, expects="tenants").json()
    if (pinned := pinned_names(server)) is not None:
        found["pins"] = sorted(pinned)
    text = printable_json(json_library.dumps(found, ensure_ascii=False)) + "\n" if json else yaml_text(found)
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"{output} cannot be written: {cause_of(error)}")
    say(f"done: {output}")


def yaml_text(found: Json) -> str:
    """Return JSON as YAML that `YamlFile` reads as the same values, in characters that a terminal prints."""
    import yaml

    text = yaml.safe_dump(found, sort_keys=False, allow_unicode=True, default_flow_style=False)
    if not text.replace("\n", "").isprintable():  # YAML keeps marks that turn a terminal's writing direction
        text = yaml.safe_dump(found, sort_keys=False, default_flow_style=False)
    return str(text)


def read_catalogue(file: Path) -> Json:
    """Return a checked catalogue as JSON. A wrong field ends the program with its name and line."""
    from pydantic import ValidationError

    from manylora.control.catalogue.declared import DeclaredCatalogue

    found = YamlFile(file)
    if not isinstance(found.values, dict):
        fail(f"{file} must have a mapping with `tenants`, `prices` or `pins`")
    try:
        DeclaredCatalogue.model_validate(found.values)
    except ValidationError as error:
        fail("\n".join(_told(found, each) for each in error.errors()[:10]))
    return dict(found.values)


def _told(found: YamlFile, error: "ErrorDetails") -> str:
    """Return an error with its line. The place of an unknown field is that of the mapping around it."""
    place = error["loc"]
    name = error.get("ctx", {}).get("name")
    path = (*place, name) if isinstance(name, str) else place
    where = ".".join(map(str, place))
    return f"{found.file}, line {found.line_of(path)}: {where + ': ' if where else ''}{error['msg']}"


def _put(server: RemoteServer, catalogue: Json, *, dry_run: bool, prune: bool, digest: str = "") -> Json:
    query: dict[str, object] = {"dryRun": str(dry_run).lower(), "prune": str(prune).lower()}
    if digest:
        query["digest"] = digest
    wait_s = APPLY_WAIT_S
    reply = server.ask("PUT", CATALOGUE, expects="plan", query=query, body=catalogue, wait_s=wait_s).json()
    return dict(reply)


def _print_plan(plan: list[Json], pins: list[PinStep]) -> None:
    for step in plan:
        say(f"{MARKS[step['verb']]} {step['verb']} {step['kind']} {step['name']}")
        for name, values in step["changes"].items():
            old, new = _text(values["old"]), _text(values["new"])
            match step["verb"]:
                case "create":
                    say(f"    {name}: {new}")
                case "change":
                    say(f"    {name}: {old} → {new}")
                case _:
                    say(f"    {name}: {old}")
    for each in pins:
        say(f"{'+' if each.is_pinned else '-'} {'pin' if each.is_pinned else 'unpin'} {each.name}")
    if not plan and not pins:
        say("nothing to do: the server is as declared")


def _print_outcome(reply: Json, pins: int) -> None:
    for tenant, text in reply["keys"].items():
        say(f"first key of {tenant}, shown this once: {text}")
    total = len(reply["plan"])
    if (failed := reply["failed"]) is not None:
        left = total - reply["done"] - 1
        say(f"failed: {failed['verb']} {failed['kind']} {failed['name']}: {failed['error']}", err=True)
        say(f"done: {reply['done']} of {total} steps; {left} are left. The same command does the rest.", err=True)
    elif total or pins:
        say(f"done: {total + pins} steps")


def _text(value: object) -> str:
    return "-" if value in (None, "") else json_library.dumps(value, ensure_ascii=False)
