"""A server process over the fake engine: `python -m tests.server.serve_fake DIRECTORY [group.setting=value …]`."""

import sys

from manylora.config.settings import load_config, parse_setting
from manylora.http.listener import listen
from manylora.system.collector import paused
from manylora.system.log_lines import configure_logs
from manylora.system.standard_streams import make_streams_lossy, open_missing_streams

FACTORY = "tests.server.fake_engine:build"


def main(directory: str, *assignments: str) -> None:
    with paused():
        from manylora.console.application import create_console
        from manylora.server.app.run import Announce, run_server
        from manylora.wiring.control import host_control

    open_missing_streams()
    make_streams_lossy()
    configure_logs("edge")
    pairs = [assignment.partition("=") for assignment in assignments]
    flags = {key: parse_setting(key, text) for key, _, text in pairs}
    own = {"control.dir": f"{directory}/control", "metering.dir": f"{directory}/metering"}
    config = load_config(None, {"model.base": directory, "server.port": 0, **own, **flags}, {})
    announce = Announce(
        progress=lambda line: print(f"PROGRESS {line}", flush=True),  # noqa: T201  read by the test
        admin_key=lambda key: print(f"ADMIN {key}", flush=True),  # noqa: T201  read by the test
        ready=lambda served, url: print(f"READY {url}", flush=True),  # noqa: T201  read by the test
    )
    listener = listen(config.server.host, config.server.port, group="server")
    run_server(config, listener, factory=FACTORY, control=host_control, announce=announce, console=create_console)


if __name__ == "__main__":
    main(*sys.argv[1:])
