"""The section of `docs/benchmarks.md` on the soak: memory, resources and counts after minutes of all traffic."""

from pathlib import Path

from benchmarks.page.page import Record, source, table
from benchmarks.soak.plot import draw

MIB = 1 << 20
PARTS = {"control": "control plane", "edge": "server", "engine": "engine"}
COUNTS = ("memory_bytes", "files", "sockets", "threads")


def soak(record: Record, pictures: Path) -> str:
    """Return the section: growth of memory an hour, counts in silence before and after, and the ledger's difference."""
    draw(record, pictures / "soak.png")
    plan, traffic, verdict = record["plan"], record["traffic"], record["verdict"]
    rows = []
    for part, name in PARTS.items():
        before, after = record["before"][part], record["after"][part]
        slope = record["slopes"].get(part)
        per_hour = "–" if slope is None else _per_hour(slope)
        rows.append((name, per_hour, *(_pair(count, before, after) for count in COUNTS)))
    head = ("part", "growth an hour, MiB (95 %)", "memory, MiB", "files", "sockets", "threads")
    done = traffic["done"]
    acts = ", ".join(f"{done[verb]:,} {name}" for verb, name in ACTS.items() if verb in done)
    text = (
        f"{plan['seconds'] / 60:.0f} minutes of {plan['streams']} streams on {plan['adapters']:,} adapters by Zipf's "
        f"law, three tenants, {record['kills']} kills of the engine: {traffic['requests']:,} requests, "
        f"{verdict['ledger_tokens']:,} tokens in the ledger, {acts}, {traffic['pages_of_the_console']:,} pages of the "
        "console. Counts are of silence before and after. "
        f"Ledger − counts = {verdict['difference']}; {_faults(record)}."
    )
    return "\n".join(["## A soak of all traffic", "", source(record), text, "", table(head, rows), PICTURE])


ACTS = {
    "upload": "uploads",
    "alias": "switched aliases",
    "delete": "deletions",
    "pin": "pins",
    "read": "reads",
    "visit of the console": "visits of the console",
}
PICTURE = "![Memory and open files of each part over the soak](benchmarks/soak.png)\n"


def _per_hour(slope: Record) -> str:
    middle, low, high = (3600 * slope[name] / MIB for name in ("per_s", "low_per_s", "high_per_s"))
    return f"{middle:.1f} ({low:.1f}–{high:.1f})"


def _pair(count: str, before: Record, after: Record) -> str:
    scale = MIB if count == "memory_bytes" else 1
    return f"{before[count] / scale:.0f} → {after[count] / scale:.0f}"


def _faults(record: Record) -> str:
    return "; ".join(record["faults"]) or "no block, row, pin, file or connection is left"
