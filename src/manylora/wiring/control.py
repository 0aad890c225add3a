"""The control plane inside the server's process: what `manylora serve` opens unless it belongs to another."""

import asyncio

from manylora.config.settings import Config
from manylora.control.app.application import create_control_app
from manylora.control.process.first_start import ensure_first_start
from manylora.control.process.janitor import Janitor
from manylora.control.process.opening import open_control
from manylora.server.app.control_session import HostedControl


async def host_control(config: Config, is_key_needed: bool) -> HostedControl:
    """Open the control plane of the settings. Raises `ConfigInvalid`, `ControlUnavailable`."""
    control = await asyncio.to_thread(open_control, config, is_key_needed=is_key_needed)
    caretaker = Janitor(control)

    async def close() -> None:
        await caretaker.stop()
        await control.close()

    try:
        admin_key = await ensure_first_start(control)
        caretaker.start()
        return HostedControl(
            app=create_control_app(control),
            edge_token=control.edge_token,
            admin_key=admin_key,
            close=close,
        )
    except BaseException:
        await close()
        raise
