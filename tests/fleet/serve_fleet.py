"""A process of a fleet over fake engines: `python -m tests.fleet.serve_fleet host|edge DIRECTORY [setting=value …]`.

A host's engine counts for itself below its `metering.dir`.
"""

import os
import sys

from manylora.bench.faults.counted_engine import FOLDER, CountedEngine
from manylora.config.folders import metering_dir
from manylora.config.settings import Config, load_config, parse_setting
from manylora.server.engine_client.loop import ProgressLine
from manylora.server.engine_client.served_model import ServedModel
from manylora.system.log_lines import configure_logs
from manylora.system.standard_streams import make_streams_lossy, open_missing_streams
from tests.server import fake_engine

FACTORY = "tests.fleet.serve_fleet:build"
MODULE = "tests.fleet.serve_fleet"


def build(config: Config, tell: ProgressLine) -> tuple[CountedEngine, ServedModel]:
    """Build a fake engine that counts its tokens in a file of its own. A `loop.EngineFactory`."""
    engine, served = fake_engine.build(config, tell)
    return CountedEngine(engine, metering_dir(config) / FOLDER), served


def main(role: str, directory: str, *assignments: str) -> None:
    open_missing_streams()
    make_streams_lossy()
    configure_logs(role)
    pairs = [assignment.partition("=") for assignment in assignments]
    flags = {key: parse_setting(key, text) for key, _, text in pairs}
    own = {"model.base": directory, "model.cache_dir": f"{directory}/cache", "metering.dir": f"{directory}/metering"}
    config = load_config(None, {**own, **flags}, {})
    host(config) if role == "host" else edge(config)


def host(config: Config) -> None:
    from manylora.fleet.host.run import run_host

    run_host(
        config,
        factory=FACTORY,
        progress=lambda line: None,
        ready=lambda served, address: print(f"READY {address} {os.getpid()}", flush=True),  # noqa: T201  read by tests
    )


def edge(config: Config) -> None:
    from manylora.fleet.edge.transport import FleetTransport
    from manylora.http.listener import listen
    from manylora.server.app.run import Announce, run_server
    from manylora.wiring.control import host_control

    run_server(
        config,
        listen(config.server.host, config.server.port, group="server"),
        factory=FACTORY,
        control=host_control,
        announce=Announce(ready=lambda served, url: print(f"READY {url}", flush=True)),  # noqa: T201  read by tests
        transport=lambda factory, own, report: FleetTransport(own, on_progress=report),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
