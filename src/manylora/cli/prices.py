"""`manylora prices`: what the tokens of each base model cost, on a running server."""

from typing import Annotated

import typer

from manylora.cli.client import (
    DEFAULT_URL,
    JsonOption,
    KeyOption,
    Server,
    UrlOption,
    dollars,
    fail,
    nanousd_of,
    print_table,
)

ROOT = "/admin/prices"
PER_TOKENS = 1000
COLUMNS = ("base", "version", "from", "$/1K prompt", "$/1K completion")

prices = typer.Typer(no_args_is_help=True, help="See and set what the tokens of each base model cost.")


@prices.command("ls")
def list_prices(
    base: Annotated[str, typer.Option(help="One base model alone.")] = "",
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """List every version of every price."""
    query: dict[str, object] = {"base": base} if base else {}
    reply = Server(url=url, key=key).ask("GET", ROOT, expects="prices", query=query)
    if json:
        typer.echo(reply.text)
        return
    print_table(COLUMNS, [_row(price) for price in reply.json()["prices"]], numbers=COLUMNS[3:])


@prices.command("set")
def set_price(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The base model's name.")],
    input_: Annotated[str, typer.Option("--input", help="Dollars per 1,000 prompt tokens.")],
    output: Annotated[str, typer.Option(help="Dollars per 1,000 completion tokens.")],
    after_s: Annotated[float, typer.Option(min=0.0, help="In force so many seconds from now.")] = 0.0,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Set a base model's price from now on; what has been used keeps its own."""
    body = {
        "base": base,
        "input_nanousd": _per_token(input_),
        "output_nanousd": _per_token(output),
        "effective_in_s": after_s,
    }
    reply = Server(url=url, key=key).ask("POST", ROOT, expects="version", body=body)
    typer.echo(reply.text) if json else print_table(COLUMNS, [_row(reply.json())], numbers=COLUMNS[3:])


def _row(price: dict[str, object]) -> tuple[str, ...]:
    amounts = [dollars(PER_TOKENS * int(str(price[name]))) for name in ("input_nanousd", "output_nanousd")]
    return str(price["base"]), str(price["version"]), str(price["effective"]), *amounts


def _per_token(text: str) -> int:
    amount = nanousd_of(text)
    if amount < 0 or amount % PER_TOKENS:
        fail(
            "a price is at least 0 and a whole number of nano-dollars a token, so it has at most six decimals per "
            f"1,000. Given: {text!r}"
        )
    return amount // PER_TOKENS
