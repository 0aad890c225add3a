"""The running control plane: its first start, its application and its periodic work, until it is closed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI

from manylora.control.app.application import create_control_app
from manylora.control.control import Control
from manylora.control.process.first_start import ensure_first_start
from manylora.control.process.janitor import Janitor


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningControl:
    """A control plane that is ready to serve. admin_key: the operator's first key, at the first start only."""

    app: FastAPI
    admin_key: str | None


@asynccontextmanager
async def running_control(control: Control) -> AsyncIterator[RunningControl]:
    """Run an opened control plane, in this process's event loop; stop its work and close it at the end.

    Raises `ControlUnavailable` if the database cannot be used.
    """
    janitor = Janitor(control)
    try:
        admin_key = await ensure_first_start(control)
        janitor.start()
        yield RunningControl(app=create_control_app(control), admin_key=admin_key)
    finally:
        await janitor.stop()
        await control.close()
