"""The sections of `docs/benchmarks.md` on long contexts and on a base of seven billion weights."""

from pathlib import Path
from typing import Any

from benchmarks.page.page import Record, number, range_of, source, table


def attention(record: Record, pictures: Path) -> str:
    """Return the section: decoding steps over the read of their keys and values, chunks over the arithmetic's peak."""
    decodes, chunks = [], []
    for case, found in record["results"].items():
        if "over_read" in found:
            ratio = found["over_read"]
            decodes.append((case, found["ms"]["median"], number(ratio["median"]), range_of(ratio)))
        else:
            chunks.append((case, found["ms"]["median"], number(found["gflops"]["median"])))
    lines = [
        "## Attention over long contexts",
        "",
        source(record),
        table(("a layer's step", "ms", "÷ read of its keys and values", "range"), decodes),
    ]
    return "\n".join([*lines, table(("a layer's chunk", "ms", "GFLOP/s"), chunks)] if chunks else lines)


def long_context(record: Record, pictures: Path) -> str:
    """Return the section: a long prompt beside streams, the engine's own work for it, and its logits."""
    host, gaps, logits = record["host"], record["gaps"], record["logits"]
    wait = gaps["longest_wait_steps"]
    rows = [
        ("steps of the prompt", gaps["steps"]),
        ("most steps in a row in which a running stream has no token", wait),
        ("a step, ms", f"{number(gaps['step_ms']['median'])} ({range_of(gaps['step_ms'])})"),
        *_gap_rows(gaps),
        ("blocks of keys and values ÷ those that the positions need, at most", number(gaps["most_blocks_over_needed"])),
        ("engine's own work of a step at 100,000 ÷ at 1,000 positions", number(host["ratio"]["median"])),
        (
            f"logits of {logits['rows']} rows at {logits['positions']:,} positions − transformers', at most",
            f"{logits['largest_difference']:.1e}",
        ),
    ]
    title = f"## A prompt of {record['tokens']:,} tokens beside running streams"
    return "\n".join(
        [title, "", source(record), "A small base with YaRN; the logits are float32's.", "", table(("", ""), rows)]
    )


def _gap_rows(gaps: Record) -> list[tuple[str, str]]:
    """Return the row on the streams' gaps; earlier results do not have it."""
    if "gap_over_alone" not in gaps:
        return []
    ratio = gaps["gap_over_alone"]
    told = f"{number(ratio['max'])} (median {number(ratio['median'])}, 99th percentile {number(ratio['p99'])})"
    return [("longest gap of a running stream ÷ its median step alone", told)]


def seven_billion(record: Record, pictures: Path) -> str:
    """Return the section: start, memory and speed of each server by the form of the weights."""
    rows = [
        (
            form,
            server,
            number(found["start_s"]["median"]),
            number(found["peak_bytes"]["median"] / 1e9),
            number(found["one_token_ms"]["median"]),
            number(found["eight_tokens_s"]["median"]),
            number(found["prompt_tokens_s"]["median"]),
        )
        for form in ("int4", "int8")
        if form in record
        for server, found in _servers(record[form])
    ]
    head = ("weights", "server", "start, s", "peak, GB", "one stream, ms a token", "8 streams, 8 adapters, tokens/s")
    return "\n".join(
        [
            "## A base of seven billion weights beside llama.cpp",
            "",
            source(record),
            "The shape is Llama-2-7b's, the weights are random. Both servers read one GGUF file (Q4_0 for int4, Q8_0 "
            "for int8), and have the eight adapters "
            "loaded in every column. The peak is the largest resident memory until the first token.",
            "",
            table((*head, "prompt of 512, tokens/s"), rows),
        ]
    )


def _servers(form: Record) -> list[tuple[str, Any]]:
    return list(form["servers"].items())


def gaps(record: Record, pictures: Path) -> str:
    """Return the section: the longest step beside a long prompt, and that prompt's speed, by the bound."""
    rows = [
        (
            "none" if float(bound) >= 1000 else bound,
            f"{found['gap']['median']:.1f} ({found['gap']['low']:.1f}–{found['gap']['high']:.1f})",
            f"{found['prompt']['median']:.2f} ({found['prompt']['low']:.2f}–{found['prompt']['high']:.2f})",
            number(found["longest_ms"]),
            number(found["prompt_tokens_per_s"]),
        )
        for bound, found in record["results"].items()
    ]
    head = (
        "engine.max_gap_steps",
        "longest gap ÷ median alone",
        "prompt's speed ÷ unbounded",
        "longest, ms",
        "tokens/s",
    )
    title = f"## {record['streams']} running streams beside a prompt of {record['prompt']:,} tokens"
    return "\n".join([title, "", source(record), table(head, rows)])
