"""`manylora plan`: the memory plans with which `serve` would start, and their capacity."""

import dataclasses
import json as json_text
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manylora.cli.options import (
    BasesOption,
    ConfigOption,
    JsonTextOption,
    QuantizeOption,
    SetOption,
    TensorParallelOption,
)
from manylora.cli.plan_text import BasePlan, capacity_fields, print_capacity, print_sum, remedies, sum_fields
from manylora.cli.remote.output import fail, say

if TYPE_CHECKING:
    from manylora.config.settings import Config
    from manylora.wiring.capacity import MemoryCapacity

MOST_STREAMS = 1_000_000


def plan(
    base: BasesOption = None,
    device_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory of a device, one for each rank, such as 24GiB. Default: what this machine has left for all.",
        ),
    ] = None,
    quantize: QuantizeOption = None,
    context: Annotated[
        int | None, typer.Option(help="Longest sequence, as serve's --max-model-len. Default: the window of the base.")
    ] = None,
    streams: Annotated[
        int | None, typer.Option(help="Sequences of that length that must fit side by side. Default: one.")
    ] = None,
    tensor_parallel: TensorParallelOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    json: JsonTextOption = False,
) -> None:
    """Print what fits into the memory: streams, adapters, and the devices that a base needs. Nothing is loaded.

    The arithmetic is that of `serve`, which divides the memory between several bases. The shape is that of a base's
    config.json, or of the catalog for a base that is not in the cache. Bases that do not fit end the command with exit
    code 1.
    """
    from manylora.cli.settings import configuration
    from manylora.errors import ConfigInvalid, MemoryPlanImpossible
    from manylora.system.byte_sizes import parse_bytes

    _check_range("--streams", streams, 1, MOST_STREAMS)
    given = configuration(
        config,
        set_ or (),
        {
            "model.base": base[0] if base else None,
            "model.more_bases": tuple(base[1:]) if base else None,
            "model.quantize": quantize,
            "model.tensor_parallel": tensor_parallel,
        },
    )
    if given.model.more_bases and streams is not None:
        raise ConfigInvalid("--streams plans a single base: give one --base")
    memory = None if device_memory is None else parse_bytes("--device-memory", device_memory)
    try:
        plans = _plans(given, memory, context, streams)
    except MemoryPlanImpossible as error:  # of several bases
        if json:
            typer.echo(json_text.dumps({"fits": False, "why_not": error.message, "bases": []}, indent=2))
        fail(error.message)
    if json:
        fields = [capacity_fields(each) for each in plans]
        typer.echo(json_text.dumps(fields[0] if len(fields) == 1 else sum_fields(plans, fields), indent=2))
    else:
        for each in plans:
            print_capacity(each)
        if len(plans) > 1:
            print_sum(plans)
    for each in plans:
        if (why := each.capacity.objection) is not None:
            fail(f"{each.facts.name}: {why}{remedies(each.capacity)}")
    if streams is not None and not json:
        typer.echo()
        say(serve_command(given, plans[0].capacity, config, set_ or ()))


def _plans(given: "Config", memory: int | None, context: int | None, streams: int | None) -> list[BasePlan]:
    """Return the plan of each base of the settings.

    Args:   memory  bytes of a device for its ranks; None: what the settings or this machine give the server
    Raises: `MemoryPlanImpossible` if the memory cannot hold several bases; `ConfigInvalid`, `ModelNotFound`
    """
    from manylora.config.folders import cache_dir
    from manylora.errors import ConfigInvalid
    from manylora.models.fetch.catalog import describe
    from manylora.wiring.bases import named_bases, server_bases
    from manylora.wiring.capacity import measure_capacity
    from manylora.wiring.planning import available_bytes, planned_form

    facts = [describe(base, cache_dir(given)) for base in (given.model.base, *given.model.more_bases)]
    for each in facts:
        _check_range("--context", context, 2, each.spec.max_positions, f", the window of {each.name}")
    if context is not None:
        model = dataclasses.replace(given.model, max_model_len_of=())
        given = dataclasses.replace(given, model=model, engine=dataclasses.replace(given.engine, max_model_len=context))
    if memory is None:
        memory = available_bytes(given)
    else:
        ranks = sorted({base.config.model.tensor_parallel for base in named_bases(given)})
        if len(ranks) > 1:
            raise ConfigInvalid(f"--device-memory needs one number of ranks for all bases; they have {ranks}")
        memory *= ranks[0]
    given = dataclasses.replace(given, engine=dataclasses.replace(given.engine, memory_bytes=memory))
    plans = []
    for base, each in zip(server_bases(given, memory), facts, strict=True):
        form = planned_form(base.config, each.spec, each.directory)
        part = base.config.engine.memory_bytes
        room = part // base.config.model.tensor_parallel
        found = measure_capacity(base.config, each.spec, form, available_bytes=room, streams=streams)
        plans.append(BasePlan(facts=each, form=form, capacity=found, memory_bytes=part))
    return plans


def _check_range(name: str, value: int | None, least: int, most: int, why: str = "") -> None:
    """Raise `ConfigInvalid` for a number outside `[least, most]`."""
    from manylora.errors import ConfigInvalid

    if value is not None and not least <= value <= most:
        raise ConfigInvalid(f"{name} must be {least} to {most}{why}. Given: {value}")


def serve_command(given: "Config", found: "MemoryCapacity", file: Path | None, assignments: Sequence[str]) -> str:
    """Return the command that starts a server with the plan, for a shell.

    Args:  given  the settings of `file`, `assignments` and the environment, which have a single base
    """
    from manylora.wiring.bases import OF_BASES

    engine, model = found.config.engine, found.config.model
    words = ["manylora", "serve", "--base", model.base, "--quantize", model.quantize]
    words += ["--max-model-len", str(found.plan.max_model_len)]
    words += ["--tensor-parallel", str(found.plan.ranks)] if found.plan.ranks > 1 else []
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
