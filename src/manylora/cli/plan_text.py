"""The output of `manylora plan`: the plan and the capacity of each base, and the sum of several."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from manylora.cli.remote.output import print_table, say

if TYPE_CHECKING:
    from manylora.kernels.storage_form import StorageForm
    from manylora.models.fetch.catalog import BaseFacts
    from manylora.wiring.capacity import DegreeRoom, MemoryCapacity


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePlan:
    """The plan of one base. `memory_bytes`: of all its ranks."""

    facts: "BaseFacts"
    form: "StorageForm"
    capacity: "MemoryCapacity"
    memory_bytes: int

    @property
    def part_bytes(self) -> dict[str, int]:
        """Bytes of each part of the plan by its name, of all ranks together."""
        plan = self.capacity.plan
        return {name: plan.ranks * num_bytes for name, num_bytes in plan.parts.items()}


def print_capacity(plan: BasePlan) -> None:
    """Print the plan of a base with its room for streams, for adapters, and on several devices."""
    from manylora.system.byte_sizes import byte_text

    for line in _summary(plan):
        say(line)
    found = plan.capacity
    typer.echo("\n".join(found.plan.lines()))
    left = found.plan.available_bytes - sum(found.plan.parts.values())
    typer.echo(f"  {'left' if left >= 0 else 'missing':<15}{_mib(abs(left))}\n")
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


def print_sum(plans: Sequence[BasePlan]) -> None:
    """Print the parts of several bases in MiB, and their sum."""
    names = ("base", "memory", *plans[0].part_bytes)
    rows = [(each.facts.name, each.memory_bytes, *each.part_bytes.values()) for each in plans]
    total = ("sum", *(sum(column) for column in zip(*(row[1:] for row in rows), strict=True)))
    typer.echo()
    print_table(names, [(row[0], *map(_mib, row[1:])) for row in (*rows, total)], numbers=names[1:])


def _summary(plan: BasePlan) -> Iterator[str]:
    """Yield the lines above the plan: the base, the place of its shape, its weights, its ranks."""
    facts, ranks = plan.facts, plan.capacity.plan.ranks
    place = "the catalog" if facts.directory is None else str(facts.directory / "config.json")
    yield f"{facts.name}, shape from {place}"
    if facts.unverified:
        yield f"its config.json, once it is in the cache, counts for {', '.join(facts.unverified)}"
    yield f"{facts.spec.parameters:,} weights, held as {plan.form.weights}"
    if ranks > 1:
        yield f"one of {ranks} ranks that share it:"
    yield ""


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


def capacity_fields(plan: BasePlan) -> dict[str, object]:
    """Return the plan of a base and its capacity as JSON values; sizes are bytes, of one rank."""
    facts, found = plan.facts, plan.capacity
    return {
        "base": facts.name,
        "shape_from": "catalog" if facts.directory is None else str(facts.directory / "config.json"),
        "unverified": list(facts.unverified),
        "parameters": facts.spec.parameters,
        "weights": plan.form.weights,
        "kv_bytes_per_token": found.kv_token_bytes,
        "tensor_parallel": found.plan.ranks,
        "fits": found.objection is None,
        "why_not": found.objection,
        "plan": dataclasses.asdict(found.plan),
        "streams": [dataclasses.asdict(room) for room in found.streams],
        "adapters": [dataclasses.asdict(room) for room in found.adapters],
        "quantize_that_fits": list(found.forms),
        "degree_needed": found.degree_needed,
        "degrees": [dataclasses.asdict(room) for room in found.degrees],
    }


def sum_fields(plans: Sequence[BasePlan], fields: Sequence[dict[str, object]]) -> dict[str, object]:
    """Return the plans of several bases, and the sums of their parts, as JSON values. Sums are of all ranks."""
    parts = {name: sum(each.part_bytes[name] for each in plans) for name in plans[0].part_bytes}
    return {
        "fits": all(each.capacity.objection is None for each in plans),
        "memory_bytes": sum(each.memory_bytes for each in plans),
        "part_bytes": parts,
        "taken_bytes": sum(parts.values()),
        "bases": list(fields),
    }


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):8.1f} MiB"
