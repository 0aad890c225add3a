"""Verbs that talk to a running server: options, one request, one line for a failure, tables."""

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from manylora import money
from manylora.config import caller_key
from manylora.money import NANO
from manylora.printable import printable, printable_json

if TYPE_CHECKING:
    import httpx2

DEFAULT_URL = "http://127.0.0.1:8080"
ANSWER_WAIT_S = 30.0
PIPE_WIDTH = 240
NO_CONTENT = 204
_DOLLARS = re.compile(r"(-)?\$?([0-9]{1,12})(?:\.([0-9]{1,9}))?")

UrlOption = Annotated[str, typer.Option(help="The server to talk to.")]
KeyOption = Annotated[
    str | None,
    typer.Option(
        help="The key to show it, where it asks for one. Default: MANYLORA_KEY, which no list of processes shows."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the server's JSON as it is.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server and the key it is shown; None: that of the environment, if there is one."""

    url: str
    key: str | None = None

    def ask(
        self,
        method: str,
        path: str,
        *,
        expects: str,
        query: dict[str, object] | None = None,
        body: object = None,
        wait_s: float = 0.0,
    ) -> "httpx2.Response":
        """Send one request; whatever is wrong ends the program with one line that says so.

        Args:  expects  a field that the answer of a manylora server has; empty: it may be any document
               wait_s   how long the server may take beyond what any answer takes
        """
        import httpx2

        key = self.key or caller_key()
        headers = {"authorization": f"Bearer {key}"} if key else {}
        given = {name: str(value) for name, value in (query or {}).items()}
        try:
            # A proxy from the environment would make this caller a stranger to the server.
            with httpx2.Client(base_url=self.url, timeout=ANSWER_WAIT_S + wait_s, trust_env=False) as client:
                reply = client.request(method, path, params=given, json=body, headers=headers)
        except httpx2.TimeoutException:
            fail(f"the server at {self.url} did not answer within {ANSWER_WAIT_S + wait_s:g} s")
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            fail(f"no server answers at {self.url} ({error}); start one with `manylora serve`, or name it with --url")
        except UnicodeEncodeError:
            fail("the key has letters that no key has")
        if (message := refusal_in(reply, expects)) is not None:
            fail(message)
        return _harmless(reply) if expects else reply


def path_of(*parts: str) -> str:
    """A path with each part as one segment, whatever is in it: `..` or `a/b` there would be another route."""
    from urllib.parse import quote

    for part in parts:
        if part in ("", ".", ".."):
            fail(f"{part!r} is no name")
    return "".join(f"/{quote(part, safe='')}" for part in parts)


def refusal_in(reply: "httpx2.Response", key: str) -> str | None:
    """The server's own words for what is wrong; None if the answer is one, which has `key`."""
    if reply.status_code == NO_CONTENT or (reply.is_success and not key):
        return None
    try:
        body = reply.json()
        if reply.is_success and key in body:
            return None
        error = body["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        return f"{reply.url} answered {reply.status_code}, and not as a manylora server does"


def _harmless(reply: "httpx2.Response") -> "httpx2.Response":
    """A reply of JSON with the same meaning and nothing that a terminal acts upon."""
    import httpx2

    kept = {name: value for name, value in reply.headers.items() if name == "content-type"}
    text = printable_json(reply.text)
    return httpx2.Response(reply.status_code, headers=kept, content=text.encode(), request=reply.request)


def say(text: str, *, err: bool = False) -> None:
    """Print one line in which a server's own words may stand."""
    typer.echo(printable(text), err=err)


def fail(message: str) -> NoReturn:
    say(f"manylora: {message}", err=True)
    raise typer.Exit(1)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[str] = ()) -> None:
    """Print rows below their headings; the columns in `numbers` end together."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(printable(name), justify="right" if name in numbers else "left")
    for row in rows:
        table.add_row(*map(printable, row))
    # Into a pipe there is no width to fit, and a shortened name would be no name.
    Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)


def print_fields(fields: dict[str, str]) -> None:
    """Print one thing: a line a field."""
    lines = {printable(name): printable(text) for name, text in fields.items()}
    width = max(map(len, lines), default=0)
    for name, text in lines.items():
        typer.echo(f"{name:<{width}}  {text}")


def shown(value: object) -> str:
    """A field as people read it; what is not known, or has no limit, is a dash."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def dollars(nanousd: int | None) -> str:
    """Nano-dollars as dollars, all digits that are not zero and at least two: $25.00, $0.0002."""
    if nanousd is None:
        return "-"
    return money.dollars(nanousd)


def nanousd_of(text: str) -> int:
    """Dollars as people write them (25, $0.0002, -3.50) in nano-dollars; ends the program for anything else."""
    match = _DOLLARS.fullmatch(text.strip())
    if match is None:
        fail(f"an amount is in dollars with at most nine decimals, such as 25 or 0.0002. Given: {text!r}")
    sign, whole, rest = match.groups()
    amount = int(whole) * NANO + int((rest or "").ljust(9, "0"))
    return -amount if sign else amount
