"""OpenAI's routes of files: POST and GET /v1/files, GET and DELETE of one, and GET of its content."""

from pathlib import Path

from fastapi import APIRouter

from manylora.clock import Clock
from manylora.errors import InvalidParameter, RouteNotBuilt
from manylora.server.http.context import HttpContext
from manylora.server.http.form import FormPart, FormReader
from manylora.server.http.routing import Guards, OtherReply, Parameter, Routes
from manylora.server.routes.openai.pages import page_of, page_parameters
from manylora.server.schemas.openai.stored import (
    LONGEST_LIFE_S,
    SHORTEST_LIFE_S,
    DeletedReply,
    FilePage,
    FileReply,
)
from manylora.server.storage.files import TenantFiles
from manylora.stored.files import BATCH_PURPOSE, StoredFile
from manylora.system.printable import printable

MOST_OF_A_PAGE = 10_000
FORM_ROOM = 1 << 20
"""Bytes of a form beside the file."""
MAX_NAME = 255
_ID = Parameter("file_id", "path", "The file's id")
_FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")


def file_routers(routes: "FileRoutes", guards: Guards, clock: Clock) -> tuple[APIRouter, ...]:
    """Return the routers of files: those that read no body, and the others."""
    plain = Routes(APIRouter(dependencies=guards.keyed), clock)
    plain.add(
        "GET /v1/files",
        routes.list_page,
        "The files of the tenant",
        replies={200: FilePage},
        parameters=[
            Parameter("purpose", "query", "The purpose of files"),
            Parameter("order", "query", "asc or desc, by the time of creation; default desc"),
            *page_parameters(MOST_OF_A_PAGE),
        ],
    )
    plain.add(
        "POST /v1/files",
        routes.upload,
        "Upload the input of a batch",
        replies={200: FileReply},
        parameters=[
            Parameter("file", "form", "The file, one JSON object a line"),
            Parameter("purpose", "form", "`batch`"),
            Parameter("expires_after[anchor]", "form", "`created_at`"),
            Parameter("expires_after[seconds]", "form", f"Seconds until the deletion, from {SHORTEST_LIFE_S:,} on"),
        ],
    )
    plain.add("GET /v1/files/{file_id}", routes.show, "A file", replies={200: FileReply}, parameters=[_ID])
    content: dict[int, object] = {200: OtherReply("The bytes of the file", ("application/octet-stream",))}
    plain.add(
        "GET /v1/files/{file_id}/content", routes.content, "The bytes of a file", replies=content, parameters=[_ID]
    )
    changing = Routes(APIRouter(dependencies=guards.with_body), clock)
    changing.add(
        "DELETE /v1/files/{file_id}", routes.delete, "Delete a file", replies={200: DeletedReply}, parameters=[_ID]
    )
    return plain.router, changing.router


class FileRoutes:
    """The handlers of the routes of files."""

    def __init__(self, files: TenantFiles | None) -> None:
        """Without files, every route replies that the server has none."""
        self._own_files = files

    @property
    def _files(self) -> TenantFiles:
        if self._own_files is None:
            raise RouteNotBuilt("this server keeps no files")
        return self._own_files

    async def list_page(self, context: HttpContext) -> None:
        query, files = context.query, await self._files.of(context.arrival.tenant)
        if purpose := query.get("purpose"):
            files = [file for file in files if file.purpose == purpose]
        if (order := query.get("order", "desc")) not in ("asc", "desc"):
            raise InvalidParameter("`order` must be asc or desc", parameter="order")
        if order == "desc":
            files.reverse()
        page = page_of(
            files, query, shown_file, id_of=lambda file: file.id, default=MOST_OF_A_PAGE, most=MOST_OF_A_PAGE
        )
        await context.reply(page)

    async def upload(self, context: HttpContext) -> None:
        """Store the file of a form. Its fields may stand before or behind the file."""
        fields = dict[str, str]()
        async with await self._files.receive(context.arrival.tenant) as incoming:
            max_bytes = incoming.max_bytes + FORM_ROOM
            form = FormReader(context.header("content-type"), context.body_parts(), max_bytes=max_bytes)
            name: str | None = None
            while (part := await form.part()) is not None:
                if part.name == "file":
                    name = _file_name(part, name)
                    async for piece in form.content():
                        await incoming.write(piece)
                else:
                    _require_field(part)
                    fields[part.name] = await form.text(part.name)
            if name is None:
                raise InvalidParameter("the form has no `file`", parameter="file")
            purpose, lifetime_s = _purpose(fields), _lifetime_s(fields)
            file = await incoming.keep(name=name, purpose=purpose, lifetime_s=lifetime_s)
        await context.reply(shown_file(file))

    async def show(self, context: HttpContext) -> None:
        await context.reply(shown_file(await self._file(context)))

    async def content(self, context: HttpContext) -> None:
        file = await self._file(context)
        chunks = self._files.chunks(context.arrival.tenant, file.id)
        await context.reply_chunks(chunks, "application/octet-stream", file.size)

    async def delete(self, context: HttpContext) -> None:
        file_id = context.path_parameters["file_id"]
        await self._files.delete(context.arrival.tenant, file_id)
        await context.reply({"id": file_id, "object": "file", "deleted": True})

    async def _file(self, context: HttpContext) -> StoredFile:
        return await self._files.get(context.arrival.tenant, context.path_parameters["file_id"])


def shown_file(file: StoredFile) -> dict[str, object]:
    """Return a file in OpenAI's form."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": file.created_ms // 1000,
        "expires_at": file.expires_ms // 1000,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
    }


def _file_name(part: FormPart, before: str | None) -> str:
    if before is not None:
        raise InvalidParameter("the form has two parts `file`", parameter="file")
    if part.file_name is None:
        raise InvalidParameter("`file` must be a file, with a `filename`", parameter="file")
    return printable(Path(part.file_name).name[:MAX_NAME]) or "upload"


def _require_field(part: FormPart) -> None:
    if part.name not in _FIELDS:
        name = printable(part.name[:80])
        raise InvalidParameter(f"`{name}` is not a known field: it has file, {', '.join(_FIELDS)}", parameter=name)


def _purpose(fields: dict[str, str]) -> str:
    purpose = fields.get("purpose")
    if purpose != BATCH_PURPOSE:
        given = "nothing" if purpose is None else repr(purpose[:80])
        raise InvalidParameter(f"`purpose` must be {BATCH_PURPOSE}. Given: {given}", parameter="purpose")
    return purpose


def _lifetime_s(fields: dict[str, str]) -> float | None:
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidParameter("`expires_after[anchor]` must be created_at", parameter="expires_after[anchor]")
    is_whole = seconds is not None and seconds.isascii() and seconds.isdigit() and len(seconds) < 10
    if seconds is None or not is_whole or not SHORTEST_LIFE_S <= int(seconds) <= LONGEST_LIFE_S:
        raise InvalidParameter(
            f"`expires_after[seconds]` must be >= {SHORTEST_LIFE_S} and <= {LONGEST_LIFE_S}",
            parameter="expires_after[seconds]",
        )
    return float(seconds)
