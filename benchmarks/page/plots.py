"""Draw the figures of docs/benchmarks from the result files, and write the page around them.

    python -m benchmarks.page.plots [--results benchmarks/results] [--docs docs]

Nothing is measured here: each picture and table names the result file, commit and command it comes from.
Needs matplotlib: `pip install -e '.[bench]'`.
"""

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib import pyplot

from benchmarks.page.adapter_sections import cold_start, draw_gaps, hostile_rows, other_rows, stall_rows
from benchmarks.page.fairness_sections import fairness
from benchmarks.page.large_model_sections import attention, gaps, long_context, seven_billion
from benchmarks.page.page import Record, number, range_of, save, source, table
from benchmarks.page.peer_sections import load, peers
from benchmarks.page.product_sections import experts, int4_quality, products, quality_table, quantised
from benchmarks.page.soak_section import soak
from benchmarks.page.structured_sections import accuracy, batches, masks, overlap, schemas
from benchmarks.page.targets import rows as target_rows
from manylora.bench.servers import Manylora
from manylora.bench.workloads import WORKLOADS

# The default base: 30 layers, hidden 576, queries 576, keys and values 192, intermediate 1536, vocabulary 49152.
LAYER_WEIGHTS = 30 * (576 * (576 + 192 + 192) + 576 * 576 + 3 * 576 * 1536)
HEAD_WEIGHTS = 576 * 49152
KERNELS = ("linear", "logits", "attend", "lora", "add_norm", "silu", "rotate", "draw", "norm", "embed", "take")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    options = parser.parse_args()
    pictures = options.docs / "benchmarks"
    pictures.mkdir(parents=True, exist_ok=True)
    records = {
        file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(options.results.glob("*.json"))
    }
    parts = [INTRODUCTION, targets(records), limits(records)]
    for name, section in SECTIONS:
        if name in records:
            parts.append(section(records[name], pictures))
        else:
            print(f"{name}.json is missing: its section is left out")
    parts += [adapters(records, pictures), hostile(records)]
    (options.docs / "benchmarks.md").write_text("\n".join(parts), encoding="utf-8")


INTRODUCTION = """# Benchmarks

`make bench-docs` writes this page from the files in `benchmarks/results/`; every section names the command that made
its file, by its present path. The machines are shared and noisy, so the significant figures are ratios of one run;
each median has its range beside it. Prompts are distinct random tokens, replies have a fixed length, and clients and
server share the processors.
"""

MACHINES = """A result is of one kind of machine: Zen 4 and Zen 5 have AVX-512 and its bf16 products, AVX2 is a
processor without them. A target says "not measured" where no committed result has its figure.
"""


def targets(records: Mapping[str, Record]) -> str:
    rows = [
        (
            row.target.id,
            row.target.figure,
            row.target.wanted,
            "" if row.spread is None else f"{number(row.spread[0])}{row.target.unit}",
            "" if row.spread is None or row.spread[1] == row.spread[2] else _range(row.spread),
            row.machine,
            row.verdict,
        )
        for row in target_rows(records)
    ]
    head = ("", "figure", "target", "median", "range", "machine", "")
    return "\n".join(["## Against the targets", "", MACHINES, table(head, rows)])


def _range(spread: tuple[float, float, float]) -> str:
    return f"{number(spread[1])}–{number(spread[2])}"


def limits(records: Mapping[str, Record]) -> str:
    """Return the section on the processor's ceilings, and on the loads that miss their target."""
    lines = ["## Limits of the figures", ""]
    if "kernels" in records:
        ceilings = records["kernels"]
        fma, read = ceilings["fma_flops_s"], ceilings["read_bytes_s"]
        lines += [
            source(ceilings["machine"]),
            f"The two ceilings of this machine, measured beside the kernels: {fma / 1e9:.0f} GFLOP/s of float32 "
            f"multiply-adds in registers, {read / 1e9:.0f} GB/s read from memory.",
            "",
        ]
        # The ceiling is of float32: it bounds no figure of another machine, nor one whose products are of bf16 pairs.
        processor = ceilings["machine"]["processor"]
        if "versus" in records and records["versus"]["processor"] == processor and "bf16" not in processor:
            lines += _triage_limit(records["versus"], fma)
    if "int8" in records:
        rows = records["int8"]["linear_layers"]
        said = ", ".join(f"{row['bf16_over_int8']['median']:.2f} at {row['rows']}" for row in rows) + " rows"
        lines += [
            "- **int8 (S9).** The targets hold for the products alone at most: bf16 ÷ int8 of all linear layers of the "
            f"default base is {said}, on a processor whose bf16 products are fast as well. Attention, sampling, the "
            "edge and the clients take the same time beside both.",
        ]
    if {"catalogue", "catalogue-packed"} <= records.keys():
        first, later = (
            records[name]["throughput of 1000 ÷ 32"]["median"] for name in ("catalogue", "catalogue-packed")
        )
        few = records["catalogue-packed"]["tokens_per_s"]["32"]
        lines += [
            f"- **A catalogue (S6).** With first loads {first:.2f} of 32 adapters, without them {later:.2f}: the "
            "difference is check and pack, which share two processors with the engine. The side of 32 adapters itself "
            f"ranged from {few['min']:.0f} to {few['max']:.0f} tokens/s over the rounds.",
        ]
    if "host-work" in records:
        lines += _versions(records)
    return "\n".join([*lines, ""])


def _versions(records: Mapping[str, Record]) -> list[str]:
    """Return the figures of this version beside those of an earlier one, which ran in turn with it."""
    record = records["host-work"]
    earlier = record["commits"]["against"]
    host = {(case["version"], case["rows"]): case["median_ms"] for case in record["results"] if not case["adapters"]}
    lines = [
        f"- **Host work (S8).** {host['now', 1]:.2f} ms for one row and {host['now', 32]:.2f} ms for 32. Version "
        f"{earlier} takes {host['against', 1]:.2f} and {host['against', 32]:.2f} ms. The figure covers planning, the "
        "batch's arrays and the commits.",
    ]
    if "version-triage" in records:
        ratio = records["version-triage"]["a_over_b"]["throughput"]
        other = re.search(r"--against \S*?(\w+) ", records["version-triage"]["command"])
        version = other[1] if other else earlier
        lines += [
            f"- **Triage on the base ÷ the same in version {version}.** {ratio['median']:.3f} ({ratio['low']:.3f}–"
            f"{ratio['high']:.3f}, 95 %) over {records['version-triage']['pairs']} pairs.",
        ]
    return lines


def _triage_limit(versus: Record, fma: float) -> list[str]:
    """Return the share of the multiply-add peak that triage uses, prompts included, and its largest ratio to a peer."""
    cases = versus["cases"]
    work, ours = WORKLOADS["triage"], Manylora.name
    flops = 2 * (LAYER_WEIGHTS * (work.prompt + work.output) + HEAD_WEIGHTS * work.output)
    base = cases["triage, base"][ours]["output_tokens_per_s"]["median"]
    used = base / work.output * flops
    mixed = cases["triage, 32 adapters"]
    peer = max(sides["output_tokens_per_s"]["median"] for name, sides in mixed.items() if name != ours)
    own = mixed[ours]["output_tokens_per_s"]["median"]
    return [
        f"- **Mixed adapters (S3).** Triage is mostly prompts, and prompts are multiply-adds: on the base it does "
        f"{used / 1e9:.0f} GFLOP/s in the linear layers and logits, {used / fma:.0%} of the peak. With 32 adapters it "
        f"reaches {own / base:.0%} of that; the best peer reaches {peer / base:.0%}. At the peak itself, without any "
        f"cost of adapters, the ratio would be {base / (used / fma) / peer:.1f}.",
    ]


def profile(record: Record, pictures: Path) -> str:
    steps = record["results"]
    figure, axes = pyplot.subplots(figsize=(8, 4))
    left = [0.0] * len(steps)
    kinds = [*KERNELS, "host"]
    for kind in kinds:
        shares = []
        for step in steps:
            whole = sum(step["kernels_ms"].values()) + step["host_ms"]
            shares.append(100 * (step["host_ms"] if kind == "host" else step["kernels_ms"].get(kind, 0.0)) / whole)
        axes.barh([step["name"] for step in steps], shares, left=left, label=kind)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="% of the step", title="A step's time by kernel")
    axes.legend(ncols=1, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, pictures / "profile.png")
    rows = [
        (
            step["name"],
            f"{step['step_ms']:.2f}",
            f"{step['step_p10_ms']:.1f}–{step['step_p90_ms']:.1f}",
            f"{step['host_ms']:.2f}",
            *(f"{step['kernels_ms'].get(kind, 0.0):.2f}" for kind in KERNELS[:6]),
        )
        for step in steps
    ]
    return "\n".join(
        [
            "## A step's time by kernel",
            "",
            source(record),
            "Milliseconds: the whole step (median, middle 80 %), host work outside kernels, the largest kernels.",
            "",
            "![Step time by kernel](benchmarks/profile.png)",
            "",
            table(("step", "whole", "range", "host", *KERNELS[:6]), rows),
        ]
    )


def floor(record: Record, pictures: Path) -> str:
    rows = [
        (
            row["rows"],
            f"{row['step']['median_ms']:.2f}",
            row["floor"],
            f"{row['ratio']['median']:.2f}",
            f"{row['ratio']['min']:.2f}–{row['ratio']['max']:.2f}",
            f"{row['read_gb_per_s']:.1f}",
        )
        for row in record["results"]
    ]
    head = ("rows", "step, median ms", "floor", "step ÷ floor", "range", "read, GB/s")
    return "\n".join(["## A decode step beside its floor", "", source(record), table(head, rows)])


def neighbour(record: Record, pictures: Path) -> str:
    """Return the section: a decode step while another process keeps one processor busy, and alone."""
    ratio, times = record["beside_over_alone"], record["step_ms"]
    rows = [
        (f"{times['alone']:.2f}", f"{times['beside']:.2f}", number(ratio["median"]), range_of(ratio, "low", "high"))
    ]
    title = (
        f"## A decode step of {record['rows']} rows beside a busy process on one of {record['processors']} processors"
    )
    return "\n".join([title, "", source(record), table(("alone, ms", "beside, ms", "÷", "95 % interval"), rows)])


def tax(record: Record, pictures: Path) -> str:
    rows = [
        (side, f"{r['tokens_per_s_median']:.1f}", f"{r['ratio_median']:.3f}", range_of(r, "ratio_min", "ratio_max"))
        for side, r in record["results"].items()
    ]
    head = ("side", "tokens/s", "÷ base in the same round", "range")
    title = f"## The cost of adapters, {record['workload']}, ranks {', '.join(map(str, record['ranks']))}"
    return "\n".join([title, "", source(record), table(head, rows)])


def pair(title: str) -> Callable[[Record, Path], str]:
    def section(record: Record, pictures: Path) -> str:
        found = record["a_over_b"]
        rows = [(name, number(r["median"]), range_of(r, "low", "high")) for name, r in found.items()]
        head = (f"A ÷ B over {record['pairs']} pairs, {record['workload']}", "median", "95 % interval")
        return "\n".join([f"## {title}", "", source(record), table(head, rows)])

    return section


def catalogue(record: Record, pictures: Path) -> str:
    large = record["catalogue"]
    rows = [
        (name, f"{r['median']:.3f}", f"{r['min']:.3f}–{r['max']:.3f}")
        for name, r in record.items()
        if isinstance(r, dict) and "÷" in name
    ]
    before = "all on disk before" if record.get("packed") else "first loads included"
    title = f"## A catalogue of {large} adapters with room for {record['room']}, {before}"
    return "\n".join([title, "", source(record), table(("ratio", "median", "range"), rows)])


def footprint(record: Record, pictures: Path) -> str:
    starts = record["start_to_first_token_s"]
    rows = [
        ("process start to first token, median", f"{starts[len(starts) // 2]} s ({starts[0]}–{starts[-1]})"),
        ("memory after the start", f"{record['memory_after_start_bytes'] / 1e9:.2f} GB"),
        (
            f"memory under 32 streams, {record['adapters']} adapters resident",
            f"{record['memory_under_load_bytes'] / 1e9:.2f} GB",
        ),
    ]
    return "\n".join(["## Start and memory", "", source(record), table(("", ""), rows)])


def int8(record: Record, pictures: Path) -> str:
    rows = [
        (
            kind,
            row["rows"],
            f"{row['bf16']['median_ms']:.2f}",
            f"{row['int8']['median_ms']:.2f}",
            f"{row['bf16_over_int8']['median']:.2f}",
        )
        for kind, key in (("linear layers", "linear_layers"), ("decode step", "decode_step"))
        for row in record[key]
    ]
    return "\n".join(
        [
            "## int8 beside bf16",
            "",
            source(record),
            table(("", "rows", "bf16, ms", "int8, ms", "bf16 ÷ int8"), rows),
            quality_table(record, "int8"),
        ]
    )


def speculation(record: Record, pictures: Path) -> str:
    rows = [
        (
            row["workload"],
            row["streams"],
            f"{row['tokens_per_step']:.2f}",
            f"{row['ratio']['median']:.2f}",
            f"{row['ratio']['min']:.2f}–{row['ratio']['max']:.2f}",
        )
        for row in record["results"]
    ]
    head = ("workload", "streams", "tokens a step", "time per token, with ÷ without", "range")
    return "\n".join(["## Draft tokens", "", source(record), table(head, rows)])


def agreement(record: Record, pictures: Path) -> str:
    margins = sorted(one["margin"] for one in record["divergences"])
    count = f"{record['same']} of {record['prompts']}"
    said = f"{count} greedy replies of {record['tokens']} tokens equal the float32 reference's"
    if margins:
        said += "; where the others differ, the reference preferred its own token by "
        said += f"{margins[0]:.4f} to {margins[-1]:.4f} nats"
    return "\n".join(["## Agreement with the reference", "", source(record), f"{said}.", ""])


def scheduler(record: Record, pictures: Path) -> str:
    rows = [
        (name, f"{r['plan']['median_ms']:.3f}", f"{r['plan']['p90_ms']:.3f}", f"{r['commits']['median_ms']:.3f}")
        for name, r in record["results"].items()
    ]
    head = ("load", "plan, median ms", "90th percentile", "commits, median ms")
    return "\n".join(["## Planning a step", "", source(record), table(head, rows)])


def adapters(records: Mapping[str, Record], pictures: Path) -> str:
    lines = ["## Loads and evictions of adapters", ""]
    if "adapters-A1" in records:
        record = records["adapters-A1"]
        in_step = records.get("adapters-A1-in-step")
        draw_gaps(record, in_step, pictures / "stall.png")
        lines += [
            source(record),
            "16 streams on the base while 32 requests name adapters of rank 16 on all seven projections.",
            "",
            "![One stream's gaps between tokens](benchmarks/stall.png)",
            "",
            table(("A1", "median", "range"), stall_rows(record, in_step)),
        ]
    lines += [source(records[name]) for name in sorted(records) if name.startswith("adapters-A") and name[-1] != "1"]
    return "\n".join([*lines, table(("figure", "median", "range"), other_rows(records))])


def hostile(records: Mapping[str, Record]) -> str:
    lines = ["## Hostile files, names and replacements", ""]
    lines += [source(records[name]) for name in sorted(records) if name.startswith("hostile-")]
    return "\n".join([*lines, table(("figure", "tried", "wrong", "measured beside it"), hostile_rows(records))])


SECTIONS: Sequence[tuple[str, Callable[[Record, Path], str]]] = (
    ("versus", peers),
    ("streams", load),
    ("lora-tax-chat", tax),
    ("lora-tax-long", tax),
    ("lora-tax-triage-mixed", tax),
    ("catalogue", catalogue),
    ("catalogue-packed", catalogue),
    ("bypass", pair("The cost of idle adapters for the base")),
    ("two-bases", pair("One base beside an idle one ÷ alone")),
    ("step", floor),
    ("neighbour", neighbour),
    ("profile", profile),
    ("scheduler", scheduler),
    ("int8", int8),
    ("int4", int4_quality),
    ("int8-chat", pair("int8 ÷ bf16 over HTTP: chat")),
    ("int8-chat-avx2", pair("int8 ÷ bf16 over HTTP: chat, AVX2 alone")),
    ("int8-triage", pair("int8 ÷ bf16 over HTTP: triage")),
    ("quantised-products", quantised),
    ("seven-b", seven_billion),
    ("attention", attention),
    ("long-context", long_context),
    ("gaps", gaps),
    ("spin", pair("Threads that sleep at once ÷ threads that wait awake for 50 µs")),
    ("threads", pair("One thread ÷ two")),
    ("pinned", pair("The edge on one processor ÷ the edge on either")),
    ("products", products),
    ("experts", experts),
    ("speculation", speculation),
    ("structured-masks", masks),
    ("structured-overlap", overlap),
    ("structured-throughput", schemas),
    ("structured-accuracy", accuracy),
    ("batches", batches),
    ("agreement", agreement),
    ("footprint", footprint),
    ("cold-start", cold_start),
    ("fairness", fairness),
    ("metering", pair("The cost of metering")),
    ("metering-triage", pair("The cost of metering beside short replies")),
    ("soak", soak),
    ("ray-handle", pair("One engine on Ray Serve by streamed calls ÷ without Ray")),
    ("ray-handle-short", pair("The same with gRPC and without Serve's further threads ÷ without Ray")),
    ("ray-direct", pair("One engine on Ray Serve by its own socket ÷ without Ray")),
)


if __name__ == "__main__":
    main()
