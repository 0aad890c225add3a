"""The control plane inside the server's process: what `manylora serve` opens unless it belongs to another."""

import asyncio

from manylora.config import Config
from manylora.control.api import create_control_app
from manylora.control.caretaking import Caretaker
from manylora.control.first_start import ensure_first_start
from manylora.control.opening import open_control
from manylora.server.membership import HostedControl


async def host_control(config: Config, is_key_needed: bool) -> HostedControl:
    """Open the control plane of the settings. Raises `ConfigInvalid`, `ControlUnavailable`."""
    control = await asyncio.to_thread(open_control, config, is_key_needed=is_key_needed)
    caretaker = Caretaker(control)

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
