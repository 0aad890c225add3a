"""Routes of uploads: `/v2/adapters/upload…`, also under `/v1`. The addresses of files are signed and need no key."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from manylora.control.control import Control
from manylora.control.http.registry_schemas import EndOfUpload, Json, NewUpload, version_json
from manylora.control.registry.upload_files import read_range
from manylora.control.registry.uploads import FILES, UploadFacts
from manylora.control.routes.dependencies import ActorDep, CallerDep, ControlDep, UploadsDep, requires
from manylora.control.tenants.callers import has_edge_token
from manylora.http.callers import Caller
from manylora.tenancy import Scope

MAX_LENGTH_DIGITS = 19

routes = APIRouter(tags=["registry"])


@routes.post("/v2/adapters/upload", dependencies=requires(Scope.UPLOAD))
@routes.post("/v2/adapters/upload/", dependencies=requires(Scope.UPLOAD))
async def begin(
    request: Request, control: ControlDep, uploads: UploadsDep, caller: CallerDep, actor: ActorDep, body: NewUpload
) -> Json:
    """Begin an upload: an address for each file, valid without a key until it expires.

    With `alias`, which the reply repeats, the version has that alias from its first moment.
    """
    upload, facts = await uploads.begin(caller, actor, body.repo, body.alias)
    here = f"{_outer_url(control, request)}/v2/adapters/upload/{facts.tenant}/{upload}"
    return {
        "presignedUrls": {name: f"{here}/{name}?signature={uploads.sign(upload, facts, name)}" for name in FILES},
        "uploadToken": uploads.token(upload, facts),
        "requiredHeaders": {},
        **({} if facts.alias is None else {"alias": facts.alias}),
    }


@routes.put("/v2/adapters/upload", dependencies=requires(Scope.UPLOAD))
@routes.put("/v2/adapters/upload/", dependencies=requires(Scope.UPLOAD))
async def complete(uploads: UploadsDep, caller: CallerDep, actor: ActorDep, body: EndOfUpload) -> Json:
    """End an upload: its files are checked, and become the repository's next version."""
    repository, number = await uploads.complete(caller, actor, body.upload_token)
    return version_json(repository, repository.find(str(number)))


async def _signed_upload(
    request: Request, uploads: UploadsDep, tenant: str, upload: str, file: str, signature: str = ""
) -> UploadFacts:
    """Return the upload of a signed address, whose key counts as the caller. Raise `InsufficientPermissions`."""
    facts = uploads.allowed(tenant, upload, file, signature)
    request.state.caller = Caller(tenant=facts.tenant, key=facts.key, scopes=())
    return facts


UploadDep = Annotated[UploadFacts, Depends(_signed_upload)]
ADDRESS = "/v2/adapters/upload/{tenant}/{upload}/{file}"


@routes.put(ADDRESS)
async def put(request: Request, uploads: UploadsDep, facts: UploadDep, upload: str, file: str) -> Json:
    """Send a file: all of it, or with `Content-Range` the part that begins at its end so far."""
    length = request.headers.get("content-length", "")
    declared = int(length) if length.isdecimal() and len(length) < MAX_LENGTH_DIGITS else None
    part = read_range(request.headers.get("content-range"))
    offset = await uploads.write(facts, upload, file, part, _received(request), declared)
    return {"file": file, "offset": offset}


@routes.head(ADDRESS, include_in_schema=False)
@routes.get(ADDRESS)
async def look(uploads: UploadsDep, facts: UploadDep, upload: str, file: str) -> Response:
    """Tell the size of the file so far, in the body and as `upload-offset`."""
    offset = uploads.received_bytes(facts, upload, file)
    body = {"file": file, "offset": offset, "maxBytes": await uploads.max_bytes(facts, upload, file)}
    return JSONResponse(body, headers={"upload-offset": str(offset)})


def _outer_url(control: Control, request: Request) -> str:
    """Return the URL that clients reach: the configured one, that of the edge, or that of this request.

    `http/origins.py` has checked `Host` and the headers of trusted proxies; headers of others are ignored.
    """
    if control.config.server.public_url:
        return control.config.server.public_url.rstrip("/")
    headers = request.headers
    if has_edge_token(control.edge_token, headers):
        outer = {name: headers.get(f"x-forwarded-{name}", "") for name in ("proto", "host", "prefix")}
        return f"{outer['proto']}://{outer['host']}{outer['prefix']}"
    return f"{request.url.scheme}://{headers.get('host') or request.url.netloc}"


async def _received(request: Request) -> AsyncIterator[bytes]:
    """Yield the body. Raise `ConnectionError` if the client disconnects."""
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect as error:
        raise ConnectionError from error


router = APIRouter()
router.include_router(routes)
router.include_router(routes, prefix="/v1")
