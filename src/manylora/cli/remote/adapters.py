"""`manylora adapters`: the adapters of a running server."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from manylora.adapter_state import AdapterAction, AdapterState
from manylora.cli.remote.client import DEFAULT_URL, JsonOption, KeyOption, LimitOption, RemoteServer, UrlOption
from manylora.cli.remote.output import fail, print_fields, print_table, say
from manylora.cli.remote.report import print_report

if TYPE_CHECKING:
    import httpx2

SHORT_DIGEST = 12

Info = dict[str, Any]  # JSON of the server: AdapterInfo's fields

SourceOption = Annotated[str | None, typer.Option(help="Source of the adapter. Default: as for a request.")]
TenantOption = Annotated[str | None, typer.Option("--tenant", help="Owner of the upload. Default: as for a request.")]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The adapter's id, such as support-triage or team/name.")]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end of the operation.")]
TimeoutOption = Annotated[
    float, typer.Option(min=0, help="Maximum wait in seconds; the server limits it to its adapters.load_timeout_s.")
]

adapters = typer.Typer(no_args_is_help=True, help="See and manage the adapters of a running server.")


@adapters.command("ls")
def list_adapters(
    prefix: Annotated[str | None, typer.Option(help="Only ids with this prefix.")] = None,
    state: Annotated[AdapterState | None, typer.Option(help="Only adapters in this state.")] = None,
    source: Annotated[str | None, typer.Option(help="Only adapters of this source.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's uploads, all of them.")] = None,
    limit: LimitOption = 1000,
    after: Annotated[str | None, typer.Option(help="Continue after this id, the last of a page.")] = None,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """List the adapters that the server knows."""
    asked = {"prefix": prefix, "state": state, "source": source, "tenant": tenant, "limit": limit, "after": after}
    reply = _ask(
        "GET", RemoteServer(url=url, key=key), query={name: value for name, value in asked.items() if value is not None}
    )
    if json:
        typer.echo(reply.text)
        return
    page = reply.json()
    _print_table(page["data"])
    if page["has_more"]:
        say(f"there are more: --after {page['after']}", err=True)


@adapters.command()
def show(
    adapter: IdArgument,
    source: SourceOption = None,
    tenant: TenantOption = None,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Show all facts of one adapter: times of its last load by stage, and its ingest report."""
    reply = _ask("GET", RemoteServer(url=url, key=key), adapter, query=_place(source, tenant))
    if json:
        typer.echo(reply.text)
        return
    info = reply.json()
    stages, report = info.pop("stage_ms"), info.pop("report", None)
    lines = {name: _shown(name, value) for name, value in info.items()}
    lines |= {f"load: {stage}": f"{duration_ms:.1f} ms" for stage, duration_ms in stages.items()}
    print_fields(lines)
    print_report(report)


@adapters.command()
def rm(
    adapter: IdArgument,
    source: SourceOption = None,
    tenant: TenantOption = None,
    wait: WaitOption = True,
    timeout: TimeoutOption = 60.0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation.")] = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Remove an adapter's name; running requests end normally, then its weights leave every tier."""
    if not yes:
        typer.confirm(f"Take adapter '{adapter}' away from {url}?", abort=True)
    _act(
        AdapterAction.DELETE, adapter, _place(source, tenant), RemoteServer(url=url, key=key), timeout if wait else None
    )


def _add_verb(action: AdapterAction, text: str) -> None:
    @adapters.command(action.value, help=text)
    def verb(
        adapter: IdArgument,
        source: SourceOption = None,
        tenant: TenantOption = None,
        wait: WaitOption = True,
        timeout: TimeoutOption = 60.0,
        url: UrlOption = DEFAULT_URL,
        key: KeyOption = None,
    ) -> None:
        _act(action, adapter, _place(source, tenant), RemoteServer(url=url, key=key), timeout if wait else None)


for _action, _text in {
    AdapterAction.PRELOAD: "Bring an adapter to the device, so that its first request finds it there.",
    AdapterAction.PIN: "Keep an adapter on the device until it is unpinned, used or not.",
    AdapterAction.UNPIN: "Let a pinned adapter be evicted again.",
    AdapterAction.EVICT: "Take an adapter off the device and the disk; its next request loads it anew.",
    AdapterAction.VERIFY: "Read an adapter's packed image again and compare it with its checksum.",
}.items():
    _add_verb(_action, _text)


def _act(
    action: AdapterAction, adapter: str, place: dict[str, object], server: RemoteServer, timeout_s: float | None
) -> None:
    """Request an action and print the adapter's state; `timeout_s` None does not wait."""
    query = place | ({} if timeout_s is None else {"wait": timeout_s})
    if action is AdapterAction.DELETE:
        reply = _ask("DELETE", server, adapter, query=query, wait_s=timeout_s or 0)
    else:
        reply = _ask("POST", server, adapter, query=query, wait_s=timeout_s or 0, body={"action": action.value})
    info = reply.json()
    is_done = reply.status_code == 200  # 202: the action still runs
    if info["state"] == AdapterState.FAILED and action is not AdapterAction.DELETE:
        fail(info["error"] or f"adapter '{adapter}' has failed")
    if action is AdapterAction.PIN and not info["is_pinned"]:
        fail(info["error"] or f"adapter '{adapter}' is not pinned")
    if action is AdapterAction.VERIFY and info["is_verified"] is False:
        fail(f"the packed image of adapter '{adapter}' is not what its checksum says")
    if not is_done and timeout_s is not None:
        fail(f"{action.value} was begun, but is not done yet; {_standing(info)}")
    say(f"{'done' if is_done else 'begun'}: {_standing(info)}")


def _place(source: str | None, tenant: str | None) -> dict[str, object]:
    """Return the query that names an adapter's source and owner."""
    return {name: value for name, value in (("source", source), ("tenant", tenant)) if value is not None}


def _ask(
    method: str,
    server: RemoteServer,
    adapter: str | None = None,
    *,
    query: dict[str, object],
    wait_s: float = 0.0,
    body: object = None,
) -> "httpx2.Response":
    """Send a request about all adapters, or about one, whose id keeps its slashes in the path."""
    from urllib.parse import quote

    path = "/v1/adapters" if adapter is None else f"/v1/adapters/{quote(_checked(adapter), safe='/')}"
    expects = "data" if adapter is None else "state"
    return server.ask(method, path, expects=expects, query=query, body=body, wait_s=wait_s)


def _checked(adapter: str) -> str:
    """Return an id escaped for a path: unescaped, `..` would name another route."""
    if set(adapter.strip("/").split("/")) & {"", ".", ".."}:
        fail(f"ID must be a name such as support-triage or team/name, its place given by --source. Given: {adapter!r}")
    return adapter


def _print_table(infos: list[Info]) -> None:
    numbers = ("rank", "size", "pins", "pinned", "hits", "last use")
    rows = (
        (
            info["id"],
            info["source"],
            info["tenant"] or "-",
            "deleted" if info["is_deleted"] else info["state"],
            *(_shown(name, info[name]) for name in ("rank", "num_bytes", "pins", "is_pinned", "hits", "last_use_s")),
            info["digest"][:SHORT_DIGEST] or "-",
        )
        for info in infos
    )
    print_table(("id", "source", "tenant", "state", *numbers, "digest"), rows, numbers=numbers)


def _standing(info: Info) -> str:
    whose = f"{info['tenant']}/" if info["tenant"] else ""
    text = f"{info['source']}:{whose}{info['id']} is {info['state']}"
    if info["num_bytes"]:
        text += f", {_size(info['num_bytes'])}"
    if info["is_pinned"]:
        text += ", pinned"
    if info["is_verified"] and info["num_bytes"]:
        text += ", verified"
    if info["pins"]:
        text += f", held by {info['pins']} request{'s' if info['pins'] > 1 else ''}"
    return text


def _shown(name: str, value: object) -> str:
    """Return the text of a field; an unknown value is a dash."""
    match name, value:
        case _, None | "":
            return "-"
        case _, bool():
            return "yes" if value else "no"
        case (("rank" | "num_bytes"), 0):
            return "-"
        case "num_bytes", int():
            return _size(value)
        case "last_use_s", int() | float():
            return f"{_duration(value)} ago"
    return str(value)


def _size(num_bytes: int) -> str:
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= length:
            return f"{num_bytes / length:.1f} {unit}"
    return f"{num_bytes} B"


def _duration(duration_s: float) -> str:
    for unit, length_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if duration_s >= length_s:
            return f"{duration_s / length_s:.0f} {unit}"
    return f"{duration_s:.0f} s"
