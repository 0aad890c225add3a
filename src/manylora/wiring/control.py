"""The control plane inside the server's process. `manylora serve` opens it unless the settings name another's URL."""

import asyncio
from contextlib import AsyncExitStack

from manylora.config.settings import Config
from manylora.control.process.opening import open_control
from manylora.control.process.running import running_control
from manylora.server.app.control_session import HostedControl


async def host_control(config: Config, is_key_needed: bool) -> HostedControl:
    """Open and run the control plane of the settings. Raises `ConfigInvalid`, `ControlUnavailable`."""
    control = await asyncio.to_thread(open_control, config, is_key_needed=is_key_needed)
    stack = AsyncExitStack()
    running = await stack.enter_async_context(running_control(control))
    return HostedControl(
        app=running.app,
        edge_token=control.edge_token,
        admin_key=running.admin_key,
        close=stack.aclose,
    )
