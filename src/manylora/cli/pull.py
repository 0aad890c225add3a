"""`manylora pull`: fetch a base model before it is served."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress, TaskID

_STAGES = {"download": "Downloading", "unpack": "Unpacking", "convert": "Converting", "verify": "Verifying"}


def pull(
    name: Annotated[
        str, typer.Argument(help="A known name, a hub repository (org/name), or a directory or GGUF file to check.")
    ] = "SmolLM2-135M-Instruct",
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every file again, also those that were read before unchanged.")
    ] = False,
) -> None:
    """Fetch a base model into the cache, or check that a directory holds one. Damaged files are fetched anew."""
    import logging

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from manylora.config.folders import cache_dir
    from manylora.config.settings import load_config
    from manylora.models.fetch.pull import pull as fetch

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("manylora").setLevel(logging.INFO)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"), TimeElapsedColumn())
    bars = Progress(*columns, console=Console(stderr=True))
    try:
        directory = fetch(name, cache_dir(load_config()), _reporter(bars), is_thorough=verify)
    finally:
        if bars.tasks:  # a stopped display without bars writes an empty line
            bars.stop()
    typer.echo(directory)


def _reporter(bars: "Progress") -> "Callable[[str, int, int], None]":
    """Return a callback that keeps one bar for each stage."""
    tasks: dict[str, TaskID] = {}

    def report(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            bars.start()
            tasks[stage] = bars.add_task(_STAGES.get(stage, stage), total=total, amount="")
        amount = f"{done} of {total} tensors" if stage == "convert" else f"{done / 1e6:.0f} of {total / 1e6:.0f} MB"
        bars.update(tasks[stage], completed=done, amount=amount)

    return report
