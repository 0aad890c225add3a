"""`manylora repos`: repositories of uploaded adapters on a running server."""

import json as json_library
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manylora.cli.remote.client import DEFAULT_URL, JsonOption, KeyOption, LimitOption, RemoteServer, UrlOption, path_of
from manylora.cli.remote.output import fail, print_fields, print_table, say, shown
from manylora.cli.remote.repo_uploads import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Info,
    files_of,
    is_open,
    send,
    unfinished_upload,
)
from manylora.cli.remote.report import print_report

if TYPE_CHECKING:
    import httpx2

REPOS, UPLOAD, ADMIN = "/v2/repos", "/v2/adapters/upload", "/admin/repos"
CHECK_WAIT_S = 150.0
"""Limit of a reply; the server answers the end of an upload after its check."""

RepoArgument = Annotated[str, typer.Argument(metavar="REPO", help="The repository's name or UUID.")]
TenantOption = Annotated[
    str | None, typer.Option("--tenant", help="Owner, with the operator's key. Default: the key's own tenant.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation.")]

repos = typer.Typer(no_args_is_help=True, help="Upload adapters to a running server, and see and manage them.")


@repos.command("ls")
def list_repositories(
    with_shared: Annotated[bool, typer.Option("--shared", help="Also those shared with you.")] = False,
    limit: LimitOption = 1000,
    tenant: TenantOption = None,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """List the repositories."""
    if tenant is not None and with_shared:
        fail("--shared lists what the key's own tenant may use; --tenant lists one tenant's own")
    path = REPOS if tenant is None else ADMIN
    query: dict[str, object] = {"shared": str(with_shared).lower()} if tenant is None else {"tenant": tenant}
    reply = _ask(url, key, "GET", path, expects="data", query={"limit": limit, **query})
    if json:
        typer.echo(reply.text)
        return
    rows = [
        (
            each["name"],
            each["owner"],
            "public" if each["public"] else "shared" if each.get("sharedWith") else "private",
            str(len(each["versions"])),
            str(each["versions"][-1]["tag"]) if each["versions"] else "-",
            _aliases(each),
            each["description"],
        )
        for each in reply.json()["data"]["repos"]
    ]
    print_table(("name", "owner", "access", "versions", "newest", "aliases", "description"), rows)


@repos.command()
def show(
    repo: RepoArgument,
    version: Annotated[
        int | None, typer.Option(min=1, help="Show the ingest report of this version. Default: the newest one's.")
    ] = None,
    owner: Annotated[str | None, typer.Option(help="Owner that shares it with you. Default: your own tenant.")] = None,
    tenant: TenantOption = None,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Show a repository, its versions, and the ingest report of one; with --json and --version that version alone."""
    query: dict[str, object] = {"owner": owner} if owner else {}
    if json:
        typer.echo(_ask(url, key, "GET", _path(repo, *_of(version), tenant=tenant), query=query).text)
        return
    info = _ask(url, key, "GET", _path(repo, tenant=tenant), query=query).json()
    _print_repository(info)
    if version is None and info["versions"]:
        version = max(each["tag"] for each in info["versions"])
    if version is not None:
        found = _ask(url, key, "GET", _path(repo, *_of(version), tenant=tenant), query=query).json()
        typer.echo("")
        say(f"ingest of version {found['tag']}")
        print_report(found.get("report"))


def _print_repository(info: Info) -> None:
    named = {name: info[name] for name in ("name", "uuid", "owner", "description", "public", "createdAt")}
    named |= {"aliases": _aliases(info), "sharedWith": ", ".join(info.get("sharedWith", []))}
    print_fields({name: shown(value) for name, value in named.items()})
    typer.echo("")
    rows = [
        (
            str(each["tag"]),
            _state(each),
            each["baseModel"],
            str(each["rank"]),
            _size(each["bytes"]),
            each["createdAt"],
            "",
        )
        for each in info["versions"]
    ]
    for each in info.get("unfinished", []):
        why = (each.get("finetuningJob") or {}).get("error") or ""
        rows.append((str(each["tag"]), each["state"], each["baseModel"] or "-", "-", "-", "-", why))
    print_table(("version", "state", "base", "rank", "size", "created", "error"), rows)


@repos.command()
def create(
    repo: RepoArgument,
    description: Annotated[str, typer.Option(help="Purpose of the repository.")] = "",
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Make a repository. It is private."""
    reply = _ask(url, key, "POST", REPOS, {"name": repo, "description": description})
    typer.echo(reply.text) if json else say(f"made: {reply.json()['name']}")


@repos.command()
def upload(
    repo: RepoArgument,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help=f"A folder with {CONFIG_FILE} and {WEIGHTS_FILE}; its text files are uploaded too.",
        ),
    ],
    alias: Annotated[str | None, typer.Option(help="Let this alias mean the new version, once it is ready.")] = None,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Upload an adapter as the repository's next version.

    The upload continues after a broken connection. The same command continues an interrupted upload.
    """
    files, body = files_of(folder), {"repo": repo} | ({} if alias is None else {"alias": alias})
    with unfinished_upload(url, repo, alias, files) as state:
        begun = state.get("begun")
        if begun is None or not is_open(begun):
            begun = state["begun"] = _ask(url, key, "POST", UPLOAD, body, expects="presignedUrls").json()
        if begun.get("alias") != alias:
            fail(f"the server at {url} is of an older release, where --alias is set after the upload: `repos alias`")
        for name, file in files.items():
            if name not in begun["presignedUrls"]:
                say(f"this server takes no {name}; it is left out", err=True)
                continue
            send(begun["presignedUrls"][name], file)
        token = {"uploadToken": begun["uploadToken"]}
        state["begun"] = None  # the token works once
        reply = _ask(url, key, "PUT", UPLOAD, token)
    info = reply.json()
    named = "" if alias is None else f", which `{alias}` means now"
    typer.echo(reply.text) if json else say(f"done: {info['repo']}/{info['tag']}, {_size(info['bytes'])}{named}")


@repos.command()
def share(
    repo: RepoArgument,
    tenants: Annotated[list[str] | None, typer.Argument(metavar="TENANT...", help="Tenants that may use it.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="End their shares.")] = False,
    public: Annotated[bool | None, typer.Option("--public/--private", help="Let every tenant use it, or not.")] = None,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Let other tenants use a repository; only its owner can change or download it."""
    if not tenants and public is None:
        fail("name tenants, or give --public or --private")
    taken = [_path(repo, "shares", tenant) for tenant in tenants or ()] if remove else []
    if tenants and not remove:  # first: the server refuses all of them if one is invalid
        _ask(url, key, "POST", _path(repo, "shares"), {"tenants": tenants})
    for path in taken:
        _ask(url, key, "DELETE", path)
    if public is not None:
        _ask(url, key, "PUT", _path(repo), {"public": public})
    reply = _ask(url, key, "GET", _path(repo))
    if json:
        typer.echo(reply.text)
        return
    info = reply.json()
    others = ", ".join(info["sharedWith"]) or "no tenant"
    say(f"done: {info['name']} is {'public' if info['public'] else f'private, shared with {others}'}")


@repos.command()
def alias(
    repo: RepoArgument,
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="Such as prod.")],
    version: Annotated[int | None, typer.Argument(metavar="VERSION", min=1, help="The version that it means.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias.")] = False,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Let an alias mean a version, or remove it. The change is atomic for requests."""
    path = _path(repo, "aliases", name)
    if remove == (version is not None):
        fail("give either VERSION or --remove")
    if remove:
        _ask(url, key, "DELETE", path)
    else:
        _ask(url, key, "PUT", path, {"version": version})
    if json:
        typer.echo(_ask(url, key, "GET", _path(repo)).text)
        return
    say(f"done: {repo}/{name} " + ("is gone" if remove else f"is {repo}/{version}"))


@repos.command()
def archive(
    repo: RepoArgument,
    version: Annotated[
        int | None, typer.Argument(metavar="VERSION", min=1, help="Its number; with --tenant, default: all of them.")
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Bring it back.")] = False,
    tenant: TenantOption = None,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Hide a version from requests; its files stay, and --undo brings it back."""
    if tenant is not None:
        path = _path(repo, *_of(version), tenant=tenant)
        reply = _ask(url, key, "POST", f"{path}/{'unarchive' if undo else 'archive'}")
    elif version is None:
        fail("say which VERSION")
    else:
        reply = _ask(url, key, "PUT", _path(repo, *_of(version)), {"archived": not undo})
    done = "" if json else f"done: {_standing(repo, version, reply.json(), is_archived=not undo)}"
    typer.echo(reply.text) if json else say(done)


@repos.command()
def rm(
    repo: RepoArgument,
    version: Annotated[int | None, typer.Argument(metavar="VERSION", min=1, help="Default: all of them.")] = None,
    tenant: TenantOption = None,
    yes: YesOption = False,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Delete a version, or a repository with all its versions. Their numbers are never used again."""
    what = repo if version is None else f"{repo}/{version}"
    whose = "" if tenant is None else f" of {tenant}"
    if not yes:
        typer.confirm(f"Delete {what}{whose} at {url} for ever?", abort=True)
    _ask(url, key, "DELETE", _path(repo, *_of(version), tenant=tenant))
    typer.echo(json_library.dumps({"deleted": what})) if json else say(f"done: {what} is deleted")


@repos.command()
def clear(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="A tenant that is closed.")],
    yes: YesOption = False,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Delete all that a closed tenant has uploaded, with the operator's key."""
    if not yes:
        typer.confirm(f"Delete every repository of {tenant} at {url} for ever?", abort=True)
    _ask(url, key, "DELETE", ADMIN + path_of(tenant))
    done = f"done: every repository of {tenant} is deleted"
    typer.echo(json_library.dumps({"deleted": tenant})) if json else say(done)


def _state(version: Info) -> str:
    """Return `ready`, or the makers of a version's archives."""
    if not version["archived"]:
        return "ready"
    return f"archived by {' and '.join(version.get('archivedBy') or ['owner'])}"


def _standing(repo: str, number: int | None, info: Info, *, is_archived: bool) -> str:
    """Return the state of one version, or of all of a repository. `is_archived`: the requested state."""
    versions, what = (info["versions"], repo) if number is None else ([info], f"{repo}/{number}")
    if all(each["archived"] is is_archived for each in versions):
        return f"{what} is {'archived' if is_archived else 'ready'}"
    states = [_state(each) for each in versions]
    return f"{what} has " + ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _ask(
    url: str,
    key: str | None,
    method: str,
    path: str,
    body: object = None,
    *,
    expects: str = "owner",
    query: dict[str, object] | None = None,
) -> "httpx2.Response":
    server = RemoteServer(url=url, key=key)
    return server.ask(method, path, expects=expects, query=query, body=body, wait_s=CHECK_WAIT_S)


def _path(*parts: str, tenant: str | None = None) -> str:
    """Return the path of a repository; with a tenant, the operator's."""
    return REPOS + path_of(*parts) if tenant is None else ADMIN + path_of(tenant, *parts)


def _of(version: int | None) -> tuple[str, ...]:
    return () if version is None else ("version", str(version))


def _aliases(info: Info) -> str:
    return ", ".join(f"{name} → {version}" for name, version in info["aliases"].items())


def _size(num_bytes: int) -> str:
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= length:
            return f"{num_bytes / length:.1f} {unit}"
    return f"{num_bytes} B"
