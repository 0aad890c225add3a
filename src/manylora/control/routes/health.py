"""Route `/health` of a control plane of its own; inside `manylora serve` the server answers that path."""

from fastapi import APIRouter
from pydantic import BaseModel

from manylora.control.routes.dependencies import ControlDep
from manylora.control.storage.revisions import last_revision


class ControlHealth(BaseModel):
    """`revision`: the number of the last change that servers have to know of."""

    status: str
    revision: int


router = APIRouter(tags=["health"])


@router.get("/health")
async def health(control: ControlDep) -> ControlHealth:
    """Tell whether the database answers: 200, else 503. Inside `manylora serve` the server has its own."""
    async with control.database.read() as connection:
        return ControlHealth(status="ok", revision=await last_revision(connection))
