"""Verbs that talk to a running server: options, one request, one line for a failure, tables."""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from manylora import money
from manylora.config.environment import KEY_VARIABLE, URL_VARIABLE, caller_key, caller_url
from manylora.http.loopback import VERSION_HEADER, is_loopback
from manylora.money import NANO
from manylora.system.printable import printable, printable_json
from manylora.tenancy import Scope

if TYPE_CHECKING:
    import httpx2

LOCAL_URL = "http://127.0.0.1:8080"
DEFAULT_URL = ""
"""As `--url` is without a value: MANYLORA_URL, else `LOCAL_URL`."""
PROBE_PATH = "/ready"
ANSWER_WAIT_S = 30.0
NO_CONTENT = 204
_DOLLARS = re.compile(r"(-)?\$?([0-9]{1,12})(?:\.([0-9]{1,9}))?")


def _url(given: str) -> str:
    """The server to talk to: of the flag, else of the environment, else of this machine."""
    url = given or caller_url() or LOCAL_URL
    if not re.match(r"https?://[^/]", url):
        source = "--url" if given else URL_VARIABLE
        fail(f"{source} must be a server's address such as {LOCAL_URL}. Given: {url!r}")
    return url


UrlOption = Annotated[
    str,
    typer.Option(
        callback=_url,
        show_default=False,
        help=f"The server to talk to. Default: {URL_VARIABLE}, else {LOCAL_URL}.",
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        help=f"The key to show it, where it asks for one. Default: {KEY_VARIABLE}, which no list of processes shows."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the server's JSON as it is.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """is_operator: it may ask about every tenant."""

    tenant: str
    is_operator: bool


@dataclass(slots=True, kw_only=True)
class Server:
    """A running server and the key it is shown; None: that of the environment, if there is one."""

    url: str
    key: str | None = None
    _is_known: bool = field(default=False, init=False)
    """It has answered as a manylora server, so that the key may be shown."""

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
        reply = self._send(method, path, query=query, body=body, wait_s=wait_s)
        if (message := refusal_in(reply, expects)) is not None:
            fail(message)
        return _harmless(reply) if expects else reply

    def caller(self) -> "Caller | None":
        """Whose the key is, and what it may do; None without a key, where the server wants one."""
        reply = self._send("GET", "/v1/account/key", query=None, body=None, wait_s=0.0)
        if (message := refusal_in(reply, "scopes")) is not None:
            return fail(message) if self.key or caller_key() else None
        body = _harmless(reply).json()
        return Caller(tenant=str(body["tenant"]), is_operator=Scope.ADMIN in body["scopes"])

    def answers_own(self, tenant: str = "") -> bool:
        """Whether a question about a tenant goes to the routes of the key's own account, and not to the operator's.

        Args:  tenant  the tenant that is asked about; empty: the operator asks about all, anybody else about his own
        Ends the program for another's tenant, which the operator alone may ask about.
        """
        caller = self.caller()
        if caller is None:
            return True
        if not caller.is_operator and tenant not in ("", caller.tenant):
            fail(f"the key is of tenant {caller.tenant}: about tenant {tenant} the operator's key alone may ask")
        return not caller.is_operator

    def _send(
        self, method: str, path: str, *, query: dict[str, object] | None, body: object, wait_s: float
    ) -> "httpx2.Response":
        import httpx2

        key = self.key or caller_key()
        headers = {"authorization": f"Bearer {key}"} if key else {}
        given = {name: str(value) for name, value in (query or {}).items()}
        try:
            # A proxy from the environment would make this caller a stranger to the server.
            with httpx2.Client(base_url=self.url, timeout=ANSWER_WAIT_S + wait_s, trust_env=False) as client:
                if key:
                    self._require_manylora(client)
                return client.request(method, path, params=given, json=body, headers=headers)
        except httpx2.TimeoutException:
            fail(f"the server at {self.url} did not answer within {ANSWER_WAIT_S + wait_s:g} s")
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            fail(f"no server answers at {self.url} ({error}); start one with `manylora serve`, or name it with --url")
        except UnicodeEncodeError:
            fail("the key has letters that no key has")

    def _require_manylora(self, client: "httpx2.Client") -> None:
        """See, without the key, that a manylora server answers: to any other the key would be given away.

        No redirect is followed, here or later: it may lead to another server.
        """
        if self._is_known:
            return
        reply = client.get(PROBE_PATH)
        if reply.is_redirect or VERSION_HEADER not in reply.headers:
            led = f"redirects to {reply.headers.get('location', '')}" if reply.is_redirect else "is no manylora server"
            fail(f"{self.url} {led}, so the key was not sent; name the server with --url or {URL_VARIABLE}")
        if client.base_url.scheme == "http" and not is_loopback(client.base_url.host):
            say(f"manylora: warning: {self.url} is not encrypted, every machine on the way can read the key", err=True)
        self._is_known = True

    def pages(self, path: str, *, expects: str, query: dict[str, object] | None = None) -> "Iterator[httpx2.Response]":
        """Every page of a list, as it comes; a server of an older version has one."""
        query = query or {}
        while True:
            page = self.ask("GET", path, expects=expects, query=query)
            yield page
            following = page.json().get("next")
            if not following or following == query.get("after"):
                return
            query = query | {"after": following}


def whole_json(pages: "Sequence[httpx2.Response]", name: str) -> str:
    """The server's JSON as it is; of several pages one document with all that `name` lists."""
    if len(pages) == 1:
        return pages[0].text
    bodies = [page.json() for page in pages]
    listed = [entry for body in bodies for entry in body[name]]
    return printable_json(json.dumps({**bodies[-1], name: listed}, ensure_ascii=False))


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
    if reply.is_redirect:
        return f"{reply.url} redirects to {reply.headers.get('location', '')}, which is not followed"
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


class PlainTable:
    """Rows below their headings, printed part by part as they come; the columns in `numbers` end together.

    A part with wider cells than those before it has wider columns. A line is never cut: a shortened name is no name.
    """

    def __init__(self, columns: Sequence[str], *, numbers: Sequence[str] = ()) -> None:
        self._columns = [printable(name) for name in columns]
        self._is_number = [name in numbers for name in columns]
        self._widths = [0] * len(columns)
        self._is_begun = False

    def print(self, rows: Iterable[Sequence[str]]) -> None:
        lines = [[printable(cell) for cell in row] for row in rows]
        if not self._is_begun:
            lines.insert(0, self._columns)
            self._is_begun = True
        padded = [self._padded(place, cells) for place, cells in enumerate(zip(*lines, strict=True))]
        if padded:
            typer.echo("\n".join("  ".join(cells).rstrip() for cells in zip(*padded, strict=True)))

    def _padded(self, place: int, cells: Sequence[str]) -> list[str]:
        """The cells of one column, all as wide as the widest of it so far."""
        widths = [_cell_width(cell) for cell in cells]
        width = self._widths[place] = max(self._widths[place], *widths)
        spaces = [" " * (width - own) for own in widths]
        if self._is_number[place]:
            return [space + cell for space, cell in zip(spaces, cells, strict=True)]
        return [cell + space for space, cell in zip(spaces, cells, strict=True)]


def _cell_width(text: str) -> int:
    """Columns of a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[str] = ()) -> None:
    """Print rows below their headings; the columns in `numbers` end together. A terminal's table fits its width."""
    if not sys.stdout.isatty():
        PlainTable(columns, numbers=numbers).print(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(printable(name), justify="right" if name in numbers else "left")
    for row in rows:
        table.add_row(*map(printable, row))
    Console(highlight=False, markup=False, emoji=False).print(table)


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
