"""`manylora limits`: what a tenant of a running server may use, over HTTP."""

import json as json_library
from typing import Annotated, Any

import typer

from manylora.cli.remote.client import DEFAULT_URL, JsonOption, KeyOption, RemoteServer, UrlOption, path_of
from manylora.cli.remote.output import dollars, fail, nanousd_of, print_fields, shown

BUDGET, BUDGET_FIELD = "monthly_budget", "monthly_budget_nanousd"
NAMES = (
    "requests_per_minute",
    "tokens_per_minute",
    "concurrent_streams",
    "adapters",
    "adapter_bytes",
    "max_rank",
    BUDGET,
)
"""As they are written here; the budget is in dollars, and ends in `_nanousd` on the wire."""

TenantArgument = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's short code.")]
OwnTenantArgument = Annotated[
    str, typer.Argument(metavar="[TENANT]", show_default=False, help="The tenant's short code. Default: the key's own.")
]
LIMIT_HELP = f"NAME=NUMBER, or NAME=none for no limit. Names: {', '.join(NAMES)} (in dollars)."

limits = typer.Typer(
    no_args_is_help=True, help="See what a tenant may use at a time, and set it with the operator's key."
)


@limits.command()
def show(
    tenant: OwnTenantArgument = "", json: JsonOption = False, url: UrlOption = DEFAULT_URL, key: KeyOption = None
) -> None:
    """Show a tenant's limits."""
    server = RemoteServer(url=url, key=key)
    if not tenant or server.answers_own(tenant):
        found = server.ask("GET", "/v1/account", expects="limits").json()["limits"]
    else:
        found = server.ask("GET", _path(tenant), expects="max_rank").json()
    typer.echo(json_library.dumps(found)) if json else print_fields(limit_fields(found))


@limits.command("set")
def set_limits(
    tenant: TenantArgument,
    assignments: Annotated[list[str], typer.Argument(metavar="NAME=NUMBER…", help=LIMIT_HELP)],
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Change those limits that are named; the others stay."""
    server, changed = RemoteServer(url=url, key=key), parse_limits(assignments)
    known = server.ask("GET", _path(tenant), expects="max_rank").json()
    reply = server.ask("PUT", _path(tenant), expects="max_rank", body=known | changed)
    typer.echo(reply.text) if json else print_fields(limit_fields(reply.json()))


def parse_limits(assignments: list[str]) -> dict[str, int | None]:
    """`NAME=NUMBER` words as the fields of a body; ends the program for what is none."""
    found: dict[str, int | None] = {}
    for assignment in assignments:
        written, equals, text = assignment.partition("=")
        name = written.strip().replace("-", "_")
        if not equals or name not in NAMES:
            fail(f"a limit is NAME=NUMBER, its name one of {', '.join(NAMES)}. Given: {assignment!r}")
        field = BUDGET_FIELD if name == BUDGET else name
        found[field] = None if text.strip().lower() == "none" else _number(name, text.strip())
    return found


def limit_fields(body: dict[str, Any]) -> dict[str, str]:
    """Limits from a body, as people read them; a dash is no limit."""
    texts = {name: shown(body[name]) for name in NAMES if name != BUDGET}
    return texts | {BUDGET: dollars(body[BUDGET_FIELD])}


def _number(name: str, text: str) -> int:
    if name == BUDGET:
        return nanousd_of(text)
    if not text.isascii() or not text.isdigit():
        fail(f"{name} must be a whole number, or none. Given: {text!r}")
    return int(text)


def _path(tenant: str) -> str:
    return "/admin/tenants" + path_of(tenant, "limits")
