"""`manylora plan`: the memory plan with which `serve` would start, and its capacity."""

import dataclasses
import json as json_text
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manylora.cli.options import BaseOption, JsonTextOption, QuantizeOption
from manylora.cli.remote.output import fail, print_table, say

if TYPE_CHECKING:
    from manylora.config.settings import Config
    from manylora.kernels.storage_form import StorageForm
    from manylora.models.fetch.catalog import BaseFacts
    from manylora.wiring.capacity import DegreeRoom, MemoryCapacity

MOST_STREAMS = 1_000_000


def plan(
    base: BaseOption = None,
    device_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory of a device for the server's processes, such as 24GiB. Default: what this machine has left.",
        ),
    ] = None,
    quantize: QuantizeOption = None,
    context: Annotated[
        int | None, typer.Option(help="Longest sequence, as serve's --max-model-len. Default: the window of the base.")
    ] = None,
    streams: Annotated[
        int | None, typer.Option(help="Sequences of that length that must fit side by side. Default: one.")
    ] = None,
    tensor_parallel: Annotated[
        int, typer.Option(help="Devices that share the base. The server itself computes on one.")
    ] = 1,
    config: Annotated[Path | None, typer.Option(help="A TOML file of settings.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="GROUP.SETTING=VALUE", help="Any setting by name. May be given several times."),
    ] = None,
    json: JsonTextOption = False,
) -> None:
    """Print what fits into the memory: streams, adapters, and the devices that a base needs. Nothing is loaded.

    The arithmetic is that of `serve` for the default base alone. The shape is that of the base's config.json, or of the
    catalog for a base that is not in the cache. A base that does not fit ends the command with exit code 1.
    """
    from manylora.cli.settings import configuration
    from manylora.config.folders import cache_dir
    from manylora.models.fetch.catalog import describe
    from manylora.system.byte_sizes import parse_bytes
    from manylora.wiring.bases import default_base_settings
    from manylora.wiring.capacity import measure_capacity
    from manylora.wiring.planning import available_bytes, planned_form

    memory = None if device_memory is None else parse_bytes("--device-memory", device_memory)
    _check_range("--streams", streams, 1, MOST_STREAMS)
    given = configuration(
        config,
        set_ or (),
        {
            "model.base": base,
            "model.more_bases": () if base else None,
            "model.quantize": quantize,
            "engine.memory_bytes": memory,
        },
    )
    settings = default_base_settings(given)
    facts = describe(settings.model.base, cache_dir(settings))
    _check_range("--context", context, 2, facts.spec.max_positions, f", the window of {facts.name}")
    if context is not None:
        settings = dataclasses.replace(settings, engine=dataclasses.replace(settings.engine, max_model_len=context))
    form, others = planned_form(settings), given.model.more_bases
    found = measure_capacity(
        settings,
        facts.spec,
        form,
        available_bytes=available_bytes(settings),
        degree=tensor_parallel,
        streams=streams,
    )
    if json:
        typer.echo(json_text.dumps(capacity_fields(facts, form, found, tensor_parallel, others), indent=2))
    else:
        for line in summary(facts, form, tensor_parallel, others):
            say(line)
        _print_capacity(found)
    if found.objection is not None:
        fail(f"{facts.name}: {found.objection}{remedies(found)}")
    if streams is not None and tensor_parallel == 1 and not json:  # the server computes on one device
        typer.echo()
        say(serve_command(given, found, config, set_ or ()))


def _check_range(name: str, value: int | None, least: int, most: int, why: str = "") -> None:
    """Raise `ConfigInvalid` for a number outside `[least, most]`."""
    from manylora.errors import ConfigInvalid

    if value is not None and not least <= value <= most:
        raise ConfigInvalid(f"{name} must be {least} to {most}{why}. Given: {value}")


def summary(facts: "BaseFacts", form: "StorageForm", degree: int, others: Sequence[str]) -> Iterator[str]:
    """Yield the lines above the plan: the base, the place of its shape, its weights, and the bases without a plan."""
    place = "the catalog" if facts.directory is None else str(facts.directory / "config.json")
    yield f"{facts.name}, shape from {place}"
    if facts.unverified:
        yield f"its config.json, once it is in the cache, counts for {', '.join(facts.unverified)}"
    yield f"{facts.spec.parameters:,} weights, held as {form.weights}"
    if others:
        yield f"alone; the settings name further bases, with which serve divides the memory: {', '.join(others)}"
    if degree > 1:
        yield f"one of {degree} devices that share it:"
    yield ""


def _print_capacity(found: "MemoryCapacity") -> None:
    from manylora.system.byte_sizes import byte_text

    typer.echo("\n".join(found.plan.lines()))
    left = found.plan.available_bytes - sum(found.plan.parts.values())
    typer.echo(f"  {'left' if left >= 0 else 'missing':<15}{abs(left) / (1 << 20):8.1f} MiB\n")
    numbers = ("context", "streams", "with all memory left as KV cache")
    rows = [(str(room.context), str(room.planned), str(room.most)) for room in found.streams]
    print_table(numbers, rows, numbers=numbers)
    typer.echo()
    if found.plan.bank_bytes:
        adapters = ("LoRA rank", "targets", "bytes", "in the bank")
        print_table(
            adapters,
            [(str(each.rank), each.targets, byte_text(each.num_bytes), str(each.number)) for each in found.adapters],
            numbers=("LoRA rank", "bytes", "in the bank"),
        )
        typer.echo()
    columns = ("devices", "weights of each", "KV a token of each", "fits")
    print_table(columns, map(_degree_cells, found.degrees), numbers=columns[:3])


def _degree_cells(room: "DegreeRoom") -> tuple[str, ...]:
    from manylora.system.byte_sizes import byte_text

    fits = "yes" if room.objection is None else "no"
    return str(room.degree), byte_text(room.weight_bytes), byte_text(room.kv_token_bytes), fits


def remedies(found: "MemoryCapacity") -> str:
    """Return the changes with which the base would fit, each for itself."""
    parts = [f"it fits with --quantize {form}" for form in found.forms]
    if (needed := found.degree_needed) is None:
        parts.append("it fits on no number of such devices that divides it")
    else:
        parts.append(f"it needs {needed} such devices (tensor-parallel degree {needed})")
    return "".join(f"; {part}" for part in parts)


def serve_command(given: "Config", found: "MemoryCapacity", file: Path | None, assignments: Sequence[str]) -> str:
    """Return the command that starts a server with the plan, for a shell.

    Args:  given  the settings of `file`, `assignments` and the environment; the server has their default base alone
    """
    from manylora.wiring.bases import OF_BASES

    engine, model = found.config.engine, found.config.model
    words = ["manylora", "serve", "--base", model.base, "--quantize", model.quantize]
    words += ["--max-model-len", str(found.plan.max_model_len)]
    planned = {
        f"engine.{name}": getattr(engine, name)
        for name in ("kv_bytes", "max_running", "memory_bytes")
        if getattr(engine, name)
    }
    # The values of single bases are those of the options above, and the server refuses those of bases it has not.
    of_bases = (*OF_BASES, "memory_share_of")
    planned |= {f"model.{name}": "" for name in of_bases if getattr(given.model, name)}
    words += [] if file is None else ["--config", str(file)]
    kept = [each for each in assignments if each.partition("=")[0].strip() not in planned]
    for assignment in (*kept, *(f"{name}={value}" for name, value in planned.items())):
        words += ["--set", assignment]
    return shlex.join(words)


def capacity_fields(
    facts: "BaseFacts", form: "StorageForm", found: "MemoryCapacity", degree: int, others: Sequence[str]
) -> dict[str, object]:
    """Return the plan and its capacity as JSON values; sizes are bytes, of one device. `others` have no plan."""
    return {
        "base": facts.name,
        "other_bases": list(others),
        "shape_from": "catalog" if facts.directory is None else str(facts.directory / "config.json"),
        "unverified": list(facts.unverified),
        "parameters": facts.spec.parameters,
        "weights": form.weights,
        "kv_bytes_per_token": found.kv_token_bytes,
        "tensor_parallel": degree,
        "fits": found.objection is None,
        "why_not": found.objection,
        "plan": dataclasses.asdict(found.plan),
        "streams": [dataclasses.asdict(room) for room in found.streams],
        "adapters": [dataclasses.asdict(room) for room in found.adapters],
        "quantize_that_fits": list(found.forms),
        "degree_needed": found.degree_needed,
        "degrees": [dataclasses.asdict(room) for room in found.degrees],
    }
