"""`manylora serve` with an engine that counts for itself, in a process or in a thread of the server.

python -m manylora.bench.faults.counted_server TRANSPORT [group.setting=value …]     TRANSPORT: process, thread
"""

import sys
from collections.abc import Callable

from manylora.bench.faults.counted_engine import FACTORY
from manylora.config.settings import Config, load_config, parse_setting
from manylora.console.application import create_console
from manylora.http.listener import listen
from manylora.server.app.run import Announce, own_process, run_server
from manylora.server.engine_client.in_process import InProcessTransport
from manylora.server.engine_client.loop import load_factory
from manylora.server.engine_client.transport import Transport
from manylora.system.resources import raise_file_limit
from manylora.system.standard_streams import make_streams_lossy
from manylora.wiring.control import host_control


def own_thread(factory: str, config: Config, on_progress: Callable[[str], None]) -> Transport:
    """Return a transport to an engine in a thread of this process."""
    return InProcessTransport(lambda: load_factory(factory)(config, on_progress))


TRANSPORTS = {"process": own_process, "thread": own_thread}


def main(transport: str, *assignments: str) -> None:
    make_streams_lossy()
    raise_file_limit()
    pairs = [assignment.partition("=") for assignment in assignments]
    config = load_config(None, {key: parse_setting(key, text) for key, _, text in pairs})
    listener = listen(config.server.host, config.server.port, group="server")
    run_server(
        config,
        listener,
        factory=FACTORY,
        control=host_control,
        announce=Announce(),
        transport=TRANSPORTS[transport],
        console=create_console,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
