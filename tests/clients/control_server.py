"""A control plane on a socket: its folder and base as arguments; prints its address and two keys, and serves."""

import asyncio
import socket
import sys
from pathlib import Path

import uvicorn

from manylora.config.settings import load_config
from manylora.control.app.application import create_control_app
from manylora.control.process.first_start import ensure_first_start
from manylora.control.process.opening import open_control
from manylora.control.tenants.keys import issue_key
from manylora.control.tenants.tenants import create_tenant
from manylora.ids import TenantId
from manylora.tenancy import CUSTOMER_SCOPES


async def serve(folder: Path, base: str) -> None:
    flags = {"model.base": base, "control.dir": str(folder), "adapters.hub_endpoint": ""}
    control = open_control(load_config(flags=flags, environ={}), is_key_needed=True)
    admin_key = await ensure_first_start(control)
    async with control.database.write() as connection:
        await create_tenant(connection, "acme", now_ms=control.now_ms())
        _, key = await issue_key(
            connection,
            control.pepper,
            TenantId("acme"),
            now_ms=control.now_ms(),
            scopes=CUSTOMER_SCOPES,
            name="client",
        )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # from here on a client is not refused
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        print(url, key, admin_key, flush=True)  # noqa: T201 - for who started us
        server = uvicorn.Server(uvicorn.Config(create_control_app(control), log_level="warning"))
        await server.serve(sockets=[listener])
    await control.database.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2]))
