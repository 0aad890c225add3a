"""Whether the control plane answers, for whoever watches it: asked of the database, not only of the process."""

from fastapi import APIRouter
from pydantic import BaseModel

from manylora.control.control import Control
from manylora.control.storage.revisions import last_revision


class Health(BaseModel):
    """`revision`: the number of the last change that servers have to know of."""

    status: str
    revision: int


def health_room(control: Control) -> APIRouter:
    room = APIRouter(tags=["health"])

    @room.get("/health")
    async def health() -> Health:
        """200 while the database answers, else 503; needs no key. Inside `manylora serve` the server has its own."""
        async with control.database.read() as connection:
            return Health(status="ok", revision=await last_revision(connection))

    return room
