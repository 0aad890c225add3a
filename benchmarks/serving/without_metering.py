"""`manylora` without records of usage: the other side of `pairs metering`, which measures the cost of metering.

PYTHONPATH=src:. python -m benchmarks.serving.without_metering serve …
"""

from typing import Any

from manylora.cli import main
from manylora.server.app import run

create_app, EngineClient = run.create_app, run.EngineClient


def unmetered_app(*arguments: Any, **named: Any) -> Any:
    return create_app(*arguments, **{**named, "meter": None})


def unmetered_client(*arguments: Any, **named: Any) -> Any:
    return EngineClient(*arguments, **{**named, "record": None})


if __name__ == "__main__":
    run.create_app = unmetered_app
    run.EngineClient = unmetered_client  # type: ignore[assignment, misc]
    main()
