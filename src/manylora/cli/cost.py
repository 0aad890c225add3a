"""`manylora cost`: the price of a load by the token, compared with a dedicated machine."""

import json as json_text
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manylora.cli.costs import Capacity, Comparison, Hardware, Load, TokenPrice, capacity, compare, dollars
from manylora.cli.remote.client import JsonOption
from manylora.cli.remote.output import fail, nanousd_of, print_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PER_TOKENS = 1000


def cost(
    requests: Annotated[int, typer.Option(min=1, help="Requests a day.")] = 10_000,
    tokens_in: Annotated[int, typer.Option(min=0, help="Prompt tokens of a request.")] = 100,
    tokens_out: Annotated[int, typer.Option(min=0, help="Completion tokens of a request.")] = 10,
    price: Annotated[str, typer.Option(help="Dollars per 1,000 tokens, in and out alike.")] = "0.0002",
    price_out: Annotated[
        str | None, typer.Option(help="Dollars per 1,000 completion tokens, where they differ.")
    ] = None,
    hardware: Annotated[str, typer.Option(help="Name of the dedicated machine.")] = "A10G",
    hourly: Annotated[str, typer.Option(help="Its price, dollars an hour.")] = "1.21",
    hours: Annotated[float, typer.Option(min=0.0, max=24.0, help="Hours a day that it runs.")] = 16.0,
    measured: Annotated[
        Path | None, typer.Option(help="JSON of benchmarks/serving/lora_tax.py: what one machine carries.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw cost against load into this file; needs manylora[bench].")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compare paying by the token with a dedicated machine around the clock.

    With its defaults it prints the published example: ten thousand short requests a day against one A10G.
    """
    load = Load(requests_per_day=requests, prompt_tokens=tokens_in, completion_tokens=tokens_out)
    token_price = TokenPrice(
        input_nanousd=_per_token(price), output_nanousd=_per_token(price if price_out is None else price_out)
    )
    machine = Hardware(name=hardware, hourly_nanousd=_positive(hourly), hours_per_day=Fraction(str(hours)))
    comparison = compare(load, token_price, machine)
    carried = None if measured is None else _carried(measured, load, machine)
    if plot is not None:
        _plot(plot, load, token_price, machine, comparison)
    if json:
        typer.echo(json_text.dumps(_fields(load, machine, comparison, carried), indent=2))
    else:
        _print(load, machine, comparison, carried)


def _per_token(text: str) -> int:
    amount = _positive(text)
    if amount % PER_TOKENS:
        fail(f"a price is a whole number of nano-dollars a token, so at most six decimals per 1,000. Given: {text!r}")
    return amount // PER_TOKENS


def _positive(text: str) -> int:
    amount = nanousd_of(text)
    if amount < 0:
        fail(f"a price is not below zero. Given: {text!r}")
    return amount


def _carried(file: Path, load: Load, machine: Hardware) -> Capacity:
    """Return one machine's throughput under a workload, in the slowest case of `benchmarks/serving/lora_tax.py`."""
    from manylora.bench.workloads import WORKLOADS

    try:
        record: Any = json_text.loads(file.read_text(encoding="utf-8"))
        name, workload = record["workload"], WORKLOADS[record["workload"]]
        rates = [Fraction(str(case["tokens_per_s_median"])) for case in dict(record["results"]).values()]
        rate = min(rates) / workload.output
    except (OSError, ValueError, LookupError, TypeError) as error:
        fail(
            f"{file} is no measurement of throughput ({type(error).__name__}); write one with "
            "`python -m benchmarks.serving.lora_tax --workload triage --mixed --json FILE`"
        )
    if (load.prompt_tokens, load.completion_tokens) != (workload.prompt, workload.output):
        fail(
            f"{file} measured `{name}`, requests of {workload.prompt} + {workload.output} tokens, not of "
            f"{load.prompt_tokens} + {load.completion_tokens}: give --tokens-in and --tokens-out as it has them"
        )
    return capacity(load, machine, rate)


def _fields(load: Load, machine: Hardware, found: Comparison, carried: Capacity | None) -> dict[str, object]:
    fields: dict[str, object] = {
        "requests_per_day": load.requests_per_day,
        "tokens_per_day": load.tokens_per_day,
        "hardware": machine.name,
        "serverless_day_usd": dollars(found.serverless_day_nanousd),
        "serverless_month_usd": dollars(found.serverless_month_nanousd),
        "dedicated_day_usd": dollars(found.dedicated_day_nanousd),
        "dedicated_month_usd": dollars(found.dedicated_month_nanousd),
        "ratio": None if found.ratio is None else round(float(found.ratio), 2),
        "break_even_requests_per_day": found.break_even_requests,
    }
    if carried is not None:
        fields |= {
            "measured_requests_per_s": round(float(carried.requests_per_s), 3),
            "measured_requests_per_day": carried.requests_per_day,
            "machine_usd_per_1000_tokens": dollars(PER_TOKENS * carried.machine_nanousd_per_token, 6),
        }
    return fields


def _print(load: Load, machine: Hardware, found: Comparison, carried: Capacity | None) -> None:
    typer.echo(
        f"{load.requests_per_day:,} requests a day of {load.prompt_tokens} + {load.completion_tokens} tokens "
        f"({load.tokens_per_day:,} tokens a day)\n"
    )
    by_token = ("by the token", dollars(found.serverless_day_nanousd), dollars(found.serverless_month_nanousd))
    dedicated = (
        f"one {machine.name}, {float(machine.hours_per_day):g} hours a day",
        dollars(found.dedicated_day_nanousd),
        dollars(found.dedicated_month_nanousd),
    )
    print_table(("paid", "a day", "a month"), (by_token, dedicated), numbers=("a day", "a month"))
    if found.ratio is not None:
        typer.echo(f"\nthe dedicated machine costs {float(found.ratio):.0f}× as much")
    if found.break_even_requests is not None:
        typer.echo(f"it breaks even at {found.break_even_requests:,} such requests a day")
    if carried is not None:
        typer.echo(
            f"measured: the machine of that measurement carries {float(carried.requests_per_s):,.1f} such requests "
            f"a second, {carried.requests_per_day:,} a day;\n"
            f"fully used, at {dollars(machine.hourly_nanousd)} an hour (--hourly), that is "
            f"{dollars(PER_TOKENS * carried.machine_nanousd_per_token, 6)} per 1,000 tokens"
        )


def _plot(file: Path, load: Load, price: TokenPrice, machine: Hardware, found: Comparison) -> None:
    try:
        from matplotlib import pyplot
    except ImportError:
        fail("--plot needs matplotlib: pip install 'manylora[bench]'")
    figure, axes = pyplot.subplots(figsize=(7, 4))
    _draw(axes, load, price, machine, found)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _draw(axes: "Axes", load: Load, price: TokenPrice, machine: Hardware, found: Comparison) -> None:
    """Draw dollars a day against requests a day, on logarithmic axes."""
    most = max(load.requests_per_day, found.break_even_requests or 0) * 10
    loads = [10 ** (step / 10) for step in range(20, 200) if 10 ** (step / 10) <= most]
    each = price.of(load) / 1e9
    axes.plot(loads, [each * requests for requests in loads], label="by the token", color="#c2410c")
    axes.axhline(float(found.dedicated_day_nanousd) / 1e9, label=f"one {machine.name}", color="#64748b")
    axes.axvline(load.requests_per_day, ls=":", lw=1, color="#1d4ed8", label="this load")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("requests a day")
    axes.set_ylabel("dollars a day")
    axes.legend(frameon=False)
