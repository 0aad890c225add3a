"""The run of a host until a signal: its start, its service, and its drain."""

import asyncio
import logging
from collections.abc import Callable

import uvloop

from manylora.config.folders import cache_dir, counts_dir
from manylora.config.settings import Config
from manylora.errors import ConfigInvalid
from manylora.fleet.host.host import EngineHost
from manylora.server.app.run import MakeTransport, own_process
from manylora.server.engine_client.served_model import ServedModel
from manylora.system.collector import exempt_modules
from manylora.system.private_files import keep_private, tighten
from manylora.system.signals import StopSignals

log = logging.getLogger(__name__)


def run_host(
    config: Config,
    *,
    factory: str,
    progress: Callable[[str], None],
    ready: Callable[[ServedModel, str], None],
    transport: MakeTransport = own_process,
) -> None:
    """Host an engine until SIGTERM or SIGINT, then drain for up to `server.drain_s` seconds.

    Args:    factory    `module:function` of a `loop.EngineFactory`
             progress   called with each line about the start
             ready      called once, with the served model and the address
    Raises:  `StartupError` if the engine cannot be built; `ConfigInvalid`, also for more than one base
    """
    if config.model.more_bases:
        raise ConfigInvalid("model.more_bases must be empty: an engine of a fleet has one base")
    exempt_modules()
    keep_private()
    tighten(counts_dir(config), cache_dir(config) / "adapters")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        host = EngineHost(config, transport(factory, config, progress))
        runner.run(_serve(host, config, ready))


async def _serve(host: EngineHost, config: Config, ready: Callable[[ServedModel, str], None]) -> None:
    with StopSignals() as signals:
        try:
            await signals.interrupting(host.start())
            ready(host.served, host.address)
            await signals.first.wait()
            await signals.hastening(host.drain(config.server.drain_s), host.kill)
        finally:
            await signals.hastening(host.close(), host.kill)
