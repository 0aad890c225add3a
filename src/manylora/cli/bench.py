"""`manylora bench`: the speed of this machine's serving, and the parts of a step's time."""

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manylora.cli.options import BaseOption, QuantizeOption, SetOption
from manylora.system.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from rich.table import Table

    from manylora.bench.profile import StepProfile
    from manylora.bench.suite import Measured
    from manylora.config.settings import Config

TABLE_WIDTH = 140  # without a terminal
DEFAULT_WORKLOADS = ("single", "chat", "triage")


def bench(
    base: BaseOption = None,
    quantize: QuantizeOption = None,
    workload: Annotated[
        list[str] | None,
        typer.Option(help="single, chat, triage or long; repeatable. Default: single, chat and triage."),
    ] = None,
    adapters: Annotated[
        int, typer.Option(min=0, max=1024, help="Random adapters of ranks 4, 8, 16 and 64; 0: the base alone.")
    ] = 32,
    seconds: Annotated[float, typer.Option(min=1.0, help="How long each load is measured once it is warm.")] = 10.0,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show where a step's time goes, kernel by kernel, instead of loads.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result here, with the machine.")] = None,
    set_: SetOption = None,
) -> None:
    """Measure this machine: a server under the project's workloads, or the steps of an engine.

    Prompts are distinct random tokens; the server, the load and 32 streams share the machine. One table at the end.
    """
    from dataclasses import asdict

    from rich.console import Console

    from manylora.bench.machine import describe
    from manylora.bench.random_adapters import write_adapters
    from manylora.bench.workloads import MIXED_RANKS, WORKLOADS
    from manylora.cli.settings import configuration, with_bases_fetched
    from manylora.config.declaration import Setting
    from manylora.config.folders import cache_dir
    from manylora.errors import InvalidParameter
    from manylora.models.fetch.catalog import resolve
    from manylora.models.spec import read_spec

    chosen = tuple(workload or DEFAULT_WORKLOADS)
    for name in chosen:
        if name not in WORKLOADS:
            known = ", ".join(WORKLOADS)
            raise InvalidParameter(f"--workload must be one of {known}; given {name!r}", parameter="workload")
    flags: dict[str, Setting | None] = {
        "model.base": base,
        "model.more_bases": (),
        "model.quantize": quantize,
        "engine.prefix_cache": False,
    }
    settings = with_bases_fetched(configuration(None, set_ or (), flags))
    facts = describe()
    directory = resolve(settings.model.base, cache_dir(settings))
    spec = read_spec(directory)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else TABLE_WIDTH)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "adapters"
        root.mkdir()
        names = write_adapters(root, spec, adapters, MIXED_RANKS, directory.name)
        if profile:
            steps = _profile(settings, root, names)
            console.print(_profile_table(steps))
            record = [asdict(step) for step in steps]
        else:
            assignments = [*(set_ or ()), f"model.quantize={settings.model.quantize}"]
            loads = _loads(
                directory, [root / name for name in names], chosen, spec.vocab, seconds, assignments, Path(scratch)
            )
            console.print(_load_table(loads))
            for load in loads:
                for error in load.figures.first_errors:
                    console.print(f"{load.workload}: {printable(error)}", markup=False, emoji=False)
            record = [asdict(load) for load in loads]
    if json_file:
        json_file.write_text(json.dumps({**facts, "results": record}, indent=1) + "\n", encoding="utf-8")


def _profile(config: "Config", root: Path, names: list[str]) -> "list[StepProfile]":
    import dataclasses

    from manylora.bench.profile import ROWS, profile_steps
    from manylora.cli.settings import FACTORY
    from manylora.clock import SystemClock
    from manylora.engine.engine import Engine
    from manylora.server.engine_client.loop import load_factory

    adapters = dataclasses.replace(config.adapters, roots=(str(root),))
    config = dataclasses.replace(config, adapters=adapters)
    with _bar(3 * (len(ROWS) + 3)) as report:
        engine, served = load_factory(FACTORY)(config, lambda line: None)
        assert isinstance(engine, Engine)
        try:
            prompt_rows = min(served.max_step_tokens, served.max_model_len - 2)
            return profile_steps(engine, names, served.vocab_size, prompt_rows, SystemClock(), report)
        finally:
            engine.close()


def _loads(
    directory: Path,
    adapters: list[Path],
    workloads: tuple[str, ...],
    vocab: int,
    seconds: float,
    assignments: list[str],
    scratch: Path,
) -> "list[Measured]":
    from manylora.bench.servers import Manylora
    from manylora.bench.suite import run_suite

    server = Manylora(*assignments)
    with _bar(1 + len(workloads) * (2 if adapters else 1)) as report:
        return run_suite(server, directory, adapters, workloads, vocab, seconds, scratch / "log", report)


def _bar(total: int) -> "AbstractContextManager[Callable[[str], None]]":
    """Return a context with a progress bar of `total` parts.

    Its value is called with the name of each part that begins.
    """
    import contextlib

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )

    @contextlib.contextmanager
    def shown() -> "Iterator[Callable[[str], None]]":
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task("loading", total=total)
            begun: list[str] = []

            def report(part: str) -> None:
                bars.update(task, description=part, completed=len(begun))
                begun.append(part)

            yield report

    return shown()


def _load_table(loads: "list[Measured]") -> "Table":
    from rich.table import Table

    table = Table(title="loads, each measured alone", title_justify="left")
    for name in ("load", "requests/s", "output tokens/s", "first token ms", "p99", "ms per token", "errors"):
        table.add_column(name, justify="left" if name == "load" else "right")
    for load in loads:
        figures = load.figures
        table.add_row(
            f"{load.workload}, {f'{load.adapters} adapters' if load.adapters else 'base'}",
            f"{figures.requests_per_s:.2f}",
            f"{figures.output_tokens_per_s:.1f}",
            f"{figures.first_token_median_ms:.0f}",
            f"{figures.first_token_p99_ms:.0f}",
            f"{figures.token_time_median_ms:.1f}",
            str(figures.errors),
        )
    return table


def _profile_table(steps: "list[StepProfile]") -> "Table":
    from rich.table import Table

    table = Table(
        title="milliseconds of a step: kernels by kind (mean), host and whole step (median)", title_justify="left"
    )
    table.add_column("")
    for step in steps:
        table.add_column(step.name, justify="right")
    totals = {kind: sum(step.kernels_ms.get(kind, 0.0) for step in steps) for step in steps for kind in step.kernels_ms}
    for kind in sorted(totals, key=lambda kind: -totals[kind]):
        table.add_row(kind, *(f"{step.kernels_ms.get(kind, 0.0):.2f}" for step in steps))
    table.add_section()
    table.add_row("host", *(f"{step.host_ms:.2f}" for step in steps))
    table.add_row("step", *(f"{step.step_ms:.2f}" for step in steps))
    table.add_row("middle 80 %", *(f"{step.step_p10_ms:.1f}–{step.step_p90_ms:.1f}" for step in steps))
    return table
