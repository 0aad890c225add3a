"""`manylora limits`: the limits of a running server's tenant."""

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
"""Names of limits in commands. The budget is in dollars; its field in JSON ends with `_nanousd`."""

TenantArgument = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's short code.")]
OwnTenantArgument = Annotated[
    str, typer.Argument(metavar="[TENANT]", show_default=False, help="The tenant's short code. Default: the key's own.")
]
RATES = NAMES[:3]
"""Names of the limits that a single base may have, as `BASE/NAME`."""

LIMIT_HELP = (
    f"NAME=NUMBER, or NAME=none for no limit. Names: {', '.join(NAMES)} (in dollars). BASE/NAME=NUMBER limits requests "
    f"to one base: {', '.join(RATES)}."
)
Fields = dict[str, Any]
"""The limits in a body, as JSON; those of single bases by name in `bases`."""

limits = typer.Typer(no_args_is_help=True, help="See the limits of a tenant, and set them with the operator's key.")


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
    """Change the named limits; the others stay."""
    server, changed = RemoteServer(url=url, key=key), parse_limits(assignments)
    known = server.ask("GET", _path(tenant), expects="max_rank").json()
    reply = server.ask("PUT", _path(tenant), expects="max_rank", body=changed_limits(known, changed))
    typer.echo(reply.text) if json else print_fields(limit_fields(reply.json()))


def parse_limits(assignments: list[str]) -> Fields:
    """Parse `NAME=NUMBER` and `BASE/NAME=NUMBER` words into a body's fields. End the program for an invalid one."""
    found: Fields = {}
    for assignment in assignments:
        written, equals, text = assignment.rpartition("=")
        base, slash, rest = written.strip().rpartition("/")
        name, names = rest.replace("-", "_"), RATES if slash else NAMES
        if not equals or name not in names or (slash and not base):
            form = "a limit of a base is BASE/NAME=NUMBER" if slash else "a limit is NAME=NUMBER"
            fail(f"{form}, its name one of {', '.join(names)}. Given: {assignment!r}")
        number = None if text.strip().lower() == "none" else _number(name, text.strip())
        if slash:
            found.setdefault("bases", {}).setdefault(base, {})[name] = number
        else:
            found[BUDGET_FIELD if name == BUDGET else name] = number
    return found


def changed_limits(known: Fields, changed: Fields) -> Fields:
    """Return limits with some of them changed; the others stay."""
    if "bases" not in changed:
        return known | changed
    bases = known.get("bases", {})
    return (
        known | changed | {"bases": bases | {base: bases.get(base, {}) | own for base, own in changed["bases"].items()}}
    )


def limit_fields(body: Fields) -> dict[str, str]:
    """Return the texts of the limits in a body; a dash is no limit. Of a single base only the limits that it has."""
    texts = {name: shown(body[name]) for name in NAMES if name != BUDGET} | {BUDGET: dollars(body[BUDGET_FIELD])}
    bases = body.get("bases", {})
    return texts | {
        f"{base}/{name}": shown(number)
        for base, own in bases.items()
        for name, number in own.items()
        if number is not None
    }


def _number(name: str, text: str) -> int:
    if name == BUDGET:
        return nanousd_of(text)
    if not text.isascii() or not text.isdigit():
        fail(f"{name} must be a whole number, or none. Given: {text!r}")
    return int(text)


def _path(tenant: str) -> str:
    return "/admin/tenants" + path_of(tenant, "limits")
