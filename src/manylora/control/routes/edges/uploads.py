"""Files of uploaded adapters for engines on other machines, `/internal/uploads/…`: whole, or in parts by `Range`."""

import asyncio
from pathlib import Path

from fastapi import APIRouter, Depends
from starlette.responses import FileResponse, Response

from manylora.adapters.sources.source import PARTS, TEXT_FILES
from manylora.adapters.sources.upload_folders import NEWEST, UPLOADS_PATH, Registry, digest_header, read_sums
from manylora.control.routes.dependencies import ControlDep
from manylora.control.routes.edges.internal import require_edge

router = APIRouter(prefix=f"/{UPLOADS_PATH}", include_in_schema=False, dependencies=[Depends(require_edge)])


@router.api_route("/{tenant}/{repository}/{version}/{name}", methods=["GET", "HEAD"])
async def file(control: ControlDep, tenant: str, repository: str, version: str, name: str) -> Response:
    """Return a file of a version that is not archived; 404 for any other. Its content never changes."""
    asked = repository if version == NEWEST else f"{repository}/{version}"
    found = await asyncio.to_thread(_find, Registry(control.registry_dir), tenant, asked, name)
    if found is None:
        return Response(status_code=404)
    path, sha256 = found
    marks = {} if sha256 is None else {"etag": f'"{sha256}"', "repr-digest": digest_header(sha256)}
    return FileResponse(path, headers=marks)


def _find(registry: Registry, tenant: str, asked: str, name: str) -> tuple[Path, str | None] | None:
    """Return a file and its SHA-256, which uploads of older releases lack; None if there is no such file."""
    if name not in (*PARTS, *TEXT_FILES) or not registry.has(tenant, asked):
        return None
    folder = registry.folder(tenant, asked)
    path = folder / name
    return (path, read_sums(folder).get(name)) if path.is_file() else None
