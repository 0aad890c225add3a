"""`manylora tenants`: the tenants of a running server."""

import secrets
from typing import Annotated, Any

import typer

from manylora.cli.remote.client import (
    DEFAULT_URL,
    BeforeOption,
    JsonOption,
    KeyOption,
    LimitOption,
    RemoteServer,
    UrlOption,
    path_of,
)
from manylora.cli.remote.limits import LIMIT_HELP, OwnTenantArgument, TenantArgument, limit_fields, parse_limits
from manylora.cli.remote.output import dollars, nanousd_of, print_fields, print_table, say, shown

ROOT = "/admin/tenants"
DAY_S = 86_400

PlanOption = Annotated[str | None, typer.Option(help="Name of its plan.")]
WeightOption = Annotated[
    int | None, typer.Option(min=1, help="Weight: its share among tenants with waiting requests is proportional to it.")
]

tenants = typer.Typer(no_args_is_help=True, help="See, make and manage the tenants, with the operator's key.")


@tenants.command("ls")
def list_tenants(
    limit: LimitOption = 1000,
    after: Annotated[str, typer.Option(help="Only codes after this one.")] = "",
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """List the tenants, in the order of their codes."""
    query: dict[str, object] = {"limit": limit} | ({"after": after} if after else {})
    reply = RemoteServer(url=url, key=key).ask("GET", ROOT, expects="tenants", query=query)
    if json:
        typer.echo(reply.text)
        return
    page = reply.json()
    columns = ("id", "state", "plan", "weight", "name", "email", "created")
    rows = (tuple(shown(tenant[column]) for column in columns) for tenant in page["tenants"])
    print_table(columns, rows, numbers=("weight",))
    if page["next"] is not None:
        say(f"there are more: --after {page['next']}", err=True)


@tenants.command()
def create(
    tenant: TenantArgument,
    name: Annotated[str, typer.Option(help="Displayed name. Default: its code.")] = "",
    email: Annotated[str | None, typer.Option(help="Its e-mail address.")] = None,
    plan: PlanOption = None,
    weight: WeightOption = None,
    credit: Annotated[
        str | None, typer.Option(metavar="DOLLARS", help="Its first credit. Default: that of a sign-up.")
    ] = None,
    limit: Annotated[list[str] | None, typer.Option(metavar="NAME=NUMBER", help=LIMIT_HELP)] = None,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Make a tenant, with its credit and its first key. Only this output shows the key's text."""
    body: dict[str, Any] = {"id": tenant, "name": name, "email": email, "limits": parse_limits(limit or [])}
    body |= {field: value for field, value in (("plan", plan), ("weight", weight)) if value is not None}
    body["credit_nanousd"] = None if credit is None else nanousd_of(credit)
    reply = RemoteServer(url=url, key=key).ask("POST", ROOT, expects="tenant", body=body)
    if json:
        typer.echo(reply.text)
        return
    made = reply.json()
    key_lines = {"key's scopes": " ".join(made["key"]["scopes"]), "key (shown once)": made["key"]["key"]}
    print_fields(tenant_fields(made["tenant"]) | key_lines)


@tenants.command("login-code")
def login_code(
    tenant: TenantArgument, json: JsonOption = False, url: UrlOption = DEFAULT_URL, key: KeyOption = None
) -> None:
    """Make a one-time code by which a tenant sets a new password at the console, within an hour."""
    reply = RemoteServer(url=url, key=key).ask("POST", f"{ROOT}{path_of(tenant)}/login-code", expects="code", body={})
    if json:
        typer.echo(reply.text)
        return
    made = reply.json()
    print_fields({"tenant": made["tenant"], "code (shown once)": made["code"], "valid until": made["expires"]})


@tenants.command()
def show(
    tenant: OwnTenantArgument = "", json: JsonOption = False, url: UrlOption = DEFAULT_URL, key: KeyOption = None
) -> None:
    """Show a tenant with its balance and its limits."""
    server = RemoteServer(url=url, key=key)
    path = "/v1/account" if not tenant or server.answers_own(tenant) else ROOT + path_of(tenant)
    reply = server.ask("GET", path, expects="id")
    typer.echo(reply.text) if json else print_fields(tenant_fields(reply.json()))


@tenants.command()
def change(
    tenant: TenantArgument,
    plan: PlanOption = None,
    weight: WeightOption = None,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Change a tenant's plan or weight; `manylora limits` changes its limits."""
    body = {"plan": plan, "weight": weight}
    reply = RemoteServer(url=url, key=key).ask("PATCH", ROOT + path_of(tenant), expects="id", body=body)
    typer.echo(reply.text) if json else print_fields(tenant_fields(reply.json()))


@tenants.command()
def suspend(
    tenant: TenantArgument, json: JsonOption = False, url: UrlOption = DEFAULT_URL, key: KeyOption = None
) -> None:
    """Refuse every request of a tenant from now on; nothing is deleted."""
    _put_state(RemoteServer(url=url, key=key), tenant, "suspend", json)


@tenants.command()
def resume(
    tenant: TenantArgument, json: JsonOption = False, url: UrlOption = DEFAULT_URL, key: KeyOption = None
) -> None:
    """End a suspension."""
    _put_state(RemoteServer(url=url, key=key), tenant, "resume", json)


@tenants.command()
def close(
    tenant: TenantArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation.")] = False,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """End a tenant for ever. Its rows stay in the ledger, and its code is never used again."""
    if not yes:
        typer.confirm(f"Close tenant '{tenant}' of {url} for ever?", abort=True)
    _put_state(RemoteServer(url=url, key=key), tenant, "close", json)


@tenants.command(context_settings={"ignore_unknown_options": True})  # a negative amount is no option
def credit(
    tenant: TenantArgument,
    amount: Annotated[str, typer.Argument(metavar="DOLLARS", help="Such as 25, or -0.50 to take away.")],
    reason: Annotated[str, typer.Option(help="Reason, as the ledger shows it.")] = "by the operator",
    grant: Annotated[str | None, typer.Option("--id", help="Id of this grant: a repetition changes nothing.")] = None,
    expires: Annotated[float | None, typer.Option(min=0, help="Days until it ends unspent. Default: never.")] = None,
    priority: Annotated[
        int | None, typer.Option(min=1, max=50, help="The lowest is drawn first, then the earliest end. Default: 25.")
    ] = None,
    free: Annotated[bool, typer.Option("--free", help="A gift, and no payment.")] = False,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Add to a tenant's credit, and show its balance."""
    body: dict[str, Any] = {
        "id": grant or f"cli-{secrets.token_hex(12)}",
        "nanousd": nanousd_of(amount),
        "reason": reason,
    }
    body |= {} if expires is None else {"expires_in_s": expires * DAY_S}
    body |= {} if priority is None else {"priority": priority}
    body |= {"kind": "free"} if free else {}
    path = ROOT + path_of(tenant, "credits")
    reply = RemoteServer(url=url, key=key).ask("POST", path, expects="left_nanousd", body=body)
    typer.echo(reply.text) if json else print_fields(_balance(reply.json()))


@tenants.command()
def credits(
    tenant: OwnTenantArgument = "",
    limit: LimitOption = 100,
    before: BeforeOption = None,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """List the grants of a tenant's credit, the newest first."""
    server = RemoteServer(url=url, key=key)
    is_own = not tenant or server.answers_own(tenant)
    path = "/v1/account/credits" if is_own else ROOT + path_of(tenant, "credits")
    query: dict[str, object] = {"limit": limit}
    if before is not None:
        query["before"] = before
    reply = server.ask("GET", path, expects="credits", query=query)
    if json:
        typer.echo(reply.text)
        return
    page = reply.json()
    rows = ((grant["created"], dollars(grant["nanousd"]), grant["reason"], grant["id"]) for grant in page["credits"])
    print_table(("created", "amount", "reason", "id"), rows, numbers=("amount",))
    if page["before"] is not None:
        say(f"there are more: --before {page['before']}", err=True)


def _put_state(server: RemoteServer, tenant: str, verb: str, json: bool) -> None:
    reply = server.ask("POST", ROOT + path_of(tenant, verb), expects="state")
    typer.echo(reply.text) if json else say(f"done: tenant {tenant} is {reply.json()['state']}")


def tenant_fields(body: dict[str, Any]) -> dict[str, str]:
    """Return the texts of a tenant's fields in a body."""
    names = ("id", "number", "uuid", "name", "email", "state", "plan", "weight", "created")
    lines = {name: shown(body[name]) for name in names}
    if body["balance"] is not None:
        lines |= _balance(body["balance"])
    return lines | {f"limit: {name}": text for name, text in limit_fields(body["limits"]).items()}


def _balance(body: dict[str, int]) -> dict[str, str]:
    titles = {
        "credit left": "left_nanousd",
        "credit given": "granted_nanousd",
        "charged": "charged_nanousd",
        "expired": "expired_nanousd",
        "set aside by servers": "leased_nanousd",
        "spent this month": "spent_this_month_nanousd",
    }
    return {title: dollars(body[field]) for title, field in titles.items() if field in body}
