"""`manylora bases`: the bases with names of their own, and those in the cache."""

import dataclasses
import json as json_text
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from manylora.cli.options import JsonTextOption
from manylora.cli.remote.output import print_table, shown

if TYPE_CHECKING:
    from manylora.models.fetch.catalog import BaseFacts

DOUBT = "?"
_NUMBERS = ("context", "bfloat16", "int8", "int4", "KV a token", "LoRA a rank: q,v", "q,k,v,o", "all")
_COLUMNS = ("base", "repository", "licence", "chat format", "price class", *_NUMBERS, "in the cache")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseLine:
    """A base as `--json` prints it. Sizes are bytes; None: the catalog has no entry.

    context              positions of the longest sequence
    sliding_window       positions that a row sees; None: all before it
    weight_bytes         of the whole model by the form that holds it
    kv_bytes_per_token   keys and values of a position in bfloat16
    lora_bytes_per_rank  an adapter of rank 1 in bfloat16 by its target modules
    shape_from           the catalog, or the config.json in the cache
    unverified           fields of the catalog's shape that may differ from the base's own config.json
    """

    name: str
    repository: str
    licence: str | None
    is_gated: bool | None
    chat_format: str | None
    price_class: str | None
    context: int
    sliding_window: int | None
    parameters: int
    weight_bytes: dict[str, int]
    kv_bytes_per_token: int
    lora_bytes_per_rank: dict[str, int]
    in_cache: bool
    shape_from: str
    unverified: tuple[str, ...]


def bases(json: JsonTextOption = False) -> None:
    """List the bases with names of their own, and those in the cache, with their sizes.

    Sizes follow from a base's config.json where the cache has it, else from the catalog. Keys and values, and adapters,
    are in bfloat16.
    """
    from manylora.config.folders import cache_dir
    from manylora.config.settings import load_config
    from manylora.models.fetch.catalog import described_bases

    lines = [base_line(facts) for facts in described_bases(cache_dir(load_config()))]
    if json:
        typer.echo(json_text.dumps([dataclasses.asdict(line) for line in lines], indent=2))
        return
    print_table(_COLUMNS, map(_cells, lines), numbers=_NUMBERS)
    for line in lines:
        if line.unverified:
            fields = ", ".join(line.unverified)
            typer.echo(f"{DOUBT} {line.name}: its config.json, once it is in the cache, counts for {fields}")


def base_line(facts: "BaseFacts") -> BaseLine:
    """Return a base's line, computed from its shape by the functions of the memory plan."""
    from manylora.adapters.base_shape import base_shape
    from manylora.adapters.packing.lora_sizes import TARGETS, lora_bytes
    from manylora.kernels.storage_form import BFLOAT16, FLOAT32, INT4, INT8
    from manylora.models.sizes import weight_bytes
    from manylora.wiring.capacity import kv_token_bytes

    spec, known, dtype = facts.spec, facts.known, BFLOAT16.lora_dtype
    shape = base_shape(spec, facts.name, "")
    return BaseLine(
        name=facts.name,
        repository=facts.name if known is None else known.repository,
        licence=None if known is None else known.licence,
        is_gated=None if known is None else known.is_gated,
        chat_format=None if known is None else known.chat_format,
        price_class=None if known is None else known.price_class.value,
        context=spec.max_positions,
        sliding_window=spec.kv_window,
        parameters=spec.parameters,
        weight_bytes={form.weights: weight_bytes(spec, form) for form in (FLOAT32, BFLOAT16, INT8, INT4)},
        kv_bytes_per_token=kv_token_bytes(spec, BFLOAT16),
        lora_bytes_per_rank={name: lora_bytes(shape, targets, 1, dtype) for name, targets in TARGETS.items()},
        in_cache=facts.directory is not None,
        shape_from="catalog" if facts.directory is None else str(facts.directory / "config.json"),
        unverified=facts.unverified,
    )


def _cells(line: BaseLine) -> tuple[str, ...]:
    from manylora.system.byte_sizes import byte_text

    doubt = DOUBT if "max_position_embeddings" in line.unverified else ""
    return (
        line.name,
        line.repository,
        f"{shown(line.licence)}{', gated' if line.is_gated else ''}",
        shown(line.chat_format),
        shown(line.price_class),
        f"{line.context}{doubt}",
        *(byte_text(line.weight_bytes[form]) for form in ("bfloat16", "int8", "int4")),
        byte_text(line.kv_bytes_per_token),
        *map(byte_text, line.lora_bytes_per_rank.values()),
        shown(line.in_cache),
    )
