"""The targets of the project, and the figures of the result files that reach or miss them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Records = Mapping[str, Mapping[str, Any]]
"""Result files by name, without `.json`."""
Spread = tuple[float, float, float]
"""Median, least and most; the three are equal where a figure has no spread."""


@dataclass(frozen=True)
class Target:
    """One figure: `find` reads it from the results, and raises KeyError or ValueError where they do not have it."""

    id: str
    figure: str
    bound: float
    find: Callable[[Records], Spread]
    is_least: bool = True
    unit: str = ""

    @property
    def wanted(self) -> str:
        return f"{'≥' if self.is_least else '≤'} {self.bound:g}{self.unit}"

    def is_met(self, median: float) -> bool:
        return median >= self.bound if self.is_least else median <= self.bound


@dataclass(frozen=True)
class Row:
    """A target with its figures and the machine that they are of; without both where no result has the figure."""

    target: Target
    spread: Spread | None = None
    machine: str = ""

    @property
    def verdict(self) -> str:
        if self.spread is None:
            return "not measured"
        return "reached" if self.target.is_met(self.spread[0]) else "**missed**"


class _Read(Mapping[str, Mapping[str, Any]]):
    """The result files, with the names of those that were read."""

    def __init__(self, records: Records) -> None:
        self._records, self.names = records, dict[str, None]()

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        self.names[name] = None
        return self._records[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)


def machine_of(processor: str) -> str:
    """Return the short name of the kind of machine of a record's processor."""
    name, _, kind = processor.partition(", ")[0].partition(" family ")
    flags = processor.partition(", ")[2].split()
    if "avx2" in flags and "avx512f" not in flags:
        return "AVX2"
    if name.startswith("AMD") and "avx512_bf16" in flags:
        return {"25": "Zen 4", "26": "Zen 5"}.get(kind.partition(" ")[0], name)
    return name


def counted(figure: str, wrong: str) -> Callable[[Records], Spread]:
    """Return a finder of the number of tries, which is 0 if one of them failed."""

    def find(records: Records) -> Spread:
        found = records[f"hostile-{figure}"]
        count = 0.0 if found[wrong] else float(found[figure])
        return count, count, count

    return find


def kills(file: str) -> Callable[[Records], Spread]:
    """Return a finder of the difference of the totals plus the requests with unequal counts, so that none is hidden."""

    def find(records: Records) -> Spread:
        found = records[file]
        if sum(found["kills"].values()) < 100:
            raise ValueError("too few kills for the target")
        wrong = float(abs(found["M1"]) + found["unequal"])
        return wrong, wrong, wrong

    return find


def best_peer(prefix: str, *, is_lowest: bool = True) -> Callable[[Records], Spread]:
    """Return a finder of the ratio to the peer with the best result."""

    def find(records: Records) -> Spread:
        found = [spread for name, spread in records["versus"]["ratios"].items() if name.startswith(prefix)]
        best = (min if is_lowest else max)(found, key=lambda spread: spread["median"])
        return best["median"], best.get("min", best["median"]), best.get("max", best["median"])

    return find


def spread_at(file: str, *path: str | int) -> Callable[[Records], Spread]:
    """Return a finder of the median with its 95 % interval, where the result has one, or with its extremes."""

    def find(records: Records) -> Spread:
        found: Any = records[file]
        for key in path:
            found = found[key]
        low, high = ("low", "high") if "low" in found else ("min", "max")
        return found["median"], found[low], found[high]

    return find


def upper_end(file: str) -> Callable[[Records], Spread]:
    """Return a finder of the upper end of the median's 95 % interval."""

    def find(records: Records) -> Spread:
        found = records[file]["high"]
        return found, found, found

    return find


def in_seconds(file: str, *path: str) -> Callable[[Records], Spread]:
    """Return a finder of one number of milliseconds, in seconds."""

    def find(records: Records) -> Spread:
        found: Any = records[file]
        for key in path:
            found = found[key]
        return found / 1e3, found / 1e3, found / 1e3

    return find


def tax(side: str, file: str = "lora-tax-chat") -> Callable[[Records], Spread]:
    """Return a finder of the throughput with adapters ÷ that of the base in the same round."""

    def find(records: Records) -> Spread:
        found = records[file]["results"][side]
        return found["ratio_median"], found["ratio_min"], found["ratio_max"]

    return find


def host(adapters: int) -> Callable[[Records], Spread]:
    """Return a finder of the host milliseconds of a step of 32 rows; its range is the middle 80 % of the steps."""

    def find(records: Records) -> Spread:
        (found,) = (
            case
            for case in records["host-work"]["results"]
            if (case["version"], case["rows"], case["adapters"]) == ("now", 32, adapters)
        )
        return found["median_ms"], found["p10_ms"], found["p90_ms"]

    return find


def over_read(case: str) -> Callable[[Records], Spread]:
    return spread_at("attention", "results", case, "over_read")


def mask_time(records: Records) -> Spread:
    found = records["structured-masks"]["microseconds"]["both"]["p99"]
    return found, found, found


def mask_wait(records: Records) -> Spread:
    found = records["structured-overlap"]["microseconds_a_row"]["beside"]["p99"]
    return found, found, found


def start(records: Records) -> Spread:
    times = sorted(records["footprint"]["start_to_first_token_s"])
    return times[len(times) // 2], times[0], times[-1]


def memory(records: Records) -> Spread:
    found = records["footprint"]["memory_under_load_bytes"] / 1e9
    return found, found, found


def jain(records: Records) -> Spread:
    found = records["fairness"]["shares"]["jain"]
    return found, found, found


SEVEN_BILLION = (
    ("B1", "time a token of one stream ÷ read of the weights", 1.25, "B1", False),
    ("B2", "time a token of one stream ÷ llama.cpp's", 1.0, "B2 time per token ÷ llama.cpp", False),
    ("B2", "tokens/s of 8 streams with 8 adapters ÷ llama.cpp's", 1.5, "B2 tokens/s with 8 adapters ÷ llama.cpp", True),
    ("B3", "tokens/s of a prompt of 512 ÷ llama.cpp's", 1.0, "B3 prompt tokens/s ÷ llama.cpp", True),
)
"""Name, figure, bound, key of the result, and whether the bound is the least value."""
TARGETS = (
    Target("S1", "chat on the base ÷ vLLM, its better dtype", 1.6, best_peer("S1 chat, base: throughput ÷ vLLM")),
    Target("S1", "triage on the base ÷ vLLM, its better dtype", 1.3, best_peer("S1 triage, base: throughput ÷ vLLM")),
    Target(
        "S2",
        "one reader, time per token ÷ llama.cpp, nothing guessed",
        0.78,
        best_peer("S2 single, base: manylora plain's time per token ÷ llama.cpp"),
        is_least=False,
    ),
    Target("S3", "triage on 32 adapters ÷ the best peer", 3.7, best_peer("S3 triage, 32 adapters")),
    Target("S3", "chat on 32 adapters ÷ the best peer", 6.5, best_peer("S3 chat, 32 adapters")),
    Target("S4", "decode step of 1 row ÷ its floor", 1.15, spread_at("step", "results", 0, "ratio"), is_least=False),
    Target("S4", "decode step of 32 rows ÷ its floor", 1.25, spread_at("step", "results", 2, "ratio"), is_least=False),
    Target("S5", "chat with 1 adapter ÷ base", 0.97, tax("1 adapter")),
    Target("S5", "chat with 32 adapters ÷ base", 0.93, tax("32 adapters")),
    Target(
        "S6",
        "1000 adapters, room for 64, first loads included ÷ 32",
        0.95,
        spread_at("catalogue", "throughput of 1000 ÷ 32"),
    ),
    Target(
        "S6",
        "99th percentile of first-token times of the same ÷ 5",
        2,
        spread_at("catalogue", "first token p99 of 1000 ÷ 5"),
        is_least=False,
    ),
    Target(
        "S7",
        "base with adapters resident ÷ without",
        0.99,
        spread_at("bypass", "a_over_b", "throughput"),
    ),
    Target("S8", "host work of a step of 32 rows", 0.5, host(0), is_least=False, unit=" ms"),
    Target("S8", "host work of a step of 32 rows, 32 adapters", 0.5, host(32), is_least=False, unit=" ms"),
    *(
        Target(
            "S9",
            f"{figure} in int8 ÷ bf16",
            bound,
            spread_at(file, "a_over_b", "throughput"),
        )
        for figure, bound, file in (
            ("triage", 1.6, "int8-triage"),
            ("chat", 1.4, "int8-chat"),
            ("chat, AVX2 alone,", 1.4, "int8-chat-avx2"),
        )
    ),
    Target("S10", "process start to first token", 4, start, is_least=False, unit=" s"),
    Target("S11", "memory, 64 adapters, 32 streams", 1.5, memory, is_least=False, unit=" GB"),
    Target(
        "S12",
        "chat on a base beside an idle base ÷ alone",
        0.97,
        spread_at("two-bases", "a_over_b", "throughput"),
    ),
    Target(
        "L1",
        "prompt tokens/s of `long` ÷ `triage`'s",
        0.68,
        spread_at("versus", "ratios", "L1 long, base: prompt tokens/s ÷ triage's"),
    ),
    Target(
        "L1",
        "prompt tokens/s of `long` ÷ llama.cpp's",
        2,
        spread_at("versus", "ratios", "L1 long, base: prompt tokens/s ÷ llama.cpp's"),
    ),
    *(
        Target("P1", f"`long` with {side} ÷ base", 0.95, tax(side, "lora-tax-long"))
        for side in ("1 adapter", "32 adapters")
    ),
    Target(
        "L2",
        "longest gap of 16 streams while a prompt of 2,048 tokens comes ÷ their median alone",
        4,
        spread_at("gaps", "results", "8", "gap"),
        is_least=False,
    ),
    Target(
        "L2",
        "speed of that prompt ÷ its speed without a bound on gaps",
        0.95,
        spread_at("gaps", "results", "8", "prompt"),
    ),
    Target(
        "A1",
        "longest ÷ median gap of 16 streams while 32 cold adapters load, ÷ the same with them warm",
        1.15,
        spread_at("adapters-A1"),
        is_least=False,
    ),
    Target(
        "A1",
        "upper end of its 95 % interval",
        1.3,
        upper_end("adapters-A1"),
        is_least=False,
    ),
    Target("A2", "first token from disk ÷ hot, 512 tokens", 1.15, spread_at("adapters-A2"), is_least=False),
    Target("A3", "adapters in a GiB ÷ slots of the largest rank", 6, spread_at("adapters-A3")),
    Target("A4", "first token, twice what has room ÷ all resident", 1.2, spread_at("adapters-A4"), is_least=False),
    Target("A4", "99th percentile of the same ÷ all resident", 3, spread_at("adapters-A4", "p99"), is_least=False),
    Target("A5", "check and pack of 40 MB, 95th percentile", 150, spread_at("adapters-A5"), is_least=False, unit=" ms"),
    Target("A6", "largest logit error over PEFT's configurations", 1e-4, spread_at("adapters-A6"), is_least=False),
    Target(
        "A7",
        "first sight of 40 MB in the bucket to first token, less the transfer, 99th percentile",
        1,
        in_seconds("cold-start", "beyond_transfer_ms", "bucket", "p99"),
        is_least=False,
        unit=" s",
    ),
    Target(
        "F1",
        "a quiet tenant's 99th percentile of first-token times beside a flood ÷ beside equals",
        1.5,
        spread_at("fairness", "F1"),
        is_least=False,
    ),
    Target(
        "F2",
        "the same beside a flood ÷ on an idle machine",
        2.5,
        spread_at("fairness", "to_idle"),
        is_least=False,
    ),
    Target("F1", "Jain's index of tenants that all wait", 0.98, jain),
    Target(
        "F1",
        "throughput of 32 tenants ÷ of one",
        0.98,
        spread_at("fairness", "cost", "throughput"),
    ),
    *(
        Target(
            "M1",
            f"tokens of the ledger less those of the engine's counts, after 100 kills, engine in {where}",
            0,
            kills(file),
            is_least=False,
        )
        for file, where in (("chaos", "a process"), ("chaos-thread", "a thread"))
    ),
    Target(
        "M2",
        "throughput with metering ÷ without",
        0.99,
        spread_at("metering", "a_over_b", "throughput"),
    ),
    *(
        Target(
            "H5",
            f"one engine on Ray Serve, `ray.mode` {mode} ÷ the same without Ray, chat",
            bound,
            spread_at(f"ray-{mode}", "a_over_b", "throughput"),
        )
        for mode, bound in (("handle", 0.9), ("direct", 0.97))
    ),
    *(
        Target(id, f"a 7B in {form}: {figure}", bound, spread_at("seven-b", form, key), is_least=is_least)
        for form in ("int4", "int8")
        for id, figure, bound, key, is_least in SEVEN_BILLION
    ),
    *(
        Target("C1", f"attention ÷ read of its keys and values, {case}", 1.3, over_read(case), is_least=False)
        for case in ("SmolLM2-135M, 4 × 32768, decode", "Mistral-7B, 4 × 32768, decode")
    ),
    Target(
        "G1",
        "longest ÷ median gap of 16 streams while 32 schemas compile, ÷ the same without",
        1.2,
        spread_at("structured-stall", "ratio"),
        is_least=False,
    ),
    Target(
        "G1",
        "the same while 32 hostile schemas come beside 32 requests without one, ÷ those requests alone",
        1.2,
        spread_at("structured-stall-hostile", "ratio"),
        is_least=False,
    ),
    Target(
        "G2",
        "a step's wait for the mask of a row, computed and applied, 99th percentile",
        100,
        mask_wait,
        is_least=False,
        unit=" µs",
    ),
    Target(
        "G2",
        "mask of a row alone, not beside a forward pass, 99th percentile",
        100,
        mask_time,
        is_least=False,
        unit=" µs",
    ),
    Target(
        "G3",
        "chat with a schema in every row ÷ without",
        0.95,
        spread_at("structured-throughput", "ratio"),
    ),
    Target(
        "Q1",
        "first token of interactive requests beside a batch ÷ without",
        1.3,
        spread_at("batches", "Q1"),
        is_least=False,
    ),
    Target(
        "C2",
        "logits at 32,768 positions of YaRN − transformers', at most",
        1e-4,
        lambda records: (records["long-context"]["logits"]["largest_difference"],) * 3,
        is_least=False,
    ),
    Target("R1", "mutated adapter files, no crash", 100_000, counted("R1", "failures")),
    Target("R2", "random model names, memory flat", 1_000_000, counted("R2", "wrong")),
    Target("R3", "operations between generations, no mismatch", 10_000, counted("R3", "mismatches")),
)


def rows(records: Records) -> list[Row]:
    """Return every target with its figures, or without them where the results do not have them."""
    found: list[Row] = []
    for target in TARGETS:
        read = _Read(records)
        try:
            spread = target.find(read)
        except (KeyError, ValueError):
            found.append(Row(target))
            continue
        machines = {machine_of(records[name].get("processor", "")): None for name in read.names}
        found.append(Row(target, spread, ", ".join(machines)))
    return found
