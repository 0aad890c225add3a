"""The placing of dedicated deployments beside a running control plane, and the port at which replicas reach it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from fastapi import FastAPI

from manylora.control.control import Control
from manylora.control.deployments.placer import MakePlacer
from manylora.control.process.placing import Placing
from manylora.errors import ConfigInvalid
from manylora.http.listener import listen, url_of
from manylora.http.serving import HttpServer

log = logging.getLogger(__name__)

KEEP_ALIVE_S, CLOSE_WAIT_S = 75, 1
PORT_FILE = "port"

Stop = Callable[[], Coroutine[None, None, None]]


async def nothing() -> None:
    """Stop nothing."""


@asynccontextmanager
async def placed(control: Control, app: FastAPI, make_placer: MakePlacer | None, url: str) -> AsyncIterator[Stop]:
    """Place the dedicated deployments, if the settings have a placer. Yield the function that ends their replicas.

    Args:  app          the application of the control plane
           make_placer  None: nothing is placed
           url          address of the control plane; empty: it has none, and gets a port of this machine alone
    """
    if make_placer is None or control.config.placement.placer == "off":
        yield nothing
        return
    async with AsyncExitStack() as stack:
        if not url:
            url = await stack.enter_async_context(_side_door(control, app))
        placer = await asyncio.to_thread(make_placer, control, url)
        control.placers.append(placer)
        placing = Placing(control, placer)
        placing.start()
        try:
            yield placing.stop
        finally:
            await placing.stop()
            control.placers.remove(placer)
            await placer.close()


@asynccontextmanager
async def _side_door(control: Control, app: FastAPI) -> AsyncIterator[str]:
    """Serve a control plane that lives in a server on a port of 127.0.0.1, and yield its URL.

    The port is that of the last start where it is free, so that replicas that outlived a kill reach it again.
    """
    file = control.folder / "placements" / PORT_FILE
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    listener = listen("127.0.0.1", await asyncio.to_thread(_last_port, file), group="placement")
    await asyncio.to_thread(file.write_text, str(listener.getsockname()[1]), "utf-8")
    server = HttpServer(app, control.config, keep_alive_s=KEEP_ALIVE_S, close_wait_s=CLOSE_WAIT_S)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield url_of(listener)
    finally:
        server.should_exit = True
        await serving
        listener.close()


def _last_port(file: Path) -> int:
    """Return the port of the last start if it is free; 0: any."""
    with suppress(OSError, ValueError, ConfigInvalid):
        port = int(file.read_text(encoding="utf-8"))
        listen("127.0.0.1", port, group="placement").close()
        return port
    return 0
