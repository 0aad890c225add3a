"""Simulate a fleet, and print or write what each policy reaches.

    python -m benchmarks.fleet.run sweep --profile card --json benchmarks/results/fleet-sweep-card.json
    python -m benchmarks.fleet.run compare --profile card --sweep benchmarks/results/fleet-sweep-card.json --seeds 0-19
    python -m benchmarks.fleet.run crowd | deaths | size | routing

A long run may be done in pieces, by `--policies` or `--seeds`, into one `--json`.
Nothing here depends on the speed of the machine but `routing`, which measures it.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fleet import scenarios
from benchmarks.fleet.profile import Profile, card, cpu
from benchmarks.fleet.settings import KINDS, OWN, Settings, sweep
from manylora.bench.machine import describe
from manylora.bench.statistics import median_with_interval

Record = dict[str, Any]  # JSON of several forms
PROFILES: dict[str, Callable[[], Profile]] = {"cpu": cpu, "card": card}
DIGITS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted(RUNS))
    parser.add_argument("--profile", choices=sorted(PROFILES), default="card")
    parser.add_argument("--replicas", type=int, default=16)
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--zipf", type=float, default=1.0)
    parser.add_argument("--spread", type=float, default=0.0, help="of the logarithms of lengths")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--load", type=float, default=0.8, help="share of the best baseline's saturated throughput")
    parser.add_argument("--seeds", type=seeds, default=seeds("0-2"))
    parser.add_argument("--sweep", type=Path, help="the result of a sweep, whose best settings are compared")
    parser.add_argument("--own", type=own_setting, help="the fleet's one setting, for another than that of the sweep")
    parser.add_argument("--policies", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    record = describe() | {"profile": options.profile} | RUNS[options.what](options)
    if options.json:
        previous = json.loads(options.json.read_text("utf-8")) if options.json.exists() else {}
        options.json.write_text(json.dumps(merged(previous, record), indent=1) + "\n", encoding="utf-8")


def seeds(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def own_setting(text: str) -> Settings:
    """Return the setting in a text such as `stray=16,copy_share=0.05`. Raises ValueError for one without a number."""
    pairs = (each.partition("=") for each in text.split(","))
    return {name: json.loads(value) for name, _, value in pairs}


def merged(before: Record, after: Record) -> Record:
    """Return a result with the runs of an earlier piece of the same comparison, so that long ones run in pieces."""
    if before.get("commit") != after.get("commit"):
        return after
    for key in ("crowds", "deaths", "sizes"):
        if key in after:
            return after | {key: before.get(key, []) + after[key]}
    if "tried" in after:
        return after | {"tried": before.get("tried", {}) | after["tried"]}
    if "runs" not in before or "runs" not in after:
        return after
    runs = before["runs"] | after["runs"]
    return after | {"runs": runs} | summary(runs)


def world_options(options: argparse.Namespace) -> Record:
    keys = ("replicas", "adapters", "zipf", "spread", "requests")
    return {key: getattr(options, key) for key in keys}


def run_sweep(options: argparse.Namespace) -> Record:
    """Try the settings of each policy: hits and first tokens at a share of the plain capacity, and saturation."""
    profile = PROFILES[options.profile]()
    shape = scenarios.Shape(profile=profile, **world_options(options))
    rate = options.load * shape.plain_capacity()
    tried: Record = {}
    for name in options.policies:
        tried[name] = []
        for settings in sweep(name, profile, shape.mean_bytes()):
            runs = [scenarios.steady(shape, name, settings, rate, seed).figures() for seed in options.seeds]
            found = {key: float(np.median([run[key] for run in runs])) for key in ("hits_device", "first_p99_ms")}
            found["saturated"] = float(
                np.median([scenarios.saturated(shape, name, settings, seed) for seed in options.seeds[:1]])
            )
            tried[name].append({"settings": settings} | {key: round(value, DIGITS) for key, value in found.items()})
            print(name, tried[name][-1], flush=True)
    return {"shape": world_options(options), "rate": rate, "seeds": options.seeds, "tried": tried}


def best(tried: Sequence[Record], key: str) -> Settings:
    """Return the settings with the highest value of a figure; of a time, with the lowest."""
    sign = -1.0 if key.endswith("_ms") else 1.0
    settings: Settings = max(tried, key=lambda each: sign * each[key])["settings"]
    return settings


def run_compare(options: argparse.Namespace) -> Record:
    """Compare the fleet's policy, with one setting, with each baseline at its best setting for each figure."""
    found = json.loads(options.sweep.read_text("utf-8"))
    shape = scenarios.Shape(profile=PROFILES[options.profile](), **world_options(options))
    baselines = {name: tried for name, tried in found["tried"].items() if name != OWN}
    saturated = max(each["saturated"] for tried in baselines.values() for each in tried)
    rate = options.load * saturated
    runs: Record = {}
    for name in options.policies:
        chosen = (
            {"own": options.own or found.get("own", {})}
            if name == OWN
            else {key: best(baselines[name], key) for key in ("hits_device", "first_p99_ms")}
        )
        for seed in options.seeds:
            for key, settings in chosen.items():
                same = next((other for other, its in chosen.items() if its == settings), key)
                case = f"{name}|{key}|{seed}"
                runs[case] = (
                    runs[f"{name}|{same}|{seed}"]
                    if same != key
                    else _rounded(scenarios.steady(shape, name, settings, rate, seed).figures())
                    | {"settings": settings}
                )
                print(case, runs[case], flush=True)
    return {
        "shape": world_options(options),
        "load": options.load,
        "saturated_requests_per_s": saturated,
        "rate": rate,
        "runs": runs,
        **summary(runs),
    }


def summary(runs: Record) -> Record:
    """Return the median and the interval of each figure of each policy, and of the ratios of goals, seed by seed."""
    rows: dict[tuple[str, str], dict[int, Record]] = {}
    for case, figures in runs.items():
        name, key, seed = case.split("|")
        rows.setdefault((name, key), {})[int(seed)] = figures
    policies = {
        f"{name}|{key}": {
            figure: median_with_interval([run[figure] for run in by_seed.values()], DIGITS)
            for figure in next(iter(by_seed.values()))
            if figure != "settings"
        }
        | {"settings": next(iter(by_seed.values()))["settings"], "seeds": len(by_seed)}
        for (name, key), by_seed in rows.items()
    }
    ratios = {}
    own = rows.get((OWN, "own"), {})
    for (name, key), by_seed in rows.items():
        both = sorted(own.keys() & by_seed.keys())
        if name != OWN and both:
            ratios[f"{key}: {OWN} ÷ {name}"] = median_with_interval(
                [own[seed][key] / by_seed[seed][key] for seed in both], DIGITS
            )
    return {"policies": policies, "ratios": ratios}


def run_crowd(options: argparse.Namespace) -> Record:
    shape = scenarios.Shape(profile=PROFILES[options.profile](), **world_options(options))
    found = [
        scenarios.crowd(shape, name, settings_of(options, name), seed)
        for name in options.policies
        for seed in options.seeds
    ]
    return {"shape": world_options(options), "crowds": _shown(found)}


def run_deaths(options: argparse.Namespace) -> Record:
    shape = scenarios.Shape(profile=PROFILES[options.profile](), **world_options(options))
    found = [
        scenarios.deaths(shape, name, settings_of(options, name), seed)
        for name in options.policies
        for seed in options.seeds
    ]
    return {"shape": world_options(options), "deaths": _shown(found)}


def run_size(options: argparse.Namespace) -> Record:
    """Run one size of fleet and catalogue with every policy at its best setting for hits."""
    shape = scenarios.Shape(profile=PROFILES[options.profile](), **world_options(options))
    rate = options.load * shape.plain_capacity()
    found = []
    for name in options.policies:
        for seed in options.seeds:
            begun = time.perf_counter()
            figures = _rounded(scenarios.steady(shape, name, settings_of(options, name), rate, seed).figures())
            found.append({"policy": name, "seed": seed, "wall_s": round(time.perf_counter() - begun, 1)} | figures)
            print(found[-1], flush=True)
    return {"shape": world_options(options), "rate": rate, "sizes": found}


def run_routing(options: argparse.Namespace) -> Record:
    """Measure one ranking and one heartbeat at the size of the fleet."""
    return {"shape": world_options(options), "routing": _shown([scenarios.routing(options.replicas, options.adapters)])}


def settings_of(options: argparse.Namespace, name: str) -> Settings:
    """Return a baseline's best setting of the sweep for hits, and the fleet's one setting."""
    if not options.sweep:
        return {}
    found = json.loads(options.sweep.read_text("utf-8"))
    settings: Settings = (
        (options.own or found.get("own", {})) if name == OWN else best(found["tried"][name], "hits_device")
    )
    return settings


def _rounded(figures: dict[str, float]) -> Record:
    return {key: round(value, DIGITS) for key, value in figures.items()}


def _shown(found: list[Record]) -> list[Record]:
    for each in found:
        print({key: value for key, value in each.items() if key != "series"}, flush=True)
    return found


RUNS: dict[str, Callable[[argparse.Namespace], Record]] = {
    "sweep": run_sweep,
    "compare": run_compare,
    "crowd": run_crowd,
    "deaths": run_deaths,
    "size": run_size,
    "routing": run_routing,
}

if __name__ == "__main__":
    main()
