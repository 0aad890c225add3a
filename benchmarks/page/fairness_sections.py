"""The part of docs/benchmarks.md about a quiet tenant beside a flood of another tenant's requests."""

from pathlib import Path

from matplotlib import pyplot

from benchmarks.page.page import Record, number, save, source, table

COLOURS = {"flood": "#c2410c", "idle": "#64748b"}
TITLES = {"flood": "beside a tenant that sends 50 times as much", "idle": "alone"}


def fairness(record: Record, pictures: Path) -> str:
    """Return the section on F1 and F2, and draw the quiet tenant's first-token times."""
    draw_firsts(record, pictures / "fairness.png")
    times = [
        (name, found["count"], *(f"{found[key]:.0f}" for key in ("median", "p99", "max")))
        for name, found in record["first_token_ms"].items()
    ]
    cost = record["cost"]
    ratios = [
        ("99th percentile beside the flood ÷ beside equals (F1)", *_interval(record["F1"])),
        ("99th percentile beside the flood ÷ alone (F2)", *_interval(record["to_idle"])),
        ("throughput of 32 tenants ÷ of one", *_interval(cost["throughput"])),
        ("processor time a token, 32 tenants ÷ one", *_interval(cost["processor seconds per token"])),
        ("Jain's index of tenants that all wait", number(record["shares"]["jain"]), ""),
    ]
    return "\n".join(
        [
            "## A quiet tenant beside a flood",
            "",
            source(record),
            f"The quiet tenant sends {record['quiet_per_s']:.2f} requests a second, a 32nd of what the machine "
            "serves. The 99th percentile of fewer than 100 requests is the longest of them.",
            "",
            "![First-token times of a quiet tenant](benchmarks/fairness.png)",
            "",
            table(("first token, ms", "requests", "median", "99th percentile", "longest"), times),
            table(("", "median", "95 % interval"), ratios),
        ]
    )


def draw_firsts(record: Record, picture: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(8, 3.2))
    for name, firsts in record["firsts"].items():
        axes.scatter([at for at, _ in firsts], [ms for _, ms in firsts], s=8, label=TITLES[name], color=COLOURS[name])
    axes.set(xlabel="seconds", ylabel="first token, ms", title="One quiet tenant's requests")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    save(figure, picture)


def _interval(found: Record) -> tuple[str, str]:
    return number(found["median"]), f"{number(found['low'])}–{number(found['high'])}"
