"""Adapters: repositories with their versions and ingest reports, uploads in resumable parts, aliases and deletions."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from manylora.console.api import Api, in_path
from manylora.console.forms import bounded_body
from manylora.console.page import ConsolePage, OwnPage
from manylora.console.rendering import PAGE_HEADERS
from manylora.console.repositories import OWN as REPOS
from manylora.console.repositories import deletable, not_yours, seen
from manylora.console.residency import states_of, together
from manylora.console.visitors import ROOT
from manylora.tenancy import called_adapter

router = APIRouter(prefix=f"{ROOT}/adapters")
UPLOAD = "/v2/adapters/upload"
PAGE_SIZE = 50
RECENT = 20
"""Rows of the audit table among which the page of a deletion looks for its own."""
MOST_JSON = 65_536
WHOLE = 100
MOST_ARMS = 8


@router.get("")
async def adapters(page: OwnPage) -> Response:
    """List repositories, with the requests of this month to each version."""
    found = await page.api.get(REPOS, limit=PAGE_SIZE, after=page.query("after") or None, shared="true")
    hits, listed = await _hits(page), found["data"]["repos"]
    own = {repo["name"]: _used_names(repo) for repo in listed if repo["owner"] == page.visitor.tenant}
    names = [name for some in own.values() for name in some]
    states = await states_of(page.api, page.visitor, page.visitor.tenant, names)
    repos = []
    for repo in listed:
        called = _called(page, repo["owner"], repo["name"])
        repos.append(
            {
                **repo,
                "hits": sum(requests for name, requests in hits.items() if name.rpartition("/")[0] == called),
                "place": together(states[name] for name in own.get(called, ()) if name in states),
            }
        )
    return page.render("adapters.html", repos=repos, after=found["data"]["after"], error="")


def _used_names(repo: Mapping[str, Any]) -> list[str]:
    """Return the versions that requests for a repository get: the newest, and those of its aliases."""
    newest = [each["tag"] for each in repo["versions"] if not each["archived"]][-1:]
    return [f"{repo['name']}/{tag}" for tag in dict.fromkeys([*newest, *repo["aliases"].values()])]


@router.get("/{owner}/{repo}")
async def repository(page: OwnPage, owner: str, repo: str) -> Response:
    return await shown_repository(page, owner, repo)


@router.get("/{owner}/{repo}/{tag}")
async def version(page: OwnPage, owner: str, repo: str, tag: str) -> Response:
    """Show a version with its ingest report: every tensor that is applied, or left out and why."""
    at = seen(page.visitor, owner, repo)
    found = await page.api.get(f"{at.path}/version{in_path(tag)}", **at.query)
    name = f"{repo}/{found['tag']}"
    place = (await states_of(page.api, page.visitor, owner, [name])).get(name)
    return page.render("version.html", found=found, report=found["report"], owner=owner, repo=repo, place=place)


@router.post("/{owner}/{repo}/{tag}/delete")
async def delete(page: OwnPage, owner: str, repo: str, tag: str) -> Response:
    """Delete a version, and show the row of the audit table as the receipt."""
    await page.form()
    path = f"{deletable(page.visitor, owner, repo)}/version{in_path(tag)}"
    shown = await page.api.get(path)
    reply = await page.api.call("DELETE", path)
    audit, of = ("/v1/account/audit", None) if owner == page.visitor.tenant else ("/admin/audit", owner)
    rows = (await page.api.get(audit, tenant=of, verb="delete", limit=RECENT))["audit"]
    receipt = next((row for row in rows if row["request_id"] == reply.headers.get("x-request-id")), None)
    return page.render("receipt.html", found=shown, receipt=receipt, owner=owner, repo=repo)


@router.post("/upload")
async def begin(page: OwnPage) -> Response:
    """Begin an upload for the script of the page; the files then go to the addresses in the reply."""
    page.require_own()
    wanted = await _json(page)
    reply = await page.api.ask("POST", REPOS, {"name": wanted.get("repo", ""), "exists_ok": True})
    if reply.is_ok:
        alias = {"alias": wanted["alias"]} if wanted.get("alias") else {}
        reply = await page.api.ask("POST", UPLOAD, {"repo": wanted["repo"], **alias})
    if not reply.is_ok:
        return _told(page, {"error": reply.error}, reply.status)
    begun = reply.json
    files = {name: f"{ROOT}/adapters/upload{url.partition(UPLOAD)[2]}" for name, url in begun["presignedUrls"].items()}
    return _told(page, {"files": files, "token": begun["uploadToken"]})


@router.post("/upload/end")
async def complete(page: OwnPage) -> Response:
    """End an upload: its files are checked, and become the next version."""
    page.require_own()
    reply = await page.api.ask("PUT", UPLOAD, {"uploadToken": (await _json(page)).get("token", "")})
    if not reply.is_ok:
        return _told(page, {"error": reply.error}, reply.status)
    made = reply.json
    return _told(page, {"page": f"{ROOT}/adapters{in_path(made['owner'], made['repo'], str(made['tag']))}"})


@router.put("/upload/{tenant}/{upload}/{file}")
async def put_part(page: OwnPage, tenant: str, upload: str, file: str) -> Response:
    """Pass a part of a file on, as it arrives."""
    page.require_own()
    return PassedOn(page.api, "PUT", _own_upload(page, tenant, upload, file))


@router.get("/upload/{tenant}/{upload}/{file}")
async def look(page: OwnPage, tenant: str, upload: str, file: str) -> Response:
    """Tell how much of a file has arrived, so that its upload goes on from there."""
    return PassedOn(page.api, "GET", _own_upload(page, tenant, upload, file))


def _own_upload(page: ConsolePage, tenant: str, upload: str, file: str) -> str:
    """Return the path of a file of the visitor's own upload. Raise `Refused` for another tenant's."""
    if tenant != page.visitor.tenant:
        raise not_yours()
    return UPLOAD + in_path(tenant, upload, file)


class PassedOn(Response):
    """The API's own reply to the visitor's request, as a stream in both directions."""

    def __init__(self, api: Api, method: str, path: str) -> None:
        self._api, self._method, self._path = api, method, path
        super().__init__()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._api.pass_on(self._method, self._path, dict(scope), receive, send)  # type: ignore[arg-type]  # ASGI's types differ by library


async def shown_repository(page: ConsolePage, owner: str, repo: str, *, error: str = "") -> Response:
    """Return the page of a repository: its versions, and the shares of its aliases for its owner."""
    at = seen(page.visitor, owner, repo)
    found = await page.api.get(at.path, **at.query)
    plain = {
        alias: {"weights": {str(tag): WHOLE}, "sticky": None, "shadow": None} for alias, tag in found["aliases"].items()
    }
    names = [f"{found['name']}/{each['tag']}" for each in reversed(found["versions"])]
    hits, called = await _hits(page), _called(page, owner, found["name"])
    return page.render(
        "repository.html",
        status=400 if error else 200,
        repo=found,
        rules=plain | found.get("rollouts", {}),
        shared_out=[each["tag"] for each in reversed(found["versions"]) if not each["archived"]][:MOST_ARMS],
        hits={tag: hits[f"{called}/{tag}"] for tag in (each["tag"] for each in found["versions"])},
        places=await states_of(page.api, page.visitor, owner, names),
        is_own=owner == page.visitor.tenant,
        is_deletable=owner == page.visitor.tenant or page.visitor.is_operator,
        error=error,
        done=page.query("done"),
    )


async def _hits(page: ConsolePage) -> Counter[str]:
    """Return this month's requests to each version by its name in the visitor's usage; merged ones have one each."""
    report = await page.api.get("/v1/account/usage", by="adapter", zone=page.zone)
    found = Counter[str]()
    for row in report["usage"]:
        found.update(dict.fromkeys((row["names"][0] or "").split(","), row["requests"]))
    return found


def _called(page: ConsolePage, owner: str, repo: str) -> str:
    """Return a repository's name in the visitor's usage: after its owner's name if that is another tenant."""
    return called_adapter(page.visitor.tenant, repo, owner) or repo


async def _json(page: ConsolePage) -> dict[str, Any]:
    """Return the JSON object of a script's call; an empty one for any other body."""
    try:
        found = json.loads(await bounded_body(page.request, MOST_JSON))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _told(page: ConsolePage, body: dict[str, Any], status: int = 200) -> Response:
    return page.finished(JSONResponse(body, status_code=status, headers=dict(PAGE_HEADERS)))
