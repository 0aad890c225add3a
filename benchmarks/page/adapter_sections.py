"""The parts of docs/benchmarks.md about loads and evictions of adapters, and about hostile adapters."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot

from benchmarks.page.page import source, table

Record = Mapping[str, Any]
COLOURS = {"cold": "#c2410c", "warm": "#64748b", "loads in a step": "#1d4ed8"}
TITLES = {
    "cold": "manylora, 32 adapters never seen before",
    "warm": "manylora, the same adapters resident",
    "loads in a step": "the same server with loads inside its steps",
}


def draw_gaps(record: Record, in_step: Record | None, picture: Path) -> None:
    """Draw one running stream's gaps between tokens, in panels of one scale."""
    found = dict(record["gaps"]) | ({} if in_step is None else {"loads in a step": in_step["gaps"]["cold"]})
    figure, panels = pyplot.subplots(1, len(found), figsize=(10, 3.2), sharey=True)
    for axes, (name, gaps) in zip(panels, found.items(), strict=True):
        title = TITLES[name]
        axes.plot([at for at, _ in gaps], [1e3 * gap for _, gap in gaps], marker=".", lw=0.6, color=COLOURS[name])
        axes.set_title(title, fontsize=8)
        axes.set_xlabel("seconds")
    panels[0].set_yscale("log")
    panels[0].set_ylabel("ms between two tokens")
    figure.suptitle("One stream while 32 adapters are asked for, from a bucket behind a slow link", fontsize=10)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)


def stall_rows(record: Record, in_step: Record | None) -> Sequence[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = [
        ("longest ÷ median gap, adapters cold", *_spread(record["cold"])),
        ("the same, adapters warm", *_spread(record["warm"])),
        ("cold ÷ warm" + (", 95 % interval of the median" if "low" in record else ""), *_spread(record)),
    ]
    if in_step is not None:
        rows.append(("longest ÷ median gap, adapters cold, loads inside the steps", *_spread(in_step["cold"])))
    return rows


def other_rows(records: Mapping[str, Record]) -> Sequence[tuple[object, ...]]:
    """Return the rows of A2 to A6 that have results."""
    figures = {
        "adapters-A2": "A2  first token from disk ÷ hot, prompt of 512 tokens",
        "adapters-A3": "A3  adapters in a GiB of the bank ÷ slots of rank 64 on all seven projections",
        "adapters-A4": "A4  median first token, working set of twice the bank ÷ all resident",
        "adapters-A5": "A5  check and pack of an adapter of 40 MB, 95th percentile, ms",
        "adapters-A6": "A6  largest logit error against transformers + PEFT in float32",
    }
    rows = [(text, *_spread(records[name])) for name, text in figures.items() if name in records]
    tail = records.get("adapters-A4", {}).get("p99")
    return rows if tail is None else [*rows, ("A4  99th percentile of the same ÷ all resident", *_spread(tail))]


def hostile_rows(records: Mapping[str, Record]) -> Sequence[tuple[object, ...]]:
    """Return the rows of R1 to R3 that have results."""
    rows: list[tuple[object, ...]] = []
    if (record := records.get("hostile-R1")) is not None:
        parts = ", ".join(f"{name} {ms:g} ms" for name, ms in record["spread"].items())
        rows.append(("R1  mutated files", record["R1"], record["failures"], f"{record['kinds']} kinds; {parts}"))
    if (record := records.get("hostile-R2")) is not None:
        grown = f"{record['growth_mib']:g} MiB more in the engine, {record['server_growth_mib']:g} MiB in a server of "
        beside = f"{grown}{record['server_count']} names, {record['new_series']} new series in its metrics"
        rows.append(("R2  names that do not exist", record["R2"], record["wrong"], beside))
    if (record := records.get("hostile-R3")) is not None:
        beside = f"{record['replies']['tokens']} generations, {record['loads']} loads, {record['evictions']} evictions"
        rows.append(("R3  operations between generations", record["R3"], record["mismatches"], beside))
    return rows


TIERS = {
    "bucket": "in the bucket, never seen before",
    "disk": "packed on disk",
    "device": "on the device",
    "base": "none: the base",
}


def cold_start(record: Record, pictures: Path) -> str:
    """Return the section on A7: first-token times by the tier of the adapter, less the transfer from the bucket."""
    found = {TIERS[tier]: times for tier, times in record["beyond_transfer_ms"].items()}
    found["the transfer itself, not counted above"] = record["fetch_ms"]
    rows = [
        (text, times["count"], *(_figure(times[key]) for key in ("median", "p99", "max")))
        for text, times in found.items()
    ]
    return "\n".join(
        [
            "## From the first sight of an adapter to its first token",
            "",
            source(record),
            f"One request at a time on an idle server; each adapter has 40 MB (rank {record['rank']}, all seven "
            f"projections), the link {record['link_bytes_per_s'] / 1e6:.0f} MB/s a connection. The time of the bucket "
            "is less the transfer.",
            "",
            table(("the adapter was", "requests", "median, ms", "99th percentile", "longest"), rows),
        ]
    )


def _spread(found: Record) -> tuple[str, str]:
    low, high = ("low", "high") if "low" in found else ("min", "max")
    return _figure(found["median"]), f"{_figure(found[low])}–{_figure(found[high])}"


def _figure(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
