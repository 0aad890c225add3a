"""`manylora migrate-from`: a server of LoRAX or vLLM, or a folder of adapters, in our commands."""

import json as json_library
import shlex
from pathlib import Path
from typing import Annotated

import typer

from manylora.cli.catalogue.foreign_lines import AdapterMove, Moved, read_folder, read_line
from manylora.cli.options import JsonTextOption
from manylora.cli.remote.output import fail, say

KINDS = ("lorax", "vllm")
ALIAS = "prod"


def migrate_from(
    kind: Annotated[str, typer.Argument(metavar="lorax|vllm", help="The server that the command starts.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- COMMAND...",
            help="Its command line, after `--` or as one word in quotation marks.",
            show_default=False,
        ),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="A folder of adapters, each in a sub-directory, to upload as well.")
    ] = None,
    json: JsonTextOption = False,
) -> None:
    """Print the same server in our commands: the settings, the uploads and aliases, what differs, what is not known.

    Nothing is started, uploaded or read but the folder.
    """
    if kind not in KINDS:
        fail(f"the server is one of {', '.join(KINDS)}. Given: {kind!r}")
    given = words or []
    if len(given) == 1:
        try:
            given = shlex.split(given[0])
        except ValueError as error:
            fail(f"the command line cannot be read: {error}")
    if not given and folder is None:
        fail("give the command line after `--`, or --folder")
    moved = read_line(kind, given) if given else Moved()
    if folder is not None:
        moved.uploads += read_folder(folder)
    if len(names := [each.name for each in moved.uploads]) != len(set(names)):
        twice = next(name for name in names if names.count(name) > 1)
        fail(f"two adapters have the name {twice!r}; a repository has one")
    commands = [*([serve_command(moved)] if given else []), *(line for each in moved.uploads for line in uploads(each))]
    if json:
        differs = [{"option": option, "difference": text} for option, text in moved.differs]
        typer.echo(json_library.dumps({"commands": commands, "differs": differs, "unknown": moved.unknown}))
        return
    _print(commands, moved)


def serve_command(moved: Moved) -> str:
    """Return the command that starts the same server."""
    options = [f"{name} {shlex.quote(value)}" for name, value in moved.options.items() if name.startswith("-")]
    settings = [
        f"--set {shlex.quote(f'{name}={value}')}" for name, value in moved.options.items() if not name.startswith("-")
    ]
    return " ".join(["manylora serve", *options, *settings])


def uploads(upload: AdapterMove) -> list[str]:
    """Return the commands that make an adapter a repository with an alias. A hub's adapter needs none."""
    is_folder = upload.place.startswith((".", "/", "~")) or Path(upload.place).is_dir()
    if not is_folder:
        name = upload.place if "://" in upload.place else f"hub://{upload.place}"
        return [f"# {upload.name}: requests name it {shlex.quote(name)}; no upload is needed"]
    name, place = shlex.quote(upload.name), shlex.quote(upload.place)
    return [f"manylora repos create {name}", f"manylora repos upload {name} {place} --alias {ALIAS}"]


def _print(commands: list[str], moved: Moved) -> None:
    for command in commands:
        say(command)
    if moved.uploads:
        say(f"# requests name an adapter `name` as before, and may name `name/{ALIAS}`")
    if moved.differs:
        say("# differs:")
        for option, text in moved.differs:
            say(f"#   {option}: {text}")
    if moved.unknown:
        say("# not known, and left out:")
        for word in moved.unknown:
            say(f"#   {word}")
