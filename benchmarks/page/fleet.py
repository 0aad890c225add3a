"""Write docs/scale.md and its pictures from the results of the simulated fleet.

    python -m benchmarks.page.fleet [--results benchmarks/results] [--docs docs]

Nothing is simulated here. Needs matplotlib: `pip install -e '.[bench]'`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot

from benchmarks.fleet.affinity import Affinity
from benchmarks.fleet.profile import STORE_BYTES_PER_S, STORE_S
from benchmarks.fleet.settings import KINDS, OWN
from benchmarks.page.fleet_parts import (
    COLOURS,
    PROFILES,
    crowds,
    deaths,
    million,
    save,
    setting,
    sizes,
    source,
    sweeps,
)
from benchmarks.page.fleet_rules import causes, ceiling, nearest, present
from benchmarks.page.page import Record, table
from manylora.cluster.steering import MOST_PLACED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    options = parser.parse_args()
    mpl.rcParams["svg.hashsalt"] = "manylora"  # so that equal results give equal files
    pictures = options.docs / "scale"
    pictures.mkdir(parents=True, exist_ok=True)
    files = sorted(options.results.glob("fleet-*.json"))
    records = {file.stem.removeprefix("fleet-"): json.loads(file.read_text(encoding="utf-8")) for file in files}
    records = present(records)
    parts = [
        INTRODUCTION,
        goals(records),
        causes(records),
        profiles(),
        comparison(records, pictures),
        nearest(records),
        crowds(records, pictures),
    ]
    parts += [deaths(records, pictures), sizes(records), sweeps(records), million(), limits(records)]
    (options.docs / "scale.md").write_text("\n".join(parts), encoding="utf-8")


INTRODUCTION = """# Scale: a simulated fleet

`python -m benchmarks.page.fleet` writes this page from `benchmarks/results/fleet-*.json`. A simulation runs the
functions of `manylora.cluster` that route and place, event by event, beside baselines on the same replicas and caches.
It is no measurement of a fleet: it shows the worth of the decisions, given the times of steps and loads below.

Baselines see the true queues and tiers of all replicas at each choice, which no real router can. The fleet's own policy
sees heartbeats twice a second, at two edges. Each baseline stands at the best setting of its sweep, chosen for each
figure apart; the fleet's own policy has one setting a profile, chosen from its sweep by hand. Load is a share of the
best baseline's saturated throughput. Long comparisons ran in pieces of seeds; the command is the last piece's.
Ratios are taken seed by seed; a figure is the median of the seeds, with the 95 % interval of that median.
"""

LIMITS = """## Limits

- Steps of `cpu`, its check and its pack are measured; the object storage and the disk's rate are assumed. `card` is on
  paper until a card runs this engine: its figures rank policies, and predict no card.
- A past of a hundred requests for each adapter fills the tiers before a run, and the long average of demand knows
  that past. A fleet that starts empty pays every first load from the store, under any policy.
- The load-share baseline is a re-implementation from a description; its inner router is the least busy replica.
- Popularity stands still but for the crowd. Prompts share no prefix. Messages take no time; a death is seen at once.
- With a flat demand (Zipf 0.6) the fleet's policy has {flat_hits:.1f} times the hits of load share, and {flat_p99:.1f}
  times its 99th percentile: running requests for adapters without a place share the quarter of a bank that pins leave
  free.
- Lengths are those of the workload, without spread, unless a table says so.
- Runs of 100 and of 1,000 replicas cover some seconds of their time, and few seeds. Load share by min-cost flow was not
  run there, nor a day's swing anywhere.
- The router of a fleet gives places to the {most_placed} most wanted adapters at most; the simulated one gives them
  to all that have room in three quarters of the banks.
- On paper (Zipf 1, `card`), the banks of 100 replicas hold adapters with {hundred:.3f} of the requests for 100,000
  adapters, and with {million:.3f} of those for a million; the banks of 1,000 replicas with {thousand:.3f} of these.
"""


def limits(records: Record) -> str:
    """Return the page's last part, with the shares that its results and the catalogue give."""
    return LIMITS.format(
        most_placed=MOST_PLACED,
        flat_hits=_own_ratio(records["size-flat"], "hits_device"),
        flat_p99=_own_ratio(records["size-flat"], "first_p99_ms"),
        hundred=ceiling("card", 100_000, 1.0, 100),
        million=ceiling("card", 1_000_000, 1.0, 100),
        thousand=ceiling("card", 1_000_000, 1.0, 1000),
    )


def _own_ratio(record: Record, key: str) -> float:
    """Return the fleet's figure ÷ that of load share, each the upper median of its seeds."""
    found = [
        sorted(each[key] for each in record["sizes"] if each["policy"] == policy)
        for policy in (OWN, "load share + min-cost flow")
    ]
    own, other = (values[len(values) // 2] for values in found)
    return float(own / other)


def goals(records: Record) -> str:
    rows: list[Sequence[object]] = []
    for name in PROFILES:
        rows += _ratios(records, name)
        rows += _crowds_and_deaths(records, name)
    for found in records.get("routing", {}).get("routing", []):
        value, said = found["edge_us"]["p50"], f"{found['replicas']:,} replicas, {found['adapters']:,} adapters"
        alone = f"the ranking alone {found['first_four_us']['p50']}, of all {found['whole_order_us']['p50']}"
        said = f"an edge's choice among {said}, µs"
        rows.append(("H6", "", said, "≤ 100", value, alone, _verdict(value <= 100)))
    head = ("", "profile", "figure", "target", "median", "interval or range", "")
    return "\n".join(["## Against the targets", "", table(head, rows)])


def _ratios(records: Record, name: str) -> list[Sequence[object]]:
    record = records.get(f"compare-{name}", {})
    ratios, shares = record.get("ratios", {}), "load share + min-cost flow"
    times = {
        case.split("|")[0]: found["first_p99_ms"]["median"]
        for case, found in record.get("policies", {}).items()
        if case.endswith("|first_p99_ms")
    }
    best = min(times, key=lambda policy: times[policy], default="")
    wanted = (
        ("H1", "device-tier hits ÷ power of two", f"hits_device: {OWN} ÷ power of two", 1.5, True),
        ("H1", "device-tier hits ÷ load share", f"hits_device: {OWN} ÷ {shares}", 1.1, True),
        ("H2", f"first token p99 ÷ the best baseline's ({best})", f"first_p99_ms: {OWN} ÷ {best}", 0.7, False),
    )
    rows: list[Sequence[object]] = []
    for goal, said, key, target, is_least in wanted:
        if found := ratios.get(key):
            value = found["median"]
            is_met = value >= target if is_least else value <= target
            spread = f"{found['low']:.3f}–{found['high']:.3f}"
            rows.append(
                (goal, name, said, f"{'≥' if is_least else '≤'} {target}", f"{value:.3f}", spread, _verdict(is_met))
            )
    return rows


def _crowds_and_deaths(records: Record, name: str) -> list[Sequence[object]]:
    rows: list[Sequence[object]] = []
    crowd = [each for each in records.get(f"crowd-{name}", {}).get("crowds", []) if each["policy"] == OWN]
    if crowd:
        beats = sorted(each["heartbeats_to_0.9"] for each in crowd)
        said, spread = (
            "heartbeats until a crowd on a cold adapter has 90 % of its throughput",
            f"{beats[0]}–{beats[-1]}",
        )
        is_met = beats[0] > 0 and beats[-1] <= 2
        rows.append(("H3", name, said, "≤ 2", beats[len(beats) // 2], spread, _verdict(is_met)))
    dead = [each for each in records.get(f"deaths-{name}", {}).get("deaths", []) if each["policy"] == OWN]
    if dead:
        lost = sum(each["lost_before_first_token"] for each in dead)
        rows.append(
            ("H4", name, "requests lost before their first token, all seeds", "0", lost, "", _verdict(lost == 0))
        )
        times = sorted(each["recovered_s"] for each in dead)
        is_met = times[0] >= 0 and times[-1] <= 60
        said, spread = "seconds until hits are at 98 % of those before", f"{times[0]:g}–{times[-1]:g}"
        rows.append(("H4", name, said, "≤ 60", f"{times[len(times) // 2]:g}", spread, _verdict(is_met)))
    return rows


def _verdict(is_met: bool) -> str:
    return "reached" if is_met else "**missed**"


def profiles() -> str:
    rows = []
    for name, make in PROFILES.items():
        profile = make()
        load = profile.rates.load_s(16 * profile.rank_bytes)
        step = (1e3 * profile.step_s, 1e3 * profile.decode_row_s, 1e3 * profile.prompt_row_s)
        rows.append(
            (
                f"`{name}`",
                f"{step[0]:.2f} + {step[1]:.3f}·d + {step[2]:.3f}·p",
                profile.rows,
                f"{profile.prompt} + {profile.output}",
                f"{16 * profile.rank_bytes / 1e6:.0f}",
                ", ".join(f"{1e3 * value:.1f}" for value in load[1:]),
                f"{profile.bank_bytes / 1e9:.1f}, {profile.host_bytes / 1e9:.0f}, {profile.disk_bytes / 1e9:.0f}",
            )
        )
    head = (
        "",
        "step, ms",
        "rows",
        "tokens",
        "rank 16, MB",
        "its load from host, disk, store, ms",
        "bank, host, disk, GB",
    )
    store = f"{STORE_BYTES_PER_S / 1e6:.0f} MB/s after {1e3 * STORE_S:.0f} ms"
    return f"""## Replicas

{table(head, rows)}
A step has d decoding and p prompt rows. `cpu` is SmolLM2-135M on two cores, timed by `step.json`, `versus.json`
and `adapters-A5.json`; its device and host are one tier. `card` is a 7B base in bf16 on one H200 on paper: 75 % of
4.2 TB/s and half of 990 TFLOP/s. The store gives {store} in both, beside the measured check and
pack. Each link of a replica carries one load at a time. Adapters have ranks 4, 8, 16 and 64 in equal parts, on all
seven projections.
"""


def comparison(records: Record, pictures: Path) -> str:
    lines = ["## Policies at 80 % load", ""]
    for name in PROFILES:
        record = records.get(f"compare-{name}")
        if not record:
            continue
        _draw_policies(record, name, pictures / f"policies-{name}.svg")
        shape = record["shape"]
        ratios = [
            (key, f"{found['median']:.3f}", f"{found['low']:.3f}–{found['high']:.3f}")
            for key, found in record["ratios"].items()
        ]
        lines += [
            source(record),
            *(
                [source(records[f"nearest-{name}"]), "The second command is the fleet's.", ""]
                if "before" in record
                else []
            ),
            f"{shape['replicas']} replicas, {shape['adapters']:,} adapters, Zipf {shape['zipf']:g}, "
            f"{record['rate']:.1f} requests/s, {shape['requests']:,} requests a seed.",
            "",
            f"![Hits and first tokens by policy, {name}](scale/policies-{name}.svg)",
            "",
            table(COLUMNS, [_row(case, found) for case, found in record["policies"].items()]),
            table(("ratio", "median", "interval"), ratios),
        ]
    return "\n".join(lines)


COLUMNS = (
    *("policy", "setting", "best for", "seeds", "hits: device", "host", "disk", "store"),
    *("first token p50, ms", "p99, ms", "output tokens/s", "GB to the device", "GB from the store", "busy"),
)


OWN_SETTING = {"stray": Affinity.stray, "copy_share": Affinity.copy_share}


def _row(case: str, found: Record) -> Sequence[object]:
    name, key = case.split("|")
    said = {"own": "all", "hits_device": "hits", "first_p99_ms": "p99"}[key]

    def of(figure: str, digits: int = 3) -> str:
        return f"{found[figure]['median']:.{digits}f}"

    hits = [of(f"hits_{tier}") for tier in ("device", "host", "disk", "store")]
    p99 = f"{of('first_p99_ms', 0)} ({found['first_p99_ms']['low']:.0f}–{found['first_p99_ms']['high']:.0f})"
    moved = [of(f"moved_gb_{tier}", 0) for tier in ("device", "disk")]
    speed = (of("first_p50_ms", 0), p99, of("output_tokens_per_s", 0))
    return (
        name,
        setting(found["settings"] or OWN_SETTING),
        said,
        found["seeds"],
        *hits,
        *speed,
        *moved,
        of("busy_share", 2),
    )


def _draw_policies(record: Record, name: str, file: Path) -> None:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2))
    for axes, key in ((left, "hits_device"), (right, "first_p99_ms")):
        for place, policy in enumerate(KINDS):
            found = record["policies"].get(f"{policy}|{'own' if policy == OWN else key}")
            if found:
                value = found[key]
                axes.barh(place, value["median"], color=COLOURS[policy])
                axes.plot([value["low"], value["high"]], [place, place], color="black", lw=1.5)
        axes.set_yticks(range(len(KINDS)), list(KINDS) if axes is left else [""] * len(KINDS))
        axes.invert_yaxis()
    left.set_xlabel("device-tier hits")
    right.set_xlabel("first token p99, ms")
    right.set_xscale("log")
    figure.suptitle(f"{name}, best setting for each figure", fontsize=10)
    save(figure, file)


if __name__ == "__main__":
    main()
