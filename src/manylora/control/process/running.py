"""The running control plane: its first start, its application and its periodic work, until it is closed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI

from manylora.control.app.application import create_control_app
from manylora.control.app.console_middleware import MakeConsole
from manylora.control.control import Control
from manylora.control.deployments.placer import MakePlacer
from manylora.control.process.first_start import ensure_first_start
from manylora.control.process.janitor import Janitor
from manylora.control.process.placed import Stop, placed
from manylora.system.freed_memory import return_large_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningControl:
    """A control plane that is ready to serve.

    admin_key    the operator's first key, at the first start only
    end_replicas ends the replicas of dedicated deployments, which send their last usage to this control plane
    """

    app: FastAPI
    admin_key: str | None
    end_replicas: Stop


@asynccontextmanager
async def running_control(
    control: Control,
    *,
    make_placer: MakePlacer | None = None,
    url: str = "",
    console: MakeConsole | None = None,
) -> AsyncIterator[RunningControl]:
    """Run an opened control plane, in this process's event loop; stop its work and close it at the end.

    Args:  make_placer  makes the placer of dedicated deployments, if the settings ask for one; None: none is placed
           url          address of the control plane for replicas; empty: it has no port of its own
           console      makes the console, if `console.enabled` is on; None: there is none

    Raises `ControlUnavailable` if the database cannot be used.
    """
    return_large_blocks()
    janitor = Janitor(control)
    try:
        admin_key = await ensure_first_start(control)
        janitor.start()
        app = create_control_app(control, console if control.config.console.enabled else None)
        async with placed(control, app, make_placer, url) as end_replicas:
            yield RunningControl(app=app, admin_key=admin_key, end_replicas=end_replicas)
    finally:
        await janitor.stop()
        await control.close()
