"""The parts of docs/benchmarks.md that compare manylora with other servers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import pyplot

from benchmarks.page.page import Record, number, or_dash, range_of, save, source, table

COLOURS = {
    "manylora": "#c2410c",
    "manylora plain": "#fdba74",
    "llama.cpp": "#1d4ed8",
    "vLLM": "#64748b",
    "vLLM float32": "#94a3b8",
}


def peers(record: Record, pictures: Path) -> str:
    cases = record["cases"]
    counts = {"triage, base": 0, "triage, 1 adapters": 1, "triage, 8 adapters": 8, "triage, 32 adapters": 32}
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name in _servers(cases):
        points = [
            (counts[label], sides[name]["output_tokens_per_s"])
            for label, sides in cases.items()
            if label in counts and name in sides
        ]
        if not points:
            continue
        xs, spreads = zip(*points, strict=True)
        middle = [spread["median"] for spread in spreads]
        places = range(len(xs))
        errors = [[s["median"] - s["min"] for s in spreads], [s["max"] - s["median"] for s in spreads]]
        axes.errorbar(places, middle, yerr=errors, marker="o", capsize=3, label=name, color=COLOURS[name])
        axes.set_xticks(places, ["base" if x == 0 else str(x) for x in xs])
    axes.set(xlabel="adapters drawn on (ranks 4, 8, 16 and 64)", ylabel="output tokens/s", title="Throughput, triage")
    axes.set_ylim(bottom=0)
    axes.legend()
    save(figure, pictures / "adapters.png")
    rows = [
        (
            label,
            name,
            f"{s['output_tokens_per_s']['median']:.1f}",
            f"{s['output_tokens_per_s']['min']:.1f}–{s['output_tokens_per_s']['max']:.1f}",
            or_dash(s["first_token_median_ms"]["median"], "{:.0f}"),
            or_dash(s["token_time_median_ms"]["median"], "{:.1f}"),
        )
        for label, sides in cases.items()
        for name, s in sides.items()
    ]
    ratios = [(name, number(r["median"]), range_of(r)) for name, r in record["ratios"].items()]
    starts = [(name, ", ".join(map(str, times))) for name, times in record["start_to_first_token_s"].items()]
    return "\n".join(
        [
            "## Beside vLLM and llama.cpp",
            "",
            source(record),
            "Each server ran alone, in turn; `manylora plain` drafts no tokens. For a peer whose 32 streams had no",
            "first token within a minute, the row has the tokens that arrived by then; a dash means none.",
            "",
            "![Throughput against the number of adapters](benchmarks/adapters.png)",
            "",
            table(("load", "server", "tokens/s", "range", "first token, ms", "ms per token"), rows),
            table(("ratio", "median", "range"), ratios),
            table(("server", "process start to first token, s"), starts),
        ]
    )


def load(record: Record, pictures: Path) -> str:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 4))
    rows = []
    for name, points in record["results"].items():
        streams = [point["streams"] for point in points]
        left.plot(streams, [p["first_token_median_ms"] for p in points], marker="o", label=name, color=COLOURS[name])
        right.plot(streams, [p["output_tokens_per_s"] for p in points], marker="o", label=name, color=COLOURS[name])
        rows += [
            (
                name,
                point["streams"],
                f"{point['output_tokens_per_s']:.1f}",
                or_dash(point["first_token_median_ms"], "{:.0f}"),
                or_dash(point["token_time_median_ms"], "{:.1f}"),
            )
            for point in points
        ]
    for axes, title in ((left, "First token, median ms"), (right, "Output tokens/s")):
        axes.set_xscale("log", base=2)
        axes.set(xlabel="streams of chat", title=title)
        axes.set_ylim(bottom=0)
        axes.legend()
    save(figure, pictures / "load.png")
    return "\n".join(
        [
            "## Latency against load",
            "",
            source(record),
            "![First token and throughput against the number of streams](benchmarks/load.png)",
            "",
            table(("server", "streams", "tokens/s", "first token, ms", "ms per token"), rows),
        ]
    )


def _servers(cases: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for sides in cases.values() for name in sides))
