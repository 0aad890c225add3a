"""`manylora prices`: prices of base models on a running server."""

from typing import Annotated

import typer

from manylora.cli.remote.client import DEFAULT_URL, JsonOption, KeyOption, RemoteServer, UrlOption
from manylora.cli.remote.output import dollars, fail, nanousd_of, print_table, say, shown

ROOT, OWN = "/admin/prices", "/v1/prices"
PER_TOKENS = 1000
COLUMNS = ("base", "version", "from", "in force", "$/1K prompt", "$/1K cached", "$/1K completion")
NUMBERS = COLUMNS[4:]
AMOUNTS = ("input_nanousd", "cached_input_nanousd", "output_nanousd")

prices = typer.Typer(no_args_is_help=True, help="See the prices of base models, and set them with the operator's key.")


@prices.command("ls")
def list_prices(
    base: Annotated[str, typer.Option(help="Only this base model.")] = "",
    own: Annotated[
        bool, typer.Option("--own", help="The prices of the served bases, as customers see them; needs no key.")
    ] = False,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """List every version of every price; the one in force is marked."""
    query: dict[str, object] = {"base": base} if base else {}
    server = RemoteServer(url=url, key=key)
    reply = server.ask("GET", OWN if own or server.answers_own() else ROOT, expects="prices", query=query)
    if json:
        typer.echo(reply.text)
        return
    body = reply.json()
    print_table(COLUMNS, [_row(price) for price in body["prices"]], numbers=NUMBERS)
    if (hourly := body.get("deployment_hourly_nanousd")) is not None:  # the operator's list has none
        say(f"An hour of a replica of a dedicated deployment: {dollars(hourly)}")


@prices.command("set")
def set_price(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The base model's name.")],
    input_: Annotated[str, typer.Option("--input", help="Dollars per 1,000 prompt tokens.")],
    output: Annotated[str, typer.Option(help="Dollars per 1,000 completion tokens.")],
    cached: Annotated[
        str | None,
        typer.Option(help="Dollars per 1,000 prompt tokens that come from the prefix cache. Default: as --input."),
    ] = None,
    after_s: Annotated[float, typer.Option(min=0.0, help="Seconds until the price is in force.")] = 0.0,
    force: Annotated[bool, typer.Option("--force", help="Also for a base that no server here serves yet.")] = False,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Set a base model's price from now on; past usage keeps its price."""
    body = {
        "base": base,
        "input_nanousd": _per_token(input_),
        "output_nanousd": _per_token(output),
        "effective_in_s": after_s,
    }
    # Sent only if given: a control plane of an older release knows neither.
    body |= {"force": True} if force else {}
    body |= {} if cached is None else {"cached_input_nanousd": _per_token(cached)}
    reply = RemoteServer(url=url, key=key).ask("POST", ROOT, expects="version", body=body)
    typer.echo(reply.text) if json else print_table(COLUMNS, [_row(reply.json())], numbers=NUMBERS)


def _row(price: dict[str, object]) -> tuple[str, ...]:
    amounts = [dollars(PER_TOKENS * int(str(price[name]))) for name in AMOUNTS]
    in_force = "yes" if price["is_in_force"] else "-"
    return str(price["base"]), shown(price["version"]), shown(price["effective"]), in_force, *amounts


def _per_token(text: str) -> int:
    amount = nanousd_of(text)
    if amount < 0 or amount % PER_TOKENS:
        fail(
            "a price is at least 0 and a whole number of nano-dollars a token, so it has at most six decimals per "
            f"1,000. Given: {text!r}"
        )
    return amount // PER_TOKENS
