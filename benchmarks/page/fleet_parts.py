"""Parts of docs/scale.md: a crowd, deaths, other sizes, the sweeps, and a million adapters on paper."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot

from benchmarks.fleet.profile import Profile, card, cpu
from benchmarks.fleet.settings import KINDS
from benchmarks.page.page import Record, table

PROFILES = {"card": card, "cpu": cpu}
COLOURS = dict(zip(KINDS, ("#c2410c", "#1d4ed8", "#64748b", "#0f766e", "#7e22ce", "#a8a29e"), strict=True))
HOURLY_USD, STORE_USD_PER_GB_MONTH, HOURS_PER_MONTH = 3.5, 0.023, 720


def crowds(records: Record, pictures: Path) -> str:
    lines = ["## A flash crowd on the coldest adapter", ""]
    for name in PROFILES:
        record = records.get(f"crowd-{name}")
        if not record:
            continue
        picture = pictures / f"crowd-{name}.svg"
        labels = ("seconds from the crowd's begin", "first tokens ÷ mean arrivals")
        _draw_series(record["crowds"], picture, 0.5, labels, 0.9)
        keys = ("heartbeats_to_0.9", "replicas", "first_p99_ms")
        head = ("policy", "heartbeats to 90 %", "replicas that served it", "its first token p99, ms")
        lines += [
            source(record),
            "A quarter of the fleet's capacity comes at once for the least wanted adapter, beside half a load. Windows",
            "are of one heartbeat, 0.5 s, and their first tokens are divided by the mean of the arrivals; −1: never.",
            "",
            f"![First tokens of the crowd, {name}](scale/{picture.name})",
            "",
            table(head, _by_policy(record["crowds"], keys)),
        ]
    return "\n".join(lines)


def deaths(records: Record, pictures: Path) -> str:
    lines = ["## The death of a tenth of the replicas", ""]
    for name in PROFILES:
        record = records.get(f"deaths-{name}")
        if not record:
            continue
        picture = pictures / f"deaths-{name}.svg"
        _draw_series(record["deaths"], picture, 5.0, ("seconds from the deaths", "device-tier hits"), None)
        keys = (
            "killed",
            "lost_before_first_token",
            "sent_again",
            "cut_after_first_token",
            "hits_before",
            "recovered_s",
        )
        head = ("policy", "killed", "lost", "sent again", "cut", "hits before", "recovered after, s")
        lines += [
            source(record),
            "At 70 % load. Requests without a first token are sent again; a stream that began is cut. Recovered:",
            "from then on the mean of the hits is at least 98 % of the mean before; −1: not in 70 s.",
            "",
            f"![Hits after the deaths, {name}](scale/{picture.name})",
            "",
            table(head, _by_policy(record["deaths"], keys)),
        ]
    return "\n".join(lines)


def sizes(records: Record) -> str:
    found = [record for name, record in records.items() if name.startswith("size-")]
    if not found:
        return ""
    rows: list[Sequence[object]] = []
    keys = ("hits_device", "hits_store", "first_p50_ms", "first_p99_ms", "busy_share")
    for record in sorted(found, key=lambda each: (each["shape"]["adapters"], each["shape"]["zipf"])):
        shape = record["shape"]
        of = (
            record["profile"],
            shape["replicas"],
            f"{shape['adapters']:,}",
            f"{shape['zipf']:g}",
            f"{shape['spread']:g}",
            f"{shape['requests']:,} in {shape['requests'] / record['rate']:.0f} s",
        )
        seeds = Counter(each["policy"] for each in record["sizes"])
        rows += [(*of, policy, seeds[str(policy)], *row) for policy, *row in _by_policy(record["sizes"], keys)]
    head = (
        *("profile", "replicas", "adapters", "Zipf", "spread of lengths", "requests of a seed", "policy", "seeds"),
        *("hits: device", "store", "first token p50, ms", "p99, ms", "busy"),
    )
    commands = [source(record) for record in found]
    said = (
        "At 80 % of the capacity of replicas that have every adapter. Each policy has one setting: the fleet's own,\n"
        "or a baseline's best of the sweep for hits. A quarter of the requests is a warm-up that does not count.\n"
    )
    return "\n".join(["## Other fleets and catalogues", "", said, *commands, table(head, rows)])


def sweeps(records: Record) -> str:
    lines = ["## The sweeps", ""]
    for name in PROFILES:
        record = records.get(f"sweep-{name}")
        if not record:
            continue
        rows = [
            (
                policy,
                setting(each["settings"]),
                f"{each['hits_device']:.3f}",
                f"{each['first_p99_ms']:.0f}",
                f"{each['saturated']:.1f}",
            )
            for policy, tried in record["tried"].items()
            for each in tried
        ]
        head = ("policy", "setting", "device-tier hits", "first token p99, ms", "saturated, requests/s")
        lines += [source(record), f"`{name}` at {record['rate']:.1f} requests/s.", "", table(head, rows)]
    return "\n".join(lines)


def million() -> str:
    """Return the cost of a million adapters on replicas of the profile `card`."""
    profile: Profile = card()
    mean_gb = 23 * profile.rank_bytes / 1e9
    stored_gb = 1e6 * mean_gb
    tokens_per_s = 0.8 * (profile.prompt + profile.output) / profile.request_s
    machine_usd = HOURLY_USD / (tokens_per_s * 3600 / 1e6)
    month_usd = stored_gb * STORE_USD_PER_GB_MONTH
    rows = []
    for replicas in (16, 100, 1000):
        tokens = replicas * tokens_per_s * 3600 * HOURS_PER_MONTH / 1e6
        on_devices = replicas * profile.bank_bytes / 1e9 / mean_gb
        rows.append(
            (
                f"{replicas:,}",
                f"{tokens / 1e6:,.2f}",
                f"{on_devices:,.0f}",
                f"{2 * stored_gb / replicas / 1e3:,.1f}",
                f"${machine_usd:.3f}",
                f"${month_usd / tokens:.4f}",
                f"${machine_usd + month_usd / tokens:.3f}",
            )
        )
    head = (
        *("replicas", "10¹² tokens a month", "mean adapters on devices", "disk of each for two homes, TB"),
        *("machines, per 10⁶ tokens", "storage", "together"),
    )
    return "\n".join(
        [
            "## A million adapters on paper",
            "",
            f"A mean adapter has {mean_gb * 1e3:.0f} MB: {stored_gb / 1e3:,.0f} TB in the store, "
            f"${month_usd:,.0f} a month at an assumed ${STORE_USD_PER_GB_MONTH} a GB. A replica of `card` at 80 % of",
            f"its capacity computes {tokens_per_s:,.0f} tokens/s, prompts included, at an assumed "
            f"${HOURLY_USD:.2f} an hour.",
            "",
            table(head, rows),
            "The number of replicas follows the tokens, not the adapters: a cold adapter costs its bytes in the store",
            "and on two disks. With 16 replicas the disks are the limit: homes hold a part, the store the rest.",
            "",
        ]
    )


def setting(settings: Record) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in settings.items()) or "–"


def source(record: Record) -> str:
    return f"`{record['command']}`, commit `{record['commit']}`.\n"


def save(figure: Any, file: Path) -> None:
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def _by_policy(runs: Sequence[Record], keys: Sequence[str]) -> list[Sequence[object]]:
    """Return a row for each policy: the median and the range of each figure over the seeds."""
    policies = dict.fromkeys(each["policy"] for each in runs)
    return [
        (policy, *(_range([round(each[key], 3) for each in runs if each["policy"] == policy]) for key in keys))
        for policy in policies
    ]


def _draw_series(
    runs: Sequence[Record], file: Path, width_s: float, labels: tuple[str, str], goal: float | None
) -> None:
    """Draw the median series of each policy."""
    figure, axes = pyplot.subplots(figsize=(7, 3.2))
    for policy in dict.fromkeys(each["policy"] for each in runs):
        series = [each["series"] for each in runs if each["policy"] == policy]
        middle = [sorted(values)[len(values) // 2] for values in zip(*series, strict=True)]
        axes.plot([width_s * (n + 1) for n in range(len(middle))], middle, label=policy, color=COLOURS[policy])
    if goal is not None:
        axes.axhline(goal, ls=":", lw=1, color="black")
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.legend(frameon=False, fontsize=7)
    save(figure, file)


def _range(values: Sequence[float]) -> str:
    ordered = sorted(values)
    middle = ordered[len(ordered) // 2]
    return f"{middle:g}" if ordered[0] == ordered[-1] else f"{middle:g} ({ordered[0]:g}–{ordered[-1]:g})"
