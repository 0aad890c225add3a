"""The sections of `docs/benchmarks.md` on structured output and on batches."""

from pathlib import Path

from benchmarks.page.page import Record, number, range_of, source, table


def masks(record: Record, pictures: Path) -> str:
    """Return the section: microseconds of one row's mask, by part."""
    parts = ("median", "p90", "p99", "max")
    rows = [(name, *(number(found[part]) for part in parts)) for name, found in record["microseconds"].items()]
    return "\n".join(["## The mask of one row, in microseconds", "", source(record), table(("part", *parts), rows)])


def overlap(record: Record, pictures: Path) -> str:
    """Return the section: microseconds that a step waits for the mask of a row, by when it is filled."""
    parts = ("median", "p90", "p99", "max")
    rows = [
        (f"{side} the forward pass", *(number(found[part]) for part in parts))
        for side, found in record["microseconds_a_row"].items()
    ]
    ratio = record["tokens_per_s_ratio"]
    return "\n".join(
        [
            f"## A step's wait for the mask of a row, {record['rows']} rows, in microseconds",
            "",
            source(record),
            table(("masks filled", *parts), rows),
            f"Tokens a second, beside ÷ after: {number(ratio['median'])} ({range_of(ratio, 'low', 'high')}).",
        ]
    )


def schemas(record: Record, pictures: Path) -> str:
    """Return the section: tokens per second with a schema in every row and without."""
    rates = record["tokens_per_s"]
    rows = [
        ("with a schema in every row", number(rates["with"])),
        ("without", number(rates["without"])),
        ("ratio", f"{number(record['ratio']['median'])} ({range_of(record['ratio'], 'low', 'high')})"),
    ]
    title = f"## Schemas in every row of `{record['workload']}`, tokens/s"
    return "\n".join([title, "", source(record), table(("", ""), rows)])


def accuracy(record: Record, pictures: Path) -> str:
    """Return the section: the example adapter `intent-json` with its schema and without."""
    shares = record["shares"]
    names = list(next(iter(shares.values())))
    rows = [(side, *(f"{found[name]:.1%}" for name in names)) for side, found in shares.items()]
    title = f"## `intent-json` with its schema and without, {record['commands']} held-out commands"
    return "\n".join([title, "", source(record), table(("", *names), rows)])


def batches(record: Record, pictures: Path) -> str:
    """Return the section: first tokens of interactive requests beside a batch, and the batch's share."""
    times = record["first_token_ms"]
    rows = [
        ("first token without a batch, ms", f"{times['without']['median']:.0f}"),
        ("first token beside a batch, ms", f"{times['beside']['median']:.0f}"),
        ("ratio", f"{number(record['Q1']['median'])} ({range_of(record['Q1'], 'low', 'high')})"),
        ("ratio of the 95th percentiles", f"{number(record['Q1_p95']['median'])}"),
        ("the batch's lines a second beside them ÷ alone", number(record["share"])),
    ]
    return "\n".join(["## Interactive requests beside a batch", "", source(record), table(("", ""), rows)])
