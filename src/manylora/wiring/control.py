"""The control plane inside the server's process. `manylora serve` opens it unless the settings name another's URL."""

import asyncio
from contextlib import AsyncExitStack

from manylora.config.settings import Config
from manylora.control.process.opening import open_control
from manylora.control.process.running import running_control
from manylora.control.tenants.signup import unknown_signup_bases
from manylora.errors import ConfigInvalid
from manylora.server.app.control_session import HostedControl
from manylora.wiring.placer.local_placer import place_locally


async def host_control(config: Config, is_key_needed: bool) -> HostedControl:
    """Open and run the control plane of the settings.

    Raises `ConfigInvalid`, also for sign-ups' limits of a base that is not served and has no price;
    `ControlUnavailable`.
    """
    control = await asyncio.to_thread(open_control, config, is_key_needed=is_key_needed)
    stack = AsyncExitStack()
    running = await stack.enter_async_context(running_control(control, make_placer=place_locally))
    for message in await unknown_signup_bases(control):
        await stack.aclose()
        raise ConfigInvalid(message)
    return HostedControl(
        app=running.app,
        edge_token=control.edge_token,
        admin_key=running.admin_key,
        close=stack.aclose,
    )
