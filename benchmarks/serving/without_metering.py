"""`manylora` without records of usage: the other side of `pairs metering`, which measures the cost of metering.

PYTHONPATH=$PWD/src:$PWD python -m benchmarks.serving.without_metering serve …
"""

from typing import Any
from unittest.mock import patch

from manylora.cli import main
from manylora.server.app.application import create_app
from manylora.server.engine_client.client import EngineClient

RUN = "manylora.server.app.run"


def unmetered_app(*arguments: Any, **named: Any) -> Any:
    return create_app(*arguments, **{**named, "meter": None})


def unmetered_client(*arguments: Any, **named: Any) -> Any:
    return EngineClient(*arguments, **{**named, "record": None})


if __name__ == "__main__":
    with patch(f"{RUN}.create_app", unmetered_app), patch(f"{RUN}.EngineClient", unmetered_client):
        main()
